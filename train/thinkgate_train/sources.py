"""Where training rows come from and what is done with them before training.

A row is a mapping with the columns a method needs under one name each, whatever the source calls
them: `prompt` (text or messages), `gold`, `steps`, `completion`, `chosen`, `rejected`; columns of
any other name stay, and reach the reward functions. Does not know recipes or trainers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from thinkgate.config import Config, bundled, read_yaml
from thinkgate.contamination import every_overlap
from thinkgate.errors import DataError
from thinkgate.format import THINK
from thinkgate.problems import (
    Arithmetic,
    Countdown,
    HubSet,
    JsonlSet,
    Problem,
    ProblemSet,
    SymbolicWord,
    load,
    prompt_key,
    read_rows,
)
from thinkgate_train.toys import Posts

__all__ = [
    "Columns",
    "Curriculum",
    "Data",
    "HubRows",
    "JsonlRows",
    "Prepare",
    "Row",
    "load_rows",
    "prompt_text",
    "require_columns",
    "suite_prompts",
    "without_suites",
]

Row = dict[str, Any]


class Columns(Config):
    """What the source calls each column; one it does not have is left out."""

    prompt: str = "prompt"
    gold: str = "gold"
    gold_after: str | None = None
    """Keep what follows this text in the gold column: GSM8K's solutions end `#### 72`."""
    completion: str = "completion"
    chosen: str = "chosen"
    rejected: str = "rejected"
    messages: str = "messages"
    """A whole conversation; its last assistant turn becomes the completion."""


class JsonlRows(JsonlSet):
    """A local file with one JSON object a line."""

    fields: Columns = Columns()  # type: ignore[assignment]


class HubRows(HubSet):
    """A data set on the Hugging Face Hub, or the same rows in a local file under `--data-dir`."""

    fields: Columns = Columns()  # type: ignore[assignment]


Data = Annotated[
    Arithmetic | SymbolicWord | Countdown | Posts | JsonlRows | HubRows,
    Field(discriminator="source"),
]


class Curriculum(Config):
    """Which problems are worth training on, by how often the starting model solves them."""

    samples: Annotated[int, Field(ge=2)] = 4
    """Completions per problem that the pass rate is estimated from."""
    lowest: Annotated[float, Field(ge=0, le=1)] = 0.05
    highest: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Problems below or above are left out: all rollouts alike teach nothing."""
    easy_first: bool = False


class Prepare(Config):
    """What is done with the rows before training, in this order."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Take the first so many."""
    decontaminate: tuple[str, ...] = ()
    """Suites whose problems, and near copies of them, are removed from the training rows."""
    max_prompt_length: Annotated[int, Field(ge=1)] | None = None
    """In tokens, the chat template included; longer prompts are left out."""
    held_out: Annotated[int, Field(ge=0)] = 0
    """The last so many rows are not trained on, but measured while training."""
    curriculum: Curriculum | None = None
    dynamic_sampling: Annotated[int, Field(ge=0)] = 0
    """GRPO and RLOO: how often per step groups with equal rewards are sampled again with other
    prompts, so that the whole batch teaches something (DAPO, arXiv 2503.14476)."""


def load_rows(source: Any, data_dir: Path | None = None) -> list[Row]:
    """All rows of a source, under our column names; DataError when missing, malformed or empty."""
    if isinstance(source, Posts):
        return source.rows()
    if isinstance(source, JsonlRows | HubRows):
        origin = source.path if isinstance(source, JsonlRows) else source.dataset
        rows = [
            _named(row, source.fields, f"{origin}, row {number + 1}")
            for number, row in enumerate(read_rows(source, data_dir))
        ]
        if not rows:
            raise DataError(f"{origin}: no rows")
        return rows
    return [_worked(problem) for problem in load(source)]


