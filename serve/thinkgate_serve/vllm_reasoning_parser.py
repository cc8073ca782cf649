"""A vLLM plugin: our splitter as vLLM's reasoning parser, for users of plain vLLM.

    python -m vllm.entrypoints.openai.api_server --model MODEL \\
        --reasoning-parser-plugin thinkgate_serve.vllm_reasoning_parser \\
        --reasoning-parser thinkgate

Owns what vLLM asks of a parser beyond splitting: whether the prompt opened the thought, one channel
per delta, token counts, where structured output begins. Only vLLM imports this module, which is why
it alone may import vLLM at the top; checked against vLLM 0.31.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.reasoning import ReasoningParserManager  # pyright: ignore[reportMissingImports]

# vLLM moves DeltaMessage every few releases, but the parsers it ships always have it at hand.
from vllm.reasoning.basic_parsers import (  # pyright: ignore[reportMissingImports]
    DeltaMessage,  # pyright: ignore[reportPrivateImportUsage]
    ReasoningParser,  # pyright: ignore[reportPrivateImportUsage]
)

from thinkgate.format import THINK, Channel, Split, SplitStatus, ThinkSplitter, prefilled_by, split

if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.tokenizers import TokenizerLike

    Request = ChatCompletionRequest | ResponsesRequest

# A tag that ends the prompt, or is being finished, lies within this many tokens.
_TAIL = 32


class ThinkgateReasoningParser(ReasoningParser):
    """One request's parser. Subclass and set `tags` for another tag pair."""

    tags = THINK

    # vLLM then hands over deltas alone instead of the whole text each time, and asks at the end for
    # what was held back.
    engine_based_streaming = True

    def __init__(
        self,
        tokenizer: "TokenizerLike",
        *args: Any,
        chat_template_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._prompt: SplitStatus | None = None
        """How the prompt ended: TRUNCATED inside a thought, CLOSED just after one; None: unseen."""
        self._splitter: ThinkSplitter | None = None
        """Set by the first streamed delta."""
        self._queued = ""
        """Answer text that came in one delta with the end of the thought; it goes out next."""
        self._answer_ids: list[int] = []
        self._answering = False
        special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        ours = (self.tags.open, self.tags.close)
        self._end_ids = {token_id for token, token_id in special if token not in ours}

    @property
    def reasoning_start_str(self) -> str:
        return self.tags.open

    @property
    def reasoning_end_str(self) -> str:
        return self.tags.close

    def adjust_request(self, request: "Request") -> "Request":
        """Keep tags in the text that the tokenizer declares special."""
        if {self.tags.open, self.tags.close} & set(self.model_tokenizer.all_special_tokens):
            request.skip_special_tokens = False
        return request

    # The prompt

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the prompt ends right after a closed thought, so that only an answer can follow.

        Thoughts of earlier turns do not count, nor does what users write.
        """
        self._prompt = self._end_of(input_ids)
        return self._prompt is SplitStatus.CLOSED

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        self._prompt = self._end_of(prompt_token_ids)

    def _end_of(self, prompt_ids: Sequence[int]) -> SplitStatus:
        if self._template_kwargs.get("continue_final_message"):
            # The prompt ends in the model's own words, wherever they began.
            text = self._decode(list(prompt_ids))
            if text.rfind(self.tags.open) > text.rfind(self.tags.close):
                return SplitStatus.TRUNCATED
        tail = self._decode(list(prompt_ids[-_TAIL:])).rstrip()
        if tail.endswith(self.tags.close):
            return SplitStatus.CLOSED
        return SplitStatus.TRUNCATED if tail.endswith(self.tags.open) else SplitStatus.UNTAGGED

    # A whole output

    def extract_reasoning(
        self, model_output: str, request: "Request"
    ) -> tuple[str | None, str | None]:
        """Content is None only for a truncated thought; an answer that is empty is `""`."""
        if self._prompt is None:
            self._prompt = self._end_from_template(request)
        result = self._split(model_output)
        return result.reasoning or None, result.answer

    def _split(self, text: str) -> Split:
        if self._prompt is SplitStatus.CLOSED:
            return Split("", text, SplitStatus.UNTAGGED)
        return split(text, self._prompt is SplitStatus.TRUNCATED, self.tags)

    def _end_from_template(self, request: "Request") -> SplitStatus:
        # vLLM shows the prompt's ids to the first choice of a chat only. What the others do not see
        # is a template given with --chat-template; give it in the checkpoint instead.
        kwargs = self._template_kwargs | {"chat_template": getattr(request, "chat_template", None)}
        continued = kwargs.get("continue_final_message")
        messages = getattr(request, "messages", None) if continued else None
        prefilled = prefilled_by(self.model_tokenizer, messages, self.tags, **kwargs)
        return SplitStatus.TRUNCATED if prefilled else SplitStatus.UNTAGGED

    # A stream

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """The next message; reads only the delta.

        Of one channel, unless it is the last: what would be queued then could no longer reach
        vLLM's tool parser.
        """
        splitter = self._splitter
        if splitter is None:
            prefilled = self._prompt is SplitStatus.TRUNCATED
            splitter = self._splitter = ThinkSplitter(prefilled, self.tags)
        deltas = splitter.feed_ids(delta_text, delta_token_ids, self._decode)
        self._answer_ids.extend(delta_token_ids)
        del self._answer_ids[: len(self._answer_ids) - splitter.answer_tokens]
        reasoning, content = self._join(deltas)
        self._queued = ""
        if reasoning and content and delta_token_ids[-1] not in self._end_ids:
            self._queued, content = content, ""
        if not reasoning and not content:
            return None
        self._answering = bool(content)
        return DeltaMessage(reasoning=reasoning or None, content=content or None)

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """True once answer text has gone out: whitespace after the tag is still ours to drop."""
        return self._answering

    def finish_streaming(self) -> DeltaMessage | None:
        """What is still held. vLLM adds it to its last message, which alone may mix channels."""
        if self._splitter is None or self._answering:
            return None
        reasoning, content = self._join(self._splitter.close())
        self._queued = ""
        if not reasoning and not content:
            return None
        return DeltaMessage(reasoning=reasoning or None, content=content or None)

    def _join(self, deltas: list[tuple[Channel, str]]) -> tuple[str, str]:
        parts = {Channel.REASONING: "", Channel.ANSWER: self._queued}
        for channel, text in deltas:
            parts[channel] += text
        return parts[Channel.REASONING], parts[Channel.ANSWER]

    # Tokens

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Exact, tags included, also for a prefilled thought; `token_ids` is the whole output."""
        if self._splitter is not None:
            return self._splitter.reasoning_tokens
        if self._prompt is SplitStatus.CLOSED:
            return 0
        return self._fed(token_ids, self._prompt is SplitStatus.TRUNCATED).reasoning_tokens

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The answer's tokens: of the stream so far while streaming, else of `input_ids`."""
        if self._splitter is not None:
            return self._answer_ids
        return input_ids[self._fed(input_ids, prefilled=True).reasoning_tokens :]

    def is_reasoning_end_streaming(
        self, input_ids: Sequence[int], delta_ids: Iterable[int]
    ) -> bool:
        """Whether the newest tokens finish the closing tag: structured output starts after them."""
        new = len(list(delta_ids))
        tail = list(input_ids[-(_TAIL + new) :])
        closed = self._decode(tail).count(self.tags.close)
        return closed > 0 and closed > self._decode(tail[: len(tail) - new]).count(self.tags.close)

    def _fed(self, ids: Sequence[int], prefilled: bool) -> ThinkSplitter:
        splitter = ThinkSplitter(prefilled, self.tags)
        splitter.feed_ids(self._decode(list(ids)), ids, self._decode)
        return splitter

    def _decode(self, ids: list[int]) -> str:
        return self.model_tokenizer.decode(ids, skip_special_tokens=False)


ReasoningParserManager.register_module("thinkgate", module=ThinkgateReasoningParser)
