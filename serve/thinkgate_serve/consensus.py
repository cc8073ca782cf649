"""Self-consistency: several samples of one prompt, and one whose answer most of them gave.

Owns the election: who votes, when it is decided, what is reported about it. Answers are compared by
the verifier that rewards and grades them, so `1/2` and `0.5` vote together. A sample that was
cut off in its thought, or whose answer makes no claim, does not vote. Knows nothing of HTTP.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, NamedTuple

from thinkgate.answers import equivalent, extract
from thinkgate.format import Channel
from thinkgate.votes import Poll
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece, Plan, Thinking

__all__ = ["Election"]

SIGN_OF_LIFE_SECONDS = 10.0
"""How often a client that waits for the winner hears that the election goes on."""

COMPARISON_SECONDS = 1.0
"""CPU time for comparing two answers; what takes longer counts as different."""


class Ballot(NamedTuple):
    """One sample's vote."""

    sample: int
    claim: str


class Election:
    """The samples of one request. ApiError 400 when they could not differ."""

    def __init__(self, plan: Plan, samples: Sequence[Thinking], voting: Executor) -> None:
        if plan.sampling.temperature == 0 and len(samples) > 1:
            raise ApiError(
                400,
                "at temperature 0 all samples are the same; consensus needs one above 0",
                param="temperature",
            )
        self._samples = samples
        self._voting = voting
        self._poll = Poll(self._same)
        self._finished = 0
        self._over = False
        self.winner: Thinking | None = None
        """Known when all have voted, or as soon as the rest can no longer change it."""

    async def hold(
        self, events: AsyncGenerator[tuple[Choice, Sequence[Piece]], None]
    ) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
        """The winner with all its pieces at once, as choice 0; before it, an event of no pieces
        now and then. Samples whose votes cannot matter any more are aborted."""
        pieces: defaultdict[int, list[Piece]] = defaultdict(list)
        told = time.monotonic()
        try:
            async with aclosing(events):
                async for choice, settled in events:
                    pieces[choice.index] += settled
                    if choice.finish is not None:
                        await self._count(choice, pieces[choice.index])
                        if self._poll.settled(len(self._samples) - self._finished):
                            break
                    elif time.monotonic() - told >= SIGN_OF_LIFE_SECONDS:
                        told = time.monotonic()
                        yield choice, ()
        finally:
            self._over = True
        self.winner = self._elect()
        trace = pieces[self.winner.index]
        self.winner.index = 0
        yield self.winner, trace

    def report(self) -> dict[str, Any]:
        """The counts. `indices` says which samples: sample i is drawn with `seed` + i."""
        parties = self._ranked()
        return {
            "votes": [
                {
                    "answer": party[0].claim,
                    "count": len(party),
                    "indices": [ballot.sample for ballot in party],
                }
                for party in parties
            ],
            "agreement": len(parties[0]) / self._finished if parties else 0.0,
            "samples": len(self._samples),
            "finished": self._finished,
        }

    async def _count(self, choice: Choice, pieces: Sequence[Piece]) -> None:
        self._finished += 1
        answer = "".join(text for channel, text in pieces if channel is Channel.ANSWER)
        if answer:
            cast = asyncio.get_running_loop().run_in_executor
            await cast(self._voting, self._cast, choice.index, answer)

    def _cast(self, index: int, answer: str) -> None:
        claim = extract(answer)
        if claim is not None:
            self._poll.cast(Ballot(index, claim.text))

    def _same(self, a: Ballot, b: Ballot) -> bool:
        if a.claim == b.claim:
            return True
        # A client that went away cannot cancel a thread; it soon ends all the same.
        return not self._over and equivalent(a.claim, b.claim, timeout=COMPARISON_SECONDS)

    def _ranked(self) -> list[list[Ballot]]:
        """Most votes first; of equals the one with the lowest sample."""
        parties = [sorted(party) for party in self._poll.parties]
        return sorted(parties, key=lambda party: (-len(party), party[0]))

    def _elect(self) -> Thinking:
        parties = self._ranked()
        if parties:
            return self._samples[parties[0][0].sample]
        # Nobody voted: an answer without a claim is better than none.
        return next((one for one in self._samples if not one.truncated), self._samples[0])
