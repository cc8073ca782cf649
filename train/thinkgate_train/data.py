"""Training data: problems as the rows TRL's trainers take, and their fingerprint."""

import hashlib
import random
from typing import TYPE_CHECKING, Any

from thinkgate.checkpoint import DataFingerprint
from thinkgate.errors import DataError
from thinkgate.format import Tags
from thinkgate.problems import Problem, prompt_key
from thinkgate_train.recipe import ColdStart, Prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["cold_start_rows", "fingerprint", "grpo_rows"]


def grpo_rows(problems: list[Problem], prompt: Prompt) -> "Dataset":
    """Columns `prompt` (messages) and `gold`."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": prompt.messages(p.prompt), "gold": p.gold} for p in problems]
    )


def cold_start_rows(
    problems: list[Problem],
    prompt: Prompt,
    cold_start: ColdStart,
    tokenizer: "PreTrainedTokenizerBase",
    tags: Tags,
    seed: int,
) -> "Dataset":
    """Columns `input_ids` and `labels` (-100 on the prompt).

    A completion is the worked steps, or an empty thought, then the gold.

    Tokenised here in one batch, since the loss must cover exactly what the model will generate
    after the rendered prompt, end-of-turn token included.
    """
    from datasets import Dataset

    draw = random.Random(seed)
    prompts: list[str] = []
    completions: list[str] = []
    for problem in problems:
        if not problem.steps:
            raise DataError(f"problem {problem.id} has no worked steps to build a cold start from")
        direct = draw.random() < cold_start.direct_share
        thought = "" if direct else "\n".join(problem.steps)
        rendered: Any = tokenizer.apply_chat_template(
            prompt.messages(problem.prompt), tokenize=False, add_generation_prompt=True
        )
        prompts.append(rendered)
        completions.append(f"{tags.open}{thought}{tags.close}{problem.gold}{tokenizer.eos_token}")
    before: Any = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    after: Any = tokenizer(completions, add_special_tokens=False)["input_ids"]
    return Dataset.from_dict(
        {
            "input_ids": [p + c for p, c in zip(before, after, strict=True)],
            "labels": [[-100] * len(p) + c for p, c in zip(before, after, strict=True)],
        }
    )


def fingerprint(name: str, problems: list[Problem]) -> tuple[DataFingerprint, frozenset[str]]:
    """The fingerprint for the manifest, and the key of every prompt."""
    keys = sorted({prompt_key(p.prompt) for p in problems})
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return DataFingerprint(name=name, count=len(problems), sha256=digest), frozenset(keys)
