"""A reward that asks a language model; asking it is `thinkgate.llm_judge`'s.

Owns which part of a completion the judge sees, and the share of failures a run is told.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from thinkgate.config import parse
from thinkgate.llm_judge import LLMJudge
from thinkgate_train.rewards.function import RewardFunction, Splitter, judged_part, last_question

__all__ = ["JudgeArguments", "LLMJudge", "llm_judge"]


class JudgeArguments(LLMJudge):
    """Arguments of the `llm_judge` reward."""

    on: Literal["answer", "completion"] = "answer"
    """What is sent: the answer part only, or the thought with it."""


def llm_judge(splitter: Splitter, **args: Any) -> RewardFunction:
    """What a language model thinks of the answer part, 0 to 1; None where the judge failed.

    Arguments: those of `LLMJudge`, and `on`. Logs the failed share of a batch as `judge/failed`.
    The "LLM as a judge" of DeepSeek-R1's third phase (arXiv 2501.12948, section 2.3.3; Zheng et
    al. 2023, arXiv 2306.05685). A judge can be talked round: watch a rule beside it.
    """
    judge = parse(JudgeArguments, args, "reward 'llm_judge'")
    judge.connect()
    part = judged_part(splitter, judge.on)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        gold: Sequence[Any] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        golds = None if gold is None else [None if g is None else str(g) for g in gold]
        scores = judge.score(
            [last_question(prompt) for prompt in prompts], [part(c) for c in completions], golds
        )
        if log_metric is not None and scores:
            log_metric("judge/failed", scores.count(None) / len(scores))
        return scores

    reward.__name__ = "llm_judge"
    return reward
