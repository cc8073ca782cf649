"""Rewards: the one splitter and the one verifier, and never a zero for a failed measurement."""

import functools

import pytest

from thinkgate.format import Tags, split
from thinkgate_train import rewards

COMPLETIONS = [
    "<think>1+1=2</think>2",
    "<think></think>3",
    "<think>so \\boxed{2}",
    "2",
    "<think>2</think>",
    "2 is what it is</think>2",
]


def scores(name: str, completions: list[object], prefilled: bool = False, **columns: object):
    splitter = functools.partial(split, prefilled=prefilled)
    return rewards.REWARDS[name](splitter)(completions=completions, prompts=[], **columns)


def test_correctness_reads_the_answer_part_only() -> None:
    assert scores("correctness", COMPLETIONS, gold=["2"] * 6) == [1, 0, 0, 1, 0, 0]


def test_format_wants_a_closed_thought_and_an_answer() -> None:
    assert scores("format", COMPLETIONS) == [1, 1, 0, 0, 0, 0]
    assert scores("format", COMPLETIONS[-1:], prefilled=True) == [1]


def test_messages_are_read_like_text() -> None:
    messages = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    assert scores("correctness", messages, gold=["2"] * 6) == scores(
        "correctness", COMPLETIONS, gold=["2"] * 6
    )


def test_a_bad_gold_is_none_not_zero() -> None:
    assert scores("correctness", ["<think></think>2"], gold=[""]) == [None]


def test_other_tags() -> None:
    splitter = functools.partial(split, tags=Tags("<reasoning>", "</reasoning>"))
    reward = rewards.REWARDS["format"](splitter)
    assert reward(completions=["<reasoning>a</reasoning>b", "<think>a</think>b"]) == [1, 0]


@pytest.mark.parametrize("name", rewards.REWARDS)
def test_the_name_is_what_trl_logs(name: str) -> None:
    assert rewards.REWARDS[name](split).__name__ == name
