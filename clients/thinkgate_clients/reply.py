"""What comes back from a chat completion: the reasoning, the answer, and what they cost.

Owns reading a completion, whole or in chunks, whatever names the server uses for the thought:
`reasoning_content`, `reasoning`, `reasoning_details`, or tags in the text, which the one splitter
splits. Knows nothing of connections or retries (`client.py`), nor of what a right answer is.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thinkgate.format import Channel, SplitStatus, ThinkSplitter

__all__ = [
    "AnswerText",
    "Consensus",
    "Event",
    "Finished",
    "Reading",
    "ReasoningText",
    "Reply",
    "Usage",
]

DIGEST_HEADER = "X-Thinkgate-Model-Digest"


@dataclass(frozen=True, slots=True)
class Consensus:
    """An election among samples; the reply is the first one that gave the winning answer."""

    votes: tuple[tuple[str, int], ...]
    """Answers and how many samples gave each, most first."""

    agreement: float
    """Share of the finished samples that gave the winning answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One finished completion. Counts are None where the server does not report them."""

    reasoning: str
    answer: str | None
    """None only when the generation ended inside the thought; an empty answer is ""."""

    status: SplitStatus
    finish_reason: str | None
    reasoning_tokens: int | None
    answer_tokens: int | None
    completion_tokens: int | None
    prompt_tokens: int | None = None
    request_id: str | None
    model_digest: str | None
    """SHA-256 of the served model's files; only a thinkgate server sends it."""

    consensus: Consensus | None = None
    """Set when several samples were asked to vote; only a thinkgate server does that."""

    latency_s: float
    """From sending to the last byte, retries included."""


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """A piece of the thought, as it is generated."""

    text: str


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer, as it is generated."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the request cost, where the server says; comes once, before `Finished`.

    A count is None where the server leaves it out; it is never guessed.
    """

    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream: everything together."""

    reply: Reply


Event = ReasoningText | AnswerText | Usage | Finished


