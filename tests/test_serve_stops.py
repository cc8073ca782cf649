"""Stop strings end a text in the same place however it is cut into pieces."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from thinkgate_serve.stops import StopStrings

TEXT = st.text(alphabet="ab \n☂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab \n☂", min_size=1, max_size=4), max_size=3)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read the text letter by letter: the first stop string to be complete ends it."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_any_cut_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    matcher = StopStrings(stops)
    shown = ""
    for start, end in pairwise(edges):
        shown += matcher.feed(text[start:end])
    if matcher.matched is None:
        shown += matcher.close()
    assert (shown, matcher.matched) == expected(text, stops)


def test_holds_back_only_what_may_become_a_stop() -> None:
    matcher = StopStrings(["\n\nQ:"])
    assert matcher.feed("one\n") == "one"
    assert matcher.feed("two") == "\ntwo"
    assert matcher.feed("\n\nQ") == ""
    assert matcher.feed("uiz") == "\n\nQuiz"
    assert matcher.close() == ""


def test_nothing_follows_a_match() -> None:
    matcher = StopStrings(["END"])
    assert matcher.feed("42 END more") == "42 "
    assert matcher.feed("more") == ""
    assert matcher.matched == "END"
