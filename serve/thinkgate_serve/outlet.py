"""Taking a request's tokens from vLLM's output processor, without the objects it makes of them.

For every token vLLM describes the whole request twice over and hands that on through an event and
a generator, a seventh of what a streamed token costs the server. This takes the text and the token
ids where they are ready. Knows nothing of what is done with them.
"""

import asyncio
from typing import Any

__all__ = ["Outlet", "Part"]

Part = tuple[str, list[int], str | None, list[Any] | None]
"""What came since the last one: text, token ids, why it ended, and vLLM's logprobs, one mapping for
each token, when they were asked for. No class: its constructor would run for every token."""


class Outlet:
    """The tokens of one request that `AsyncLLM.add_request` has begun, from its queue on."""

    def __init__(self, llm: Any, queue: Any) -> None:
        self._llm, self._request_id = llm, queue.request_id
        self._loop = asyncio.get_running_loop()
        self._waiting: Part | None = None
        self._reader: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._finished = False
        # How many tokens are handed on at once: the first alone, then by vLLM's `stream_interval`.
        self._due, self._at_once, self._later = False, 1, 1
        state = llm.output_processor.request_states.get(queue.request_id)
        if state is not None:  # else it is over, and all of it is in the queue
            self._state, self._later = state, state.stream_interval
            self._text = state.detokenizer.get_next_output_text
            state.make_request_output = self._take
            state.queue = self
        if (early := queue.get_nowait()) is not None:
            part = early.outputs[0]
            self._add((part.text, part.token_ids, part.finish_reason, part.logprobs))

    async def next(self) -> Part:
        """All that came since the last call: tokens, or the end. Raises what the engine died of."""
        while (part := self._waiting) is None or not self._due:
            if self._failure is not None:
                raise self._failure
            self._reader = self._loop.create_future()
            await self._reader
        self._waiting, self._due, self._at_once = None, False, self._later
        return part

    async def close(self) -> None:
        """Abort the request unless it is over."""
        if not self._finished and self._failure is None:
            await self._llm.abort(self._request_id, internal=True)

    def put(self, failure: Exception) -> None:
        """In place of the request's queue: when the engine fails, every request is told."""
        self._failure = failure
        self._wake()

    def _take(
        self, new_token_ids: list[int], pooling_output: Any, finish_reason: Any, *_: Any, **__: Any
    ) -> None:
        """In place of `RequestState.make_request_output`: it leaves vLLM nothing to hand on."""
        logprobs = self._state.logprobs_processor.logprobs
        self._add(
            (
                self._text(finish_reason is not None, True),
                new_token_ids,
                None if finish_reason is None else str(finish_reason),
                logprobs[len(logprobs) - len(new_token_ids) :] if logprobs else None,
            )
        )

    def _add(self, part: Part) -> None:
        text, token_ids, finish, logprobs = part
        self._finished = finish is not None
        if self._waiting is not None:
            before, all_ids, _, all_logprobs = self._waiting
            all_ids.extend(token_ids)
            if all_logprobs is not None and logprobs is not None:
                all_logprobs.extend(logprobs)
            part = before + text, all_ids, finish, all_logprobs
        self._waiting = part
        self._due = self._finished or len(part[1]) >= self._at_once
        if self._due and self._reader is not None:
            self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)
