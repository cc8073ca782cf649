"""A thought and an answer made under different rules: a budget for one, a shape for the other.

Owns when the first phase ends and from which tokens the second goes on. A thought that overruns its
budget is closed for the model, by writing the closing tag; an answer of a given shape is generated
after the thought, so that the shape never binds the thought. What the model does within its budget
is left alone: those tokens are the ones an unphased completion would have had.
"""

from collections.abc import Callable, Iterator, Sequence

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.engine import Delta
from thinkgate_serve.generation import Closing, Piece, Plan, Thinking

__all__ = ["EFFORTS", "Phased", "bounded"]

EFFORTS = {"none": 0.0, "minimal": 1 / 16, "low": 1 / 4, "medium": 1 / 2, "high": 3 / 4}
"""`reasoning_effort`: which share of the tokens that may be generated the thought may take."""

ANSWER_SHARE = 4
"""One token in so many is kept for the answer, whatever the budget."""

# Enough tokens before a delta to decode it as the engine did, and to see how the thought opened.
CONTEXT_TOKENS = 16


def bounded(budget: int, room: int, closing: int) -> int:
    """The budget that leaves the answer its share of `room` tokens, the closing tag paid."""
    return max(0, min(budget, room - closing - max(1, room // ANSWER_SHARE)))


class Phased(Thinking):
    """A chat completion whose thought is watched until the answer's rules take over."""

    def __init__(self, index: int, plan: Plan, decode: Callable[[list[int]], str]) -> None:
        super().__init__(index, plan, decode)
        self._written: list[int] = []
        self._watching = True
        self._continuation: list[int] | None = None

    @property
    def continuation(self) -> list[int] | None:
        return self._continuation

    def begin(self) -> Sequence[Piece]:
        return self._close_thought() if self._plan.prefilled and self._over_budget() else ()

    def feed(self, delta: Delta) -> Sequence[Piece]:
        if not self._watching:
            return super().feed(delta)
        pieces: list[Piece] = []
        for token in self._one_by_one(delta):
            fed = super().feed(token)
            if self._watching and not self.stopped:
                self._written += token.token_ids
                fed = self._watch(fed, token)
            pieces += fed
            if self._continuation is not None or self.stopped:
                break
        return pieces

    def _watch(self, fed: Sequence[Piece], token: Delta) -> Sequence[Piece]:
        """Switch to the answer's rules when it is time; the pieces that stand."""
        shaped = self._plan.constraint is not None
        ended = token.finish is not None
        if self.status is SplitStatus.TRUNCATED:
            return [*fed, *self._close_thought()] if self._over_budget() and not ended else fed
        if self.status is SplitStatus.CLOSED:
            self._watching = False
            if not shaped or ended:
                return fed
            self._continuation = self._written
            return [piece for piece in fed if piece[0] is Channel.REASONING]
        if self._splitter.open and not ended:
            return fed
        self._watching = False  # it answers without a thought
        if not shaped or self._plan.sampling.constraint is not None:
            return fed  # there is no shape, or the answer had it from the first token
        self._reset()
        self._continuation = []
        return ()

    def _over_budget(self) -> bool:
        plan = self._plan
        if plan.thinking_budget is None or self.reasoning_tokens < plan.thinking_budget:
            return False
        # With no token left for an answer the thought is merely cut.
        return len(self._written) + len(self._closing().ids) < plan.sampling.max_tokens

    def _close_thought(self) -> Sequence[Piece]:
        closing = self._closing()
        self._watching = False
        self.forced = True
        self._continuation = [*self._written, *closing.ids]
        return super().feed(Delta(closing.text, closing.ids))

    def _closing(self) -> Closing:
        """The closing in the model's own style: after `<think>` and a line break, with breaks."""
        around = self._decode([*self._plan.prompt_ids[-CONTEXT_TOKENS:], *self._written[:16]])
        _, _, opened = around.rpartition(self._plan.tags.open)
        assert self._plan.closings is not None
        plain, spaced = self._plan.closings
        return spaced if opened.startswith("\n") else plain

    def _one_by_one(self, delta: Delta) -> Iterator[Delta]:
        """Its tokens one at a time, when the phase could end among them."""
        ids = delta.token_ids
        budget = self._plan.thinking_budget
        within = budget is not None and self.tokens + len(ids) <= budget
        if len(ids) < 2 or (within and self._plan.constraint is None):
            yield delta
            return
        window = [*self._plan.prompt_ids, *self._written][-CONTEXT_TOKENS:]
        before = len(self._decode(window).rstrip("\ufffd"))
        start = 0
        for at, token in enumerate(ids, 1):
            last = at == len(ids)
            # Half a character is no text yet, here as in the engine.
            decoded = self._decode([*window, *ids[:at]]).rstrip("\ufffd")
            end = len(delta.text) if last else max(start, len(decoded) - before)
            logprobs = delta.logprobs[at - 1 : at]
            yield Delta(delta.text[start:end], [token], delta.finish if last else None, logprobs)
            start = end
