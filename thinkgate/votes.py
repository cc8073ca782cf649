"""Votes on one question: which answers say the same, which said it most, when that is certain.

Owns the counting of majority votes (self-consistency, Wang et al. 2022, arXiv 2203.11171), for
maj@k and for the server's consensus alike. When two ballots say the same is the caller's to say,
in the end by `answers.equivalent`; a sample without an answer casts no ballot.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Poll"]

T = TypeVar("T")


class Poll(Generic[T]):
    """Ballots in parties: all of one party say the same."""

    def __init__(self, same: Callable[[T, T], bool]) -> None:
        self._same = same
        self.parties: list[list[T]] = []
        """In the order of their first ballots, the ballots of each in the order they came."""

    def cast(self, ballot: T) -> None:
        """Count one more; it is compared with the first ballot of each party."""
        for party in self.parties:
            if self._same(party[0], ballot):
                party.append(ballot)
                return
        self.parties.append([ballot])

    def leaders(self) -> list[list[T]]:
        """The largest party; several when they tie, none when nobody voted."""
        most = max(map(len, self.parties), default=0)
        return [party for party in self.parties if len(party) == most]

    def settled(self, outstanding: int) -> bool:
        """Whether the largest party stays it, alone, however `outstanding` more ballots fall."""
        first, second, *_ = [*sorted(map(len, self.parties), reverse=True), 0, 0]
        return first > second + outstanding