class Reading:
    """Turns what a server sends for one request into events and a `Reply`.

    `started` is the `time.perf_counter()` at which the request was sent.
    """

    def __init__(self, splitter: ThinkSplitter, headers: Mapping[str, str], started: float) -> None:
        self._splitter = splitter
        self._digest = headers.get(DIGEST_HEADER)
        self._request_id = headers.get("x-request-id")
        self._started = started
        self._parts: dict[Channel, list[str]] = {channel: [] for channel in Channel}
        self._separated = False  # the server has split the thought off itself
        self._cut = False  # and says that it was cut
        self._finish_reason: str | None = None
        self._usage: Any = None
        self._consensus: Any = None

    def whole(self, completion: Any) -> Reply:
        """The reply in a completion that was not streamed; ValueError when it is none."""
        self._take(completion, "message")
        return self._reply()

    def feed(self, chunk: Any) -> list[Event]:
        """Events of one chunk of a stream."""
        self._consensus = getattr(chunk, "consensus", None) or self._consensus
        if not chunk.choices:  # the one that carries the usage
            self._usage = chunk.usage or self._usage
            return []
        return self._take(chunk, "delta")

    def finish(self) -> list[Event]:
        """What is still held back, then `Finished`; ValueError when the stream broke off."""
        if self._finish_reason is None:
            raise ValueError("the stream ended before the completion did")
        held = self._put(self._splitter.close())
        reply = self._reply()
        cost = Usage(
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            reasoning_tokens=reply.reasoning_tokens,
        )
        return [*held, *([cost] if self._usage else []), Finished(reply)]

    def _take(self, response: Any, part: str) -> list[Event]:
        choices = getattr(response, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(first, part, None)
        if not hasattr(message, "__dict__"):  # text, a list, a number: no object with fields
            raise ValueError("the response is not a chat completion")
        choice: Any = first
        self._request_id = self._request_id or _text(getattr(response, "id", None), "id")
        self._usage = getattr(response, "usage", None) or self._usage
        self._consensus = getattr(response, "consensus", None) or self._consensus
        ended = _text(getattr(choice, "finish_reason", None), "finish_reason")
        self._finish_reason = ended or self._finish_reason
        flags = (getattr(x, "reasoning_truncated", None) for x in (response, choice, message))
        self._cut = self._cut or any(flags)
        return self._put(self._pieces(message))

    def _pieces(self, message: Any) -> list[tuple[Channel, str]]:
        """Text of a message or delta; DeepSeek's name for the thought, vLLM's, OpenRouter's."""
        thought = getattr(message, "reasoning_content", None)
        if thought is None:
            thought = getattr(message, "reasoning", None)
        if thought is None:
            thought = _details(getattr(message, "reasoning_details", None))
        thought = _text(thought, "reasoning")
        content = _text(getattr(message, "content", None), "content")
        self._separated = self._separated or thought is not None
        pieces = [(Channel.REASONING, thought)] if thought else []
        if content and self._separated:
            return [*pieces, (Channel.ANSWER, content)]
        return [*pieces, *self._splitter.feed(content or "")]

    def _put(self, pieces: list[tuple[Channel, str]]) -> list[Event]:
        events: list[Event] = []
        for channel, text in pieces:
            self._parts[channel].append(text)
            kind = ReasoningText if channel is Channel.REASONING else AnswerText
            events.append(kind(text))
        return events

    def _reply(self) -> Reply:
        self._put(self._splitter.close())
        answer = "".join(self._parts[Channel.ANSWER])
        reasoning = "".join(self._parts[Channel.REASONING])
        completion, thinking = _token_counts(self._usage)
        if thinking == 0 and reasoning:
            thinking = None  # a server that has the field and does not count
        status = self._status(answer, thinking)
        if thinking is None and status is SplitStatus.UNTAGGED:
            thinking = 0
        rest = None if completion is None or thinking is None else completion - thinking
        return Reply(
            reasoning=reasoning,
            answer=None if status is SplitStatus.TRUNCATED else answer,
            status=status,
            finish_reason=self._finish_reason,
            reasoning_tokens=thinking,
            answer_tokens=rest,
            completion_tokens=completion,
            prompt_tokens=_count(getattr(self._usage, "prompt_tokens", None)),
            request_id=self._request_id,
            model_digest=self._digest,
            consensus=_consensus(self._consensus),
            latency_s=time.perf_counter() - self._started,
        )

    def _status(self, answer: str, thinking: int | None) -> SplitStatus:
        nothing_after = not answer and self._finish_reason == "length"
        if self._separated:
            cut = self._cut or nothing_after
            return SplitStatus.TRUNCATED if cut else SplitStatus.CLOSED
        if nothing_after and thinking:  # a server that keeps its thoughts to itself
            return SplitStatus.TRUNCATED
        return self._splitter.status


def _token_counts(usage: Any) -> tuple[int | None, int | None]:
    """(completion tokens, reasoning tokens) as reported; None where not. SGLang reports the latter
    beside the former, others one level below."""
    details = getattr(usage, "completion_tokens_details", None)
    completion = _count(getattr(usage, "completion_tokens", None))
    thinking = _count(getattr(details, "reasoning_tokens", None))
    if thinking is None:
        thinking = _count(getattr(usage, "reasoning_tokens", None))
    if completion is not None and thinking is not None and thinking > completion:
        return completion, None
    return completion, thinking


def _details(details: Any) -> str | None:
    """OpenRouter's list of pieces: text and summaries are read, what is encrypted is not."""
    if not isinstance(details, list):
        return None
    pieces = [_field(piece, "text") or _field(piece, "summary") for piece in details]
    return "".join(piece for piece in pieces if isinstance(piece, str)) if pieces else None


def _consensus(said: Any) -> Consensus | None:
    votes = _field(said, "votes")
    if not isinstance(votes, list):
        return None
    counts = tuple(
        (str(_field(vote, "answer")), _count(_field(vote, "count")) or 0) for vote in votes
    )
    agreement = _field(said, "agreement")
    return Consensus(counts, float(agreement) if isinstance(agreement, int | float) else 0.0)


def _field(value: Any, name: str) -> Any:
    """A field of an object, whether it was read as a dict or not."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _count(value: Any) -> int | None:
    """A count as a server should send it; None for what is none."""
    return value if type(value) is int and value >= 0 else None


def _text(value: Any, field: str) -> str | None:
    """Text or nothing; ValueError for a server that sends something else under `field`."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"the response's {field} is {type(value).__name__}, not text")
