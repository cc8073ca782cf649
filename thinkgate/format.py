"""What separates a thought from an answer: the tags, and the one splitter that reads them.

Owns `<think>`/`</think>` in text, whole or arriving in pieces, and which tokens the thought cost.
Knows nothing of what an answer means (`answers.py`), of HTTP, or of any engine or tokenizer: tags
are text, however many tokens spell them.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol

from thinkgate.errors import ConfigError


class Channel(StrEnum):
    """Which part of the output a piece of text belongs to."""

    REASONING = "reasoning"
    ANSWER = "answer"


class SplitStatus(StrEnum):
    """How the thought ended, if there was one."""

    CLOSED = "closed"
    """A thought and its closing tag; what follows is the answer, possibly empty."""

    TRUNCATED = "truncated"
    """The text ended inside the thought; there is no answer."""

    UNTAGGED = "untagged"
    """The text does not open with a thought; all of it is the answer."""


@dataclass(frozen=True, slots=True)
class Tags:
    """The pair of strings around a thought."""

    open: str
    close: str

    def __post_init__(self) -> None:
        for tag in (self.open, self.close):
            if not tag or tag != tag.strip():
                raise ConfigError(
                    f"The tag {tag!r} is empty or has whitespace around it: "
                    "give bare tags such as '<think>' and '</think>'."
                )
        if self.open.startswith(self.close) or self.close.startswith(self.open):
            raise ConfigError(
                f"The tags {self.open!r} and {self.close!r} cannot be told apart, because one "
                "starts with the other: give two that differ, such as '<think>' and '</think>'."
            )


THINK = Tags("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Split:
    """A finished text, taken apart."""

    reasoning: str
    answer: str | None
    """`None` only when TRUNCATED: no answer was begun. An empty answer is `""`."""

    status: SplitStatus


class _Phase(IntEnum):
    LEADING = 0  # nothing but whitespace and perhaps a piece of the opening tag
    PREFILLED = 1  # the same, when the prompt has opened the thought already
    OPENED = 2  # after the opening tag: whitespace is dropped
    THOUGHT = 3
    CLOSED = 4  # after the closing tag: whitespace is dropped
    ANSWER = 5
    ENDED = 6


_LEADING, _PREFILLED, _OPENED, _THOUGHT, _CLOSED, _ANSWER, _ENDED = _Phase
_REASONING_CHANNEL, _ANSWER_CHANNEL = Channel

# How many tokens before the current delta may spell the closing tag or still be on their way as
# text (engines hold text back while it may become a stop string).
_ID_WINDOW = 128


class ThinkSplitter:
    """Splits text that arrives in pieces; the joined deltas are the same however it is cut.

    `prefilled` says that the prompt ended inside an open thought (see `prefilled_by`).
    """

    __slots__ = (
        "_first",
        "_partial",
        "_phase",
        "_recent",
        "_space",
        "_status",
        "answer_tokens",
        "reasoning_tokens",
        "tags",
    )

    def __init__(self, prefilled: bool = False, tags: Tags = THINK) -> None:
        self.tags = tags
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        self._phase = _PREFILLED if prefilled else _LEADING
        self._status = SplitStatus.TRUNCATED if prefilled else SplitStatus.UNTAGGED
        self._first = tags.close[0]
        self._space: list[str] = []  # held whitespace, which comes before _partial
        self._partial = ""  # a held proper prefix of a tag
        self._recent: deque[int] = deque(maxlen=_ID_WINDOW)

    @property
    def status(self) -> SplitStatus:
        """What the status would be if the text ended now."""
        return self._status

    @property
    def open(self) -> bool:
        """Whether what follows may still be thought: the answer has not begun."""
        return self._phase < _CLOSED

    def feed(self, text: str, tokens: int = 0) -> list[tuple[Channel, str]]:
        """The deltas that `text` settles; at most one per channel, reasoning first.

        `tokens` is how many tokens made this piece. A piece that begins inside the thought counts
        wholly as reasoning, so counts are exact for one token per call; see also `feed_ids`.
        """
        phase = self._phase
        if phase is _THOUGHT:
            self.reasoning_tokens += tokens
            # Most pieces end in neither whitespace nor a piece of a tag: pass them straight on.
            if (
                text
                and self._first not in text
                and not (self._partial or self._space)
                and not text[-1].isspace()
            ):
                return [(_REASONING_CHANNEL, text)]
            return self._thought(text)
        if phase is _ANSWER:
            self.answer_tokens += tokens
            return [(_ANSWER_CHANNEL, text)] if text else []
        return self._at_boundary(text, tokens)

    def feed_ids(
        self, text: str, ids: Sequence[int], decode: Callable[[list[int]], str]
    ) -> list[tuple[Channel, str]]:
        """Like `feed`, with exact counts when `text` merges several tokens or lags behind them.

        `decode` turns a few ids into text with special tokens kept; it is called only once the
        thought closes, to find the token that ended the tag. That token is reasoning.
        """
        if self._phase >= _CLOSED:
            return self.feed(text, len(ids))
        deltas = self.feed(text, len(ids))
        if self._status is SplitStatus.CLOSED:
            window = [*self._recent, *ids]
            after = len(window) - _tokens_through(self.tags.close, window, decode)
            self.reasoning_tokens -= after
            self.answer_tokens += after
        else:
            self._recent.extend(ids)
        return deltas

    def close(self) -> list[tuple[Channel, str]]:
        """The text ends here: what was held back, now that it can no longer become a tag."""
        phase, self._phase = self._phase, _ENDED
        held = self._release()
        if not held or phase >= _CLOSED:
            return []
        return [(_ANSWER_CHANNEL if phase is _LEADING else _REASONING_CHANNEL, held)]

    def _at_boundary(self, text: str, tokens: int) -> list[tuple[Channel, str]]:
        phase = self._phase
        if phase is _LEADING:
            # Answer tokens until a tag says otherwise: that is what they are if the text ends now.
            self.answer_tokens += tokens
            return self._leading(text)
        if phase is _PREFILLED:
            self.reasoning_tokens += tokens
            return self._leading(text)
        if phase is _OPENED:
            self.reasoning_tokens += tokens
            return self._opened(text)
        if phase is _CLOSED:
            self.answer_tokens += tokens
            return self._closed(text)
        raise ValueError("feed() after close(): use a new ThinkSplitter for a new text")

    def _leading(self, text: str) -> list[tuple[Channel, str]]:
        body = self._partial + text if self._partial else text.lstrip()
        if self._phase is _LEADING and len(body) < len(text):
            self._space.append(text[: len(text) - len(body)])
        if body.startswith(self.tags.open):
            self._space.clear()
            self._partial = ""
            self._phase = _OPENED
            self._status = SplitStatus.TRUNCATED
            self.reasoning_tokens += self.answer_tokens
            self.answer_tokens = 0
            return self._opened(body[len(self.tags.open) :])
        if self.tags.open.startswith(body):
            self._partial = body
            return []
        self._partial = ""
        if self._phase is _PREFILLED:
            return self._opened(body)
        self._phase = _ANSWER
        return [(_ANSWER_CHANNEL, self._release() + body)]

    def _opened(self, text: str) -> list[tuple[Channel, str]]:
        body = text.lstrip()
        if not body:
            return []
        self._phase = _THOUGHT
        return self._thought(body)

    def _thought(self, text: str) -> list[tuple[Channel, str]]:
        close = self.tags.close
        text = self._partial + text
        end = text.find(close)
        if end >= 0:
            self._partial = ""
            last = (self._release() + text[:end]).rstrip()
            self._phase = _CLOSED
            self._status = SplitStatus.CLOSED
            answer = self._closed(text[end + len(close) :])
            return [(_REASONING_CHANNEL, last), *answer] if last else answer
        self._partial = self._unfinished(text)
        body = text.removesuffix(self._partial)
        kept = body.rstrip()
        deltas: list[tuple[Channel, str]] = []
        if kept:
            deltas.append((_REASONING_CHANNEL, "".join(self._space) + kept))
            self._space.clear()
        if len(kept) < len(body):
            self._space.append(body[len(kept) :])
        return deltas

    def _closed(self, text: str) -> list[tuple[Channel, str]]:
        body = text.lstrip()
        if not body:
            return []
        self._phase = _ANSWER
        return [(_ANSWER_CHANNEL, body)]

    def _unfinished(self, text: str) -> str:
        """The longest end of `text` that may become the closing tag."""
        close = self.tags.close
        at = text.find(self._first, max(0, len(text) - len(close) + 1))
        while at >= 0:
            if close.startswith(text[at:]):
                return text[at:]
            at = text.find(self._first, at + 1)
        return ""

    def _release(self) -> str:
        held = "".join(self._space) + self._partial
        self._space.clear()
        self._partial = ""
        return held


def split(text: str, prefilled: bool = False, tags: Tags = THINK) -> Split:
    """Take a finished text apart; it is a `ThinkSplitter` fed once and closed."""
    splitter = ThinkSplitter(prefilled, tags)
    parts = {Channel.REASONING: "", Channel.ANSWER: ""}
    for channel, delta in (*splitter.feed(text), *splitter.close()):
        parts[channel] += delta
    truncated = splitter.status is SplitStatus.TRUNCATED
    answer = None if truncated else parts[Channel.ANSWER]
    return Split(parts[Channel.REASONING], answer, splitter.status)


def _tokens_through(tag: str, ids: list[int], decode: Callable[[list[int]], str]) -> int:
    """How many of `ids` it takes until `tag` is spelled out; all of them if it never is."""
    if len(ids) <= 2 * _ID_WINDOW and tag not in decode(ids[:-1]):
        return len(ids)  # as a rule: it closed with the latest token
    for end in range(_ID_WINDOW, len(ids) + _ID_WINDOW, _ID_WINDOW):
        # Overlapping windows keep this linear in a long text that is given at once.
        start = max(0, end - 2 * _ID_WINDOW)
        window = ids[start:end]
        if tag in decode(window):
            sizes = range(len(window) + 1)
            return start + bisect_left(sizes, True, key=lambda size: tag in decode(window[:size]))
    return len(ids)


class ChatTokenizer(Protocol):
    """The one method of a Hugging Face tokenizer that is needed here."""

    def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> Any: ...


def prefilled_by(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]] | None = None,
    tags: Tags = THINK,
    **chat_template_kwargs: Any,
) -> bool:
    """Whether the chat template's generation prompt opens the thought itself; see `render_prompt`.

    Without `messages` a short question stands for any conversation.
    """
    conversation = list(messages or [{"role": "user", "content": "1+1?"}])
    return render_prompt(tokenizer, conversation, tags, **chat_template_kwargs)[1]


def render_prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tags: Tags = THINK,
    **chat_template_kwargs: Any,
) -> tuple[str, bool]:
    """The prompt of a conversation, and whether its end is inside an open thought.

    Only what the template adds after the conversation counts: a user who writes `<think>` changes
    nothing. With `continue_final_message=True`, what the assistant has said so far counts.
    ConfigError when the template cannot be rendered.
    """

    def render(turns: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, **(chat_template_kwargs | kwargs)
            )
        except ValueError as error:
            raise ConfigError(
                f"The chat template cannot be rendered ({error}), so whether it opens the thought "
                "is unknown: check the checkpoint's chat_template and the messages."
            ) from error
        assert isinstance(text, str)
        return text

    continued = bool(chat_template_kwargs.get("continue_final_message"))
    prompt = render(messages) if continued else render(messages, add_generation_prompt=True)
    if prompt.rfind(tags.open) <= prompt.rfind(tags.close):
        return prompt, False
    if not continued:
        before = render(messages, add_generation_prompt=False)
    else:
        asked = messages[:-1]
        before = render(asked, continue_final_message=False) if asked else ""
    # How many first characters both have: `startswith` of a prefix is the cheap test.
    sizes = range(min(len(prompt), len(before)))
    added = bisect_left(sizes, True, key=lambda size: not before.startswith(prompt[: size + 1]))
    # Both renderings may share the first characters of a tag, as `<` of `<think>` and `<|end|>`.
    opened = prompt.rfind(tags.open, max(0, added - len(tags.open) + 1))
    closed = prompt.rfind(tags.close, max(0, added - len(tags.close) + 1))
    return prompt, opened > closed
