"""Counting votes: parties, ties, and when more votes can no longer change the result."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from thinkgate.votes import Poll


def poll_of(ballots: str) -> Poll[str]:
    poll: Poll[str] = Poll(lambda a, b: a.lower() == b.lower())
    for ballot in ballots:
        poll.cast(ballot)
    return poll


def test_those_who_say_the_same_vote_together() -> None:
    poll = poll_of("aBAbc")
    assert poll.parties == [["a", "A"], ["B", "b"], ["c"]]
    assert poll.leaders() == [["a", "A"], ["B", "b"]]
    assert poll_of("").leaders() == []
    assert not poll_of("").settled(0)


@given(cast=st.text("abc", max_size=12), left=st.integers(0, 6), more=st.text("abc", max_size=6))
def test_settled_means_that_no_further_votes_change_the_winner(
    cast: str, left: int, more: str
) -> None:
    before = poll_of(cast)
    sizes = Counter(len(party) for party in before.parties)
    alone = bool(sizes) and sizes[max(sizes)] == 1
    assert before.settled(0) is alone
    if before.settled(left):
        (winner,) = before.leaders()
        (after,) = poll_of(cast + more[:left]).leaders()
        assert after[: len(winner)] == winner
    elif alone:  # and it is said as early as it can be: the strongest rival could still catch up
        _, *others = sorted(before.parties, key=len, reverse=True)
        rival = others[0][0] if others else "d"
        assert len(poll_of(cast + rival * left).leaders()) > 1 or len(
            poll_of(cast + rival * left).leaders()[0]
        ) > max(sizes)
