"""What a trained checkpoint writes, and how much of it is right. Not a test: several share it."""

import statistics
from pathlib import Path
from typing import Any, cast

from thinkgate.answers import Verdict, check_many
from thinkgate.format import split
from thinkgate.problems import Arithmetic, load
from thinkgate_train.data import render
from thinkgate_train.recipe import Prompt


def written(
    folder: Path, problems: list[str], prompt: Prompt | None = None, *, longest: int = 160
) -> list[str]:
    """What a checkpoint samples at temperature 1 for each problem, in at most `longest` tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from thinkgate_train.decoding import sample

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    asked = [render(tokenizer, (prompt or Prompt()).ask(problem)) for problem in problems]
    torch.manual_seed(0)
    drawn = sample(
        AutoModelForCausalLM.from_pretrained(folder),
        tokenizer(asked, add_special_tokens=False)["input_ids"],
        max_new_tokens=longest,
        temperature=1.0,
        eos_ids=[tokenizer.eos_token_id],
        pad_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(drawn.completion_ids, skip_special_tokens=True)
    return cast("list[str]", texts)


def accuracy(
    folder: Path, source: Arithmetic, prompt: Prompt | None = None, *, longest: int = 160
) -> float:
    """Share of right answers, by the one verifier."""
    problems = load(source)
    texts = written(folder, [p.prompt for p in problems], prompt, longest=longest)
    pairs = [(split(text).answer, p.gold) for text, p in zip(texts, problems, strict=True)]
    return statistics.fmean(verdict is Verdict.CORRECT for verdict in check_many(pairs))
