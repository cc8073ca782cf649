"""One completion from engine to client: split into reasoning and answer, stopped, counted.

Owns what binds to the answer only (stop strings, logprobs) and how a completion ended. A thought
and an answer made under different rules are `phases.py`'s. Knows nothing of HTTP or wire formats.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from thinkgate.format import THINK, Channel, SplitStatus, Tags, ThinkSplitter
from thinkgate_serve.engine import (
    BoundCalls,
    Constraint,
    Delta,
    Engine,
    Finish,
    Sampling,
    TokenLogprob,
)
from thinkgate_serve.stops import StopStrings

__all__ = ["Choice", "Closing", "Piece", "Plan", "Raw", "Thinking", "run_choices"]

Piece = tuple[Channel, str]

# A slow reader holds the engine's output back here instead of in memory: vLLM joins what waits.
QUEUE_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Closing:
    """What is written for the model when its thought must end."""

    text: str
    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to generate from."""

    prompt_ids: list[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    prefilled: bool = False
    """The prompt ends inside an open thought."""
    tags: Tags = THINK
    stop_in_reasoning: bool = False
    thinking_budget: int | None = None
    """Tokens after which an open thought is closed by force."""
    closings: tuple[Closing, Closing] | None = None
    """How a thought is closed: as it is, and with line breaks around the tag."""
    constraint: Constraint | BoundCalls | None = None
    """The shape of the answer; the thought is free."""
    shaped_by: str = "response_format"
    """The request's field the shape comes from."""
    logprobs_in_reasoning: bool = False
    keep_ids: bool = False
    """Whether someone asks for the ids of the answer's tokens."""

    @property
    def phased(self) -> bool:
        """Whether the answer is made under other rules than the thought."""
        return self.thinking_budget is not None or self.constraint is not None


class Choice:
    """One completion while it is made, and what is known about it at the end."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish: Finish | None = None
        self.reasoning_tokens = 0
        self.answer_tokens = 0
        self.status = SplitStatus.UNTAGGED
        self.forced = False
        """Whether the thought was closed for the model."""
        self.logprobs: list[TokenLogprob] = []
        """Of the answer's tokens not yet taken by `take_logprobs`."""
        self.reasoning_logprobs: list[TokenLogprob] = []
        """Of the thought's tokens, tags included, not yet taken."""
        self.answer_ids: list[int] = []
        """The answer's tokens not yet taken by `take_ids`."""

    @property
    def _unshown(self) -> int:
        """Characters at the end of the answer that are held back, or cut off at a stop string."""
        return 0

    def take_logprobs(self) -> list[TokenLogprob]:
        """Those of the answer's tokens of which something was shown since the last call."""
        entries, unshown = self.logprobs, self._unshown
        at = len(entries)
        while at and unshown > 0:
            at -= 1
            unshown -= len(entries[at].token)
        if unshown < 0 and self.finish is not None:
            at += 1  # a token that a stop string begins in the middle of
        self.logprobs = entries[at:]
        return entries[:at]

    def take_reasoning_logprobs(self) -> list[TokenLogprob]:
        """Those of the thought's tokens since the last call."""
        taken, self.reasoning_logprobs = self.reasoning_logprobs, []
        return taken

    def take_ids(self) -> list[int]:
        """The answer's tokens since the last call."""
        taken, self.answer_ids = self.answer_ids, []
        return taken

    def begin(self) -> Sequence[Piece]:
        """What stands before anything is generated."""
        return ()

    @property
    def continuation(self) -> list[int] | None:
        """Set when the engine must stop and go on from the prompt and these tokens instead."""
        return None

    @property
    def tokens(self) -> int:
        """All tokens generated, reasoning and answer."""
        return self.reasoning_tokens + self.answer_tokens

    def feed(self, delta: Delta) -> Sequence[Piece]:
        """What `delta` settles."""
        raise NotImplementedError

    def close(self) -> Sequence[Piece]:
        """What was held back; sets `finish`."""
        raise NotImplementedError

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it, so that the engine need not go on."""
        raise NotImplementedError


class Thinking(Choice):
    """A chat completion: a thought, perhaps, and an answer."""

    def __init__(self, index: int, plan: Plan, decode: Callable[[list[int]], str]) -> None:
        super().__init__(index)
        self._plan = plan
        self._decode = decode
        self._plain = not plan.stops
        self._reset()

    def _reset(self) -> None:
        """As if nothing had been fed."""
        plan = self._plan
        self._splitter = ThinkSplitter(plan.prefilled, plan.tags)
        self.status = self._splitter.status
        self.reasoning_tokens = self.answer_tokens = 0
        in_thought = plan.stops if plan.stop_in_reasoning else ()
        self._stops = {
            Channel.REASONING: StopStrings(in_thought),
            Channel.ANSWER: StopStrings(plan.stops),
        }
        self._engine_finish: Finish | None = None
        self.logprobs.clear()
        self.reasoning_logprobs.clear()
        self.answer_ids.clear()

    def feed(self, delta: Delta) -> Sequence[Piece]:
        splitter = self._splitter
        pieces = splitter.feed_ids(delta.text, delta.token_ids, self._decode)
        if delta.logprobs or self._plan.keep_ids:
            self._keep(delta)
        self.status = splitter.status
        self.reasoning_tokens = splitter.reasoning_tokens
        self.answer_tokens = splitter.answer_tokens
        if delta.finish is not None:
            self._engine_finish = delta.finish
        return pieces if self._plain else self._stop(pieces)

    def close(self) -> Sequence[Piece]:
        pieces: list[Piece] = []
        if not self.stopped:
            last = self._splitter.close()
            pieces = last if self._plain else self._stop(last)
            if not self.stopped:
                pieces += [
                    (channel, held)
                    for channel, stops in self._stops.items()
                    if (held := stops.close())
                ]
        self.finish = self._how_it_ended()
        return pieces

    @property
    def stopped(self) -> bool:
        return not self._plain and any(stop.matched is not None for stop in self._stops.values())

    @property
    def truncated(self) -> bool:
        """Whether it ended inside the thought, so that there is no answer."""
        return self.status is SplitStatus.TRUNCATED

    def take_logprobs(self) -> list[TokenLogprob]:
        # What came before a tag was thought after all.
        return [] if self._splitter.open and self.finish is None else super().take_logprobs()

    @property
    def _unshown(self) -> int:
        return self._stops[Channel.ANSWER].unshown

    def _keep(self, delta: Delta) -> None:
        """What may be asked for: of the answer's tokens, which are a delta's last, and of others.

        The token that ends the text is left out.
        """
        known = self.answer_tokens
        if self.status is SplitStatus.UNTAGGED is not self._splitter.status:
            self._keep_thought(self.logprobs)
            self.logprobs, self.answer_ids, known = [], [], 0
        fresh = max(0, self._splitter.answer_tokens - known)
        entries = delta.logprobs[:-1] if delta.finish is Finish.STOP else delta.logprobs
        begins = max(0, len(delta.logprobs) - fresh)
        self._keep_thought(entries[:begins])
        self.logprobs += entries[begins:]
        if self._plan.keep_ids:
            self.answer_ids += delta.token_ids[max(0, len(delta.token_ids) - fresh) :]

    def _keep_thought(self, entries: Sequence[TokenLogprob]) -> None:
        if self._plan.logprobs_in_reasoning:
            self.reasoning_logprobs += entries

    def _stop(self, pieces: Sequence[Piece]) -> list[Piece]:
        kept: list[Piece] = []
        for channel, text in pieces:
            if channel is Channel.ANSWER:
                held = self._stops[Channel.REASONING].close()
                if held:
                    kept.append((Channel.REASONING, held))
            text = self._stops[channel].feed(text)
            if text:
                kept.append((channel, text))
            if self.stopped:
                if channel is Channel.REASONING:  # what followed in the same delta is cut off
                    self.status = SplitStatus.TRUNCATED
                break
        return kept

    def _how_it_ended(self) -> Finish:
        if self.stopped:
            return Finish.STOP
        # Also when the model itself ended inside the thought: there is no answer to have stopped.
        if self.truncated or self._engine_finish is None:
            return Finish.LENGTH
        return self._engine_finish


class Raw(Choice):
    """A plain completion: text as generated, tags included; stop strings end it anywhere."""

    def __init__(self, index: int, plan: Plan) -> None:
        super().__init__(index)
        self._stops = StopStrings(plan.stops)
        self._engine_finish: Finish | None = None

    def feed(self, delta: Delta) -> Sequence[Piece]:
        self.answer_tokens += len(delta.token_ids)
        entries = delta.logprobs
        self.logprobs += entries[:-1] if delta.finish is Finish.STOP else entries
        if delta.finish is not None:
            self._engine_finish = delta.finish
        text = self._stops.feed(delta.text)
        return [(Channel.ANSWER, text)] if text else []

    def close(self) -> Sequence[Piece]:
        text = self._stops.close()
        self.finish = Finish.STOP if self.stopped else self._engine_finish or Finish.LENGTH
        return [(Channel.ANSWER, text)] if text else []

    @property
    def stopped(self) -> bool:
        return self._stops.matched is not None

    @property
    def _unshown(self) -> int:
        return self._stops.unshown


async def _run(
    engine: Engine, plan: Plan, sampling: Sampling, choice: Choice, request_id: str
) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
    """Pieces of one choice, as they settle; the last time after `choice.finish` is known.

    A choice that asks for a continuation is generated in several runs of the engine, each with the
    same seed; what the runs share is in the engine's prefix cache.
    """
    first = choice.begin()
    if first:
        yield choice, first
    part, written, run = sampling, choice.continuation, 0
    while True:
        prompt = plan.prompt_ids if written is None else [*plan.prompt_ids, *written]
        if written is not None:
            part = _after(sampling, len(written), plan.constraint)
        name = f"{request_id}.{run}" if run else request_id
        async with aclosing(engine.generate(prompt, part, name)) as deltas:
            async for delta in deltas:
                pieces = choice.feed(delta)
                if choice.stopped or (delta.finish is not None and choice.continuation is written):
                    yield choice, [*pieces, *choice.close()]
                    return
                yield choice, pieces
                if choice.continuation is not written:
                    break
        if choice.continuation is written:  # an engine that ends without a finish
            yield choice, choice.close()
            return
        written, run = choice.continuation, run + 1


def _after(
    sampling: Sampling, written: int, constraint: Constraint | BoundCalls | None
) -> Sampling:
    """What is left of `sampling` for the answer when that many tokens stand already."""
    return replace(
        sampling,
        max_tokens=sampling.max_tokens - written,
        min_tokens=max(0, sampling.min_tokens - written),
        constraint=constraint,
    )


Settled = tuple[Choice, Sequence[Piece], Finish | None]


def run_choices(
    engine: Engine, plan: Plan, choices: Sequence[Choice], request_id: str
) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
    """Run all choices at once; pieces in the order they settle, choice by choice interleaved.

    Closing the generator aborts what still runs. One choice's failure ends them all.
    """
    if len(choices) == 1:
        return _run(engine, plan, plan.sampling, choices[0], request_id)
    return _interleaved(engine, plan, choices, request_id)


async def _interleaved(
    engine: Engine, plan: Plan, choices: Sequence[Choice], request_id: str
) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
    queue: asyncio.Queue[Settled | Exception] = asyncio.Queue(QUEUE_LENGTH)
    tasks = [
        asyncio.create_task(_into(queue, engine, plan, choice, request_id)) for choice in choices
    ]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            choice, pieces, choice.finish = item
            running -= choice.finish is not None
            yield choice, pieces
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _into(
    queue: asyncio.Queue[Settled | Exception],
    engine: Engine,
    plan: Plan,
    choice: Choice,
    request_id: str,
) -> None:
    sampling = seeded(plan.sampling, choice.index)
    run = _run(engine, plan, sampling, choice, f"{request_id}-{choice.index}")
    try:
        async with aclosing(run):
            async for _, pieces in run:
                # It has not finished for a reader who has yet to take what is queued before this.
                finish, choice.finish = choice.finish, None
                await queue.put((choice, pieces, finish))
    except Exception as error:
        await queue.put(error)


def seeded(sampling: Sampling, index: int) -> Sampling:
    """The sampling of choice `index`: equal seeds would make all choices equal."""
    if sampling.seed is None or index == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % 2**63)
