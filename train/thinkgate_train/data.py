"""Training data: a recipe's rows, prepared, as the data sets its trainer takes."""

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.checkpoint import DataFingerprint
from thinkgate.errors import DataError
from thinkgate.format import prefilled_by
from thinkgate.problems import prompt_key
from thinkgate_train.recipe import RL_METHODS, Recipe
from thinkgate_train.rewards.function import TRL_ARGUMENTS, text_of
from thinkgate_train.sources import (
    Row,
    load_rows,
    prompt_text,
    require_columns,
    without_suites,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rows", "fingerprint", "opens_thought", "prepare_rows", "render", "training_set"]

NEEDED = {"dpo": ("chosen", "rejected"), "reward_model": ("chosen", "rejected")}


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on, what is only measured, and what was left out and why."""

    train: list[Row]
    held_out: list[Row]
    problems: list[Any]
    """The prompts of `train` as the source has them, before the recipe's prompt was put around."""
    notes: list[str] = field(default_factory=list)


def prepare_rows(
    recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", data_dir: Path | None = None
) -> Rows:
    """The rows of a recipe, each asked in its prompt; DataError when nothing is left."""
    settings = recipe.prepare
    rows = load_rows(recipe.data, data_dir)[: settings.limit]
    require_columns(rows, _needed(recipe), f"method '{recipe.method}'")
    notes: list[str] = []
    if settings.decontaminate:
        rows, removed = without_suites(rows, settings.decontaminate, data_dir)
        notes.append(f"{removed} rows share text with {', '.join(settings.decontaminate)}: removed")
    asked = [
        {**row, "prompt": recipe.prompt.ask(row["prompt"])} if "prompt" in row else row
        for row in rows
    ]
    fits = [True] * len(rows)
    if settings.max_prompt_length is not None:
        fits = _no_longer(tokenizer, asked, settings.max_prompt_length)
        notes.append(
            f"{fits.count(False)} prompts are longer than {settings.max_prompt_length} tokens: "
            "left out"
        )
    kept = [(row, new) for row, new, short in zip(rows, asked, fits, strict=True) if short]
    if len(kept) <= settings.held_out:
        raise DataError(
            f"{recipe.name}: {len(kept)} rows are left to train on after preparing "
            f"({'; '.join(notes) or 'nothing was removed'}), {settings.held_out} are held out; "
            "relax 'prepare', or give more data"
        )
    cut = len(kept) - settings.held_out
    return Rows(
        train=[new for _, new in kept[:cut]],
        held_out=[new for _, new in kept[cut:]],
        problems=[row.get("prompt") or row.get("chosen") for row, _ in kept[:cut]],
        notes=notes,
    )


def training_set(
    recipe: Recipe, rows: list[Row], tokenizer: "PreTrainedTokenizerBase"
) -> "Dataset":
    """The data set of `recipe.method`'s trainer."""
    if recipe.method == "sft":
        return _supervised(recipe, rows, tokenizer)
    if recipe.method in RL_METHODS:
        # Columns of other names reach the reward functions under them.
        taken = {"completion", *TRL_ARGUMENTS}
        return _dataset([{k: v for k, v in row.items() if k not in taken} for row in rows])
    return _dataset([_preference(row) for row in rows])


def _dataset(rows: list[Row]) -> "Dataset":
    from datasets import Dataset
    from pyarrow import ArrowInvalid, ArrowTypeError

    try:
        return Dataset.from_list(rows)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise DataError(
            f"the rows have a column with values of several types ({error}); write them all as "
            "text, or all as numbers"
        ) from error


def render(tokenizer: Any, prompt: str | list[dict[str, str]]) -> str:
    """The text the model continues: the chat template over messages, plain text as it is."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def opens_thought(recipe: Recipe, rows: Rows, tokenizer: Any) -> bool:
    """Whether the rendered prompt ends inside a thought. Rows that are conversations already are
    rendered by the template, whatever `prompt.chat` says."""
    plain = isinstance(rows.train[0].get("prompt", None if recipe.prompt.chat else ""), str)
    return not plain and prefilled_by(tokenizer, tags=recipe.tags)


def fingerprint(name: str, rows: Rows) -> tuple[DataFingerprint, frozenset[str]]:
    """The fingerprint for the manifest, and the key of every problem trained on."""
    keys = sorted({prompt_key(prompt_text({"prompt": problem})) for problem in rows.problems})
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    return DataFingerprint(name=name, count=len(rows.train), sha256=digest), frozenset(keys)


def _no_longer(tokenizer: Any, rows: list[Row], longest: int) -> list[bool]:
    texts = [render(tokenizer, row["prompt"]) for row in rows]
    # In one batch: a fast tokenizer uses all cores.
    return [len(ids) <= longest for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _needed(recipe: Recipe) -> tuple[str, ...]:
    if recipe.method in NEEDED:
        return NEEDED[recipe.method]
    if recipe.method == "sft":
        return ("prompt", "gold", "steps") if recipe.cold_start else ("prompt", "completion")
    judged = any(reward.name in ("correctness", "second_opinion") for reward in recipe.rewards)
    verified = recipe.sampling is not None and recipe.sampling.verify
    return ("prompt", "gold") if judged or verified else ("prompt",)


def _supervised(recipe: Recipe, rows: list[Row], tokenizer: Any) -> "Dataset":
    """Columns `input_ids` and `labels` (-100 on the prompt).

    Tokenised here in one batch, since the loss must cover exactly what the model will generate
    after the rendered prompt, end-of-turn token included.
    """
    from datasets import Dataset

    prompts = [render(tokenizer, row["prompt"]) for row in rows]
    completions = [f"{text}{tokenizer.eos_token}" for text in _completions(recipe, rows)]
    before: Any = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    after: Any = tokenizer(completions, add_special_tokens=False)["input_ids"]
    return Dataset.from_dict(
        {
            "input_ids": [p + c for p, c in zip(before, after, strict=True)],
            "labels": [[-100] * len(p) + c for p, c in zip(before, after, strict=True)],
        }
    )


def _completions(recipe: Recipe, rows: list[Row]) -> list[str]:
    """The column `completion`; for a cold start the worked steps, or no thought, then the
    column `written` (a puzzle's gold is no answer but says how to tell one), else the gold."""
    if recipe.cold_start is None:
        return [text_of(row["completion"], recipe.tags) for row in rows]
    draw = random.Random(recipe.seed)
    tags, share = recipe.tags, recipe.cold_start.direct_share
    return [
        f"{tags.open}{'' if draw.random() < share else chr(10).join(row['steps'])}"
        f"{tags.close}{row.get('written') or row['gold']}"
        for row in rows
    ]


def _preference(row: Row) -> Row:
    """Prompt, chosen and rejected, all three as text or all three as messages."""
    pair = {side: row[side] for side in ("chosen", "rejected")}
    if "prompt" not in row:
        return pair
    if not isinstance(row["prompt"], str):
        pair = {
            side: [{"role": "assistant", "content": text}] if isinstance(text, str) else text
            for side, text in pair.items()
        }
    return {"prompt": row["prompt"], **pair}