def require_columns(rows: list[Row], names: tuple[str, ...], purpose: str) -> None:
    """DataError when a row lacks a column the method needs; says what it has, and the mapping."""
    for number, row in enumerate(rows):
        for name in names:
            if row.get(name) in (None, "", []):
                raise DataError(
                    f"{purpose} needs a column '{name}', and row {number + 1} has only "
                    f"{', '.join(k for k, v in row.items() if v not in (None, ''))}; name the "
                    f"column that holds it with data.fields.{name}"
                )


def prompt_text(row: Row) -> str:
    """The text that identifies a row: its prompt, of a conversation the last thing asked."""
    prompt = row.get("prompt") or row.get("chosen") or ""
    if isinstance(prompt, str):
        return prompt
    asked = [str(m["content"]) for m in prompt if m["role"] == "user"]
    return asked[-1] if asked else ""


def without_suites(
    rows: list[Row], suites: tuple[str, ...], data_dir: Path | None
) -> tuple[list[Row], int]:
    """The rows that share nothing with the suites' problems, and how many were removed."""
    benchmark = [problem for name in suites for problem in suite_prompts(name, data_dir)]
    found = {overlap.text for overlap in every_overlap(map(prompt_text, rows), benchmark)}
    return [row for number, row in enumerate(rows) if number not in found], len(found)


def suite_prompts(name: str, data_dir: Path | None) -> list[tuple[str, str]]:
    """Id and prompt of every problem of a shipped suite, or of a suite file."""
    from pydantic import TypeAdapter

    described: Mapping[str, Any] = read_yaml(bundled("thinkgate_evals", "suites", name))
    data: Any = TypeAdapter(ProblemSet).validate_python(described["data"])
    return [(f"{name}/{p.id}", p.prompt) for p in load(data, data_dir=data_dir)]


def _worked(problem: Problem) -> Row:
    """A generated problem with its worked solution, and a bare wrong answer beside it, so that
    toys of every method can start from it."""
    row: Row = {"prompt": problem.prompt, "gold": problem.gold, "steps": list(problem.steps)}
    if not problem.steps:
        return row
    answer = row["written"] = problem.answer or problem.gold
    chosen = row["completion"] = f"{THINK.open}{chr(10).join(problem.steps)}{THINK.close}{answer}"
    if answer.lstrip("-").isdecimal():
        off_by = 1 + int(prompt_key(problem.prompt), 16) % 3  # the same in every run
        row |= {"chosen": chosen, "rejected": f"{THINK.open}{THINK.close}{int(answer) + off_by}"}
    return row


def _named(row: Mapping[str, Any], columns: Columns, where: str) -> Row:
    """The row with our names; everything else stays under its own."""
    names = {
        getattr(columns, ours): ours
        for ours in ("prompt", "gold", "completion", "chosen", "rejected", "messages")
    }
    named = {names.get(theirs, theirs): value for theirs, value in row.items()}
    if columns.gold_after is not None and named.get("gold") is not None:
        _, found, gold = str(named["gold"]).rpartition(columns.gold_after)
        if not found:
            raise DataError(f"{where}: '{columns.gold_after}' is not in '{named['gold']}'")
        named["gold"] = gold.strip()
    turns = named.pop("messages", None)
    if turns and "completion" not in named:
        if not _is_conversation(turns) or turns[-1]["role"] != "assistant":
            raise DataError(f"{where}: '{columns.messages}' must end with an assistant turn")
        named["prompt"], named["completion"] = turns[:-1], turns[-1:]
    for ours in ("prompt", "completion", "chosen", "rejected"):
        value = named.get(ours)
        if value and not isinstance(value, str) and not _is_conversation(value):
            raise DataError(
                f"{where}: '{getattr(columns, ours)}' is {str(value)[:60]}; it must be text, or a "
                "list of messages that each have a 'role' and a 'content'"
            )
    if isinstance(named.get("gold"), list | Mapping):
        raise DataError(
            f"{where}: '{columns.gold}' is {str(named['gold'])[:60]}; it must be text or a number"
        )
    return named


def _is_conversation(value: Any) -> bool:
    """Messages as chat templates take them; a tool call has no content."""
    return isinstance(value, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn
        for turn in value
    )
