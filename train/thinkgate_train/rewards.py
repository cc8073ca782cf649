"""Reward functions for GRPO, by name. Each reads a completion through the one splitter.

A reward of None means "could not be measured": TRL leaves it out of the sum. A failed measurement
is never 0 and never 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

from thinkgate.answers import Verdict, check_many
from thinkgate.format import Split, SplitStatus

__all__ = ["REWARDS", "RewardFunction", "Splitter", "text_of"]

Splitter = Callable[[str], Split]
"""`thinkgate.format.split` with the run's tags and prefill bound."""

RewardFunction = Callable[..., list[float | None]]
"""TRL's signature: keyword arguments `prompts`, `completions`, data columns; one value each."""

SCORES: dict[Verdict, float | None] = {
    Verdict.CORRECT: 1.0,
    Verdict.WRONG: 0.0,
    Verdict.NO_ANSWER: 0.0,
    Verdict.BAD_GOLD: None,
    Verdict.ERROR: None,
}


def correctness(splitter: Splitter, timeout: float = 5.0) -> RewardFunction:
    """1 where the answer part is correct, else 0; None where gold or verifier failed."""

    def reward(completions: Sequence[Any], gold: Sequence[str], **_: Any) -> list[float | None]:
        answers = [splitter(text_of(completion)).answer for completion in completions]
        verdicts = check_many(list(zip(answers, gold, strict=True)), timeout=timeout)
        return [SCORES[verdict] for verdict in verdicts]

    reward.__name__ = "correctness"
    return reward


def format(splitter: Splitter) -> RewardFunction:
    """1 for a closed thought followed by an answer, else 0."""

    def reward(completions: Sequence[Any], **_: Any) -> list[float | None]:
        splits = [splitter(text_of(completion)) for completion in completions]
        return [
            float(split.status is SplitStatus.CLOSED and bool((split.answer or "").strip()))
            for split in splits
        ]

    reward.__name__ = "format"
    return reward


REWARDS: dict[str, Callable[..., RewardFunction]] = {
    "correctness": correctness,
    "format": format,
}


def text_of(completion: Any) -> str:
    """The text of a completion as TRL passes it: a string, or messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
