"""vLLM's tool parsers, by name: how each model family writes calls.

Owns finding a parser and translating what it finds. Checked against vLLM 0.31, whose parsers ask
for the request as vLLM's own server has it.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from thinkgate.config import nearest
from thinkgate.errors import ConfigError
from thinkgate_serve.engine import Tokenizer
from thinkgate_serve.hidden_tags import HiddenTags
from thinkgate_serve.messages import FunctionDefinition, Tool
from thinkgate_serve.tools import CallDelta, Reader, Said

__all__ = ["VLLMToolParser"]

BINDABLE = frozenset({"hermes", "kimi_k2"})
"""Parsers that find no call but where vLLM's grammar for them begins one, and hand on its arguments
as they stand. Others read spellings that their grammar lets through (qwen3_coder's, llama's), come
with another model's grammar (longcat's), or lose arguments of a stream (deepseek_v3's)."""

TAGS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "longcat": ("<longcat_tool_call>", "</longcat_tool_call>"),
    "kimi_k2": (
        "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>",
    ),
}  # fmt: skip
"""Between which parsers that look for tags first expect a call's JSON."""

PROBE = Tool(type="function", function=FunctionDefinition(name="probe"))


class VLLMToolParser:
    """One of vLLM's parsers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, tokenizer: Tokenizer) -> None:
        """ConfigError when vLLM has no such parser, or it does not fit this model."""
        from vllm.tool_parsers import ToolParserManager

        known = set(ToolParserManager.list_registered())
        if self.name not in known:
            raise ConfigError(
                f"--tool-parser {self.name}: vLLM has no such tool parser; "
                f"{nearest(self.name, known)}"
            )
        try:
            self.reader([PROBE], tokenizer)
        except (RuntimeError, ValueError, AttributeError, KeyError) as error:
            raise ConfigError(
                f"--tool-parser {self.name} does not fit this model's tokenizer: {error}"
            ) from error

    def reader(self, tools: Sequence[Tool], tokenizer: Tokenizer) -> Reader:
        """A reader of one answer."""
        from vllm.tool_parsers import ToolParserManager

        request = _request(tools)
        make: Any = ToolParserManager.get_tool_parser(self.name)
        parser = make(tokenizer, request.tools)
        tags = TAGS.get(self.name)
        hidden = None if tags is None else HiddenTags(*tags)
        return VLLMReader(parser, parser.adjust_request(request), hidden)

    def bound(self, tools: Sequence[Tool]) -> Mapping[str, Any] | None:
        from vllm.tool_parsers import ToolParserManager
        from vllm.tool_parsers.structural_tag_registry import get_model_structural_tag

        if self.name not in BINDABLE:
            return None
        family = ToolParserManager.get_tool_parser(self.name).structural_tag_model
        assert family is not None
        tag = get_model_structural_tag(family, _request(tools).tools, "auto", reasoning=False)
        return None if tag is None else tag.format.model_dump(mode="json")


def _request(tools: Sequence[Tool]) -> Any:
    """As vLLM's own server has one."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    wanted = [tool.model_dump(exclude_none=True) for tool in tools]
    return ChatCompletionRequest.model_validate(
        {"messages": [], "tools": wanted, "tool_choice": "auto"}
    )


class VLLMReader(Reader):
    """One answer through one of vLLM's parsers, which keep state.

    A model may write anything, and parsers stumble over some of it: what one cannot read is text.
    """

    def __init__(self, parser: Any, request: Any, hidden: HiddenTags | None) -> None:
        super().__init__()
        self._parser = parser
        self._request = request
        self._hidden = hidden
        self.keeps_special = not request.skip_special_tokens
        self._written = ""
        self._text = ""
        """What was written, as handed to the parser."""
        self._ids: list[int] = []
        self._told = ""
        """The text in it, as far as it is known."""
        self._indices: dict[int, int] = {}
        """Of the calls begun: the parser's count, which may have gaps, and ours."""
        # Parsers that also split thoughts off are to leave that to us.
        if hasattr(parser, "skip_reasoning_parsing"):
            parser.skip_reasoning_parsing = True
        self._incremental: bool = parser.engine_based_streaming
        """Whether it reads the delta alone; the others read everything again each time."""

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        if self._hidden is not None:
            ids = ()  # they would tell of the tags
        if not text and not ids:
            return ()
        text_before, ids_before = self._text, self._ids
        delta = self._hide(text)
        if not self._incremental:
            self._written += text
            self._text += delta
            self._ids = [*self._ids, *ids]
        try:
            message = self._parser.extract_tool_calls_streaming(
                text_before,
                delta if self._incremental else self._text,
                delta,
                ids_before,
                list(ids) if self._incremental else self._ids,
                list(ids),
                self._request,
            )
        except Exception as error:
            self._stumbled(error)
            return self._tell(text)
        return self._said(message)

    def close(self) -> Sequence[Said]:
        if hasattr(self._parser, "finish_streaming"):
            return self._said(self._parser.finish_streaming())
        if not self.called:
            return self._held_back()
        last = self._indices.get(len(self._parser.prev_tool_call_arr) - 1)
        rest = "" if last is None else self._parser.get_remaining_unstreamed_args()
        return [CallDelta(last, rest)] if last is not None and rest else ()

    def whole(self, text: str) -> Sequence[Said]:
        return self._read(text, self._hide(text))

    def _hide(self, text: str) -> str:
        return text if self._hidden is None else self._hidden.feed(text)

    def _read(self, written: str, handed: str) -> Sequence[Said]:
        try:
            found = self._parser.extract_tool_calls(handed, self._request)
        except Exception as error:
            self._stumbled(error)
            return [written] if written else []
        content = written if found.content == handed else found.content
        said: list[Said] = [content] if content else []
        for index, call in enumerate(found.tool_calls):
            # Half of a surrogate pair, which JSON can escape and UTF-8 cannot say.
            arguments = call.function.arguments.encode(errors="backslashreplace").decode()
            said.append(self._begin(index, call.function.name, arguments, self._own_id(call.id)))
        return said

    def _held_back(self) -> Sequence[Said]:
        """What an answer says that called nothing while it arrived: until its end, a tag that is
        only mentioned may begin a call."""
        said = self._read(self._written, self._text)
        text = "".join(one for one in said if isinstance(one, str))
        calls = [one for one in said if isinstance(one, CallDelta)]
        rest = text[len(self._told) :] if text.startswith(self._told) else ""
        return [rest, *calls] if rest else calls

    def _stumbled(self, error: Exception) -> None:
        """Its message may quote the answer, which belongs in no log."""
        where = type(self._parser).__name__
        print(f"thinkgate: {where} failed on an answer: {type(error).__name__}", file=sys.stderr)

    def _tell(self, text: str | None) -> list[Said]:
        self._told += text or ""
        return [text] if text else []

    def _said(self, message: Any) -> list[Said]:
        if message is None:
            return []
        said = self._tell(message.content)
        for delta in message.tool_calls or []:
            function = delta.function
            if function is None:
                continue
            arguments = function.arguments or ""
            index = self._indices.get(delta.index)
            if index is None and function.name:
                index = self._indices[delta.index] = len(self._indices)
                own_id = self._own_id(delta.id)
                said.append(self._begin(index, function.name, arguments, own_id))
            elif index is not None and arguments:
                said.append(CallDelta(index, arguments))
        return said

    @staticmethod
    def _own_id(given: str | None) -> str | None:
        """An id that means something to the model, as Kimi's do; vLLM's random ones do not."""
        return None if given is None or given.startswith("chatcmpl-tool-") else given
