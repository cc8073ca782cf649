"""Procedural posts: halves that never meet, summaries to choose from, pairs by a rule."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from thinkgate.format import SplitStatus, split
from thinkgate_train.toys import KIND_WORDS, MARGIN, Posts, kindness


def posts(half: str = "train", seed: int = 0, count: int = 400, tagged: float = 0.0) -> Posts:
    return Posts.model_validate(
        {"source": "posts", "half": half, "seed": seed, "count": count, "tagged": tagged}
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), other=st.integers(0, 10**6))
def test_the_halves_share_no_post_whatever_the_seeds(seed: int, other: int) -> None:
    train = {row["prompt"] for row in posts("train", seed).rows()}
    held_out = {row["prompt"] for row in posts("eval", other).rows()}
    assert train and held_out and not train & held_out


def test_rows_are_those_of_their_seed() -> None:
    assert posts(seed=3).rows() == posts(seed=3).rows()
    assert posts(seed=3).rows() != posts(seed=4).rows()
    # A longer set begins with the shorter one, so limits and counts mean the same.
    assert posts(count=50).rows() == posts(count=400).rows()[:50]


def test_length_is_a_choice_and_does_not_depend_on_the_post() -> None:
    rows = posts(count=4000).rows()
    lengths = [len(row["completion"]) for row in rows]
    assert min(lengths) < 20 and max(lengths) > 90
    # Short enough on average that a reward for 50 characters has somewhere to go.
    assert 20 < statistics.fmean(lengths) < 40
    asked = [len(row["prompt"]) for row in rows]
    assert abs(statistics.correlation(asked, lengths)) < 0.1
    assert max(asked) < 40, "a byte is a token: posts are short"


def test_the_first_word_says_how_many_clauses_follow() -> None:
    for row in posts().rows():
        clauses = row["completion"].count(",") + 1
        assert row["completion"].startswith(("just ", "so ", "well ", "story: ")[clauses - 1])


def test_every_pair_follows_the_rule_and_length_does_not_give_it_away() -> None:
    rows = posts(count=2000).rows()
    assert all(kindness(r["chosen"]) - kindness(r["rejected"]) >= MARGIN for r in rows)
    longer = statistics.fmean(len(r["chosen"]) > len(r["rejected"]) for r in rows)
    assert longer < 0.75, "a reward model that only likes length would pass for a good one"
    # There is something to learn: most completions are far from the kindest.
    assert statistics.fmean(kindness(r["completion"]) for r in rows) < 0.15


@given(words=st.lists(st.sampled_from(["cat", "ran", *sorted(KIND_WORDS)]), max_size=12))
def test_kindness_is_the_share_of_kind_words(words: list[str]) -> None:
    text = ", ".join(words)
    assert kindness(text) == (sum(w in KIND_WORDS for w in words) / len(words) if words else 0.0)
    assert kindness(f"{text} thanks") >= kindness(text)


def test_tagged_completions_think_first_and_answer_in_tags() -> None:
    rows = posts(count=1000, tagged=0.3).rows()
    splits = [split(row["completion"]) for row in rows]
    closed = [s for s in splits if s.status is SplitStatus.CLOSED]
    assert 0.25 < len(closed) / len(rows) < 0.35
    assert all(s.reasoning and s.answer is not None for s in closed)
    assert all(str(s.answer).startswith("<answer>") for s in closed)
    assert all(str(s.answer).endswith("</answer>") for s in closed)
    assert {s.status for s in splits} == {SplitStatus.CLOSED, SplitStatus.UNTAGGED}


@pytest.mark.parametrize("wrong", [{"half": "test"}, {"count": 0}, {"tagged": 1.5}, {"cuont": 3}])
def test_a_mistake_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Posts.model_validate({"source": "posts", "half": "train"} | wrong)
