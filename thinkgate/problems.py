"""Problems: a prompt with a gold answer, from a generator, a JSONL file or the Hub.

Training and evaluation read problems here and only here, so "is this problem in the training set"
has one meaning: equal `prompt_key`. It does not know how answers are checked.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from thinkgate.config import Config
from thinkgate.errors import DataError, MissingDependencyError
from thinkgate.records import read_records

__all__ = ["Arithmetic", "HubSet", "JsonlSet", "Problem", "ProblemSet", "load", "prompt_key"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its gold answer."""

    id: str
    prompt: str
    gold: str
    steps: tuple[str, ...] = ()
    """A worked solution, one step each, where the source knows one."""


class Arithmetic(Config):
    """Chains such as `7+8-6+3`, drawn from a seed. No chain is ever in both halves."""

    source: Literal["arithmetic"]
    half: Literal["train", "eval"]
    """A hash of the chain itself decides its half, whatever the seeds."""
    seed: int = 0
    count: Annotated[int, Field(gt=0, le=1_000_000)] = 1000
    min_terms: Annotated[int, Field(ge=2, le=12)] = 4
    max_terms: Annotated[int, Field(ge=2, le=12)] = 6
    unique: bool = True
    """False draws with replacement, so that short chains, of which few exist, keep their share."""


class Fields(Config):
    """Which fields of a row hold the problem."""

    prompt: str = "prompt"
    gold: str = "gold"
    id: str | None = None
    """Default: the row's number."""
    gold_after: str | None = None
    """Keep what follows this text in the gold field: GSM8K's solutions end `#### 72`."""


class JsonlSet(Config):
    """A local file with one JSON object a line."""

    source: Literal["jsonl"]
    path: str
    fields: Fields = Fields()


class HubSet(Config):
    """A data set on the Hugging Face Hub, or the same rows in a local file under `--data-dir`."""

    source: Literal["hub"]
    dataset: str
    subset: str | None = None
    split: str
    revision: str | None = None
    fields: Fields = Fields()
    local: str | None = None
    """File name looked for under `--data-dir`."""


ProblemSet = Annotated[Arithmetic | JsonlSet | HubSet, Field(discriminator="source")]


def prompt_key(prompt: str) -> str:
    """A short stable key of a prompt: case and runs of whitespace do not count."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).hexdigest()[:16]


def load(
    source: Arithmetic | JsonlSet | HubSet,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """The problems of a set, in a fixed order; DataError when missing, malformed or empty."""
    if isinstance(source, Arithmetic):
        problems = _arithmetic(source)
    elif isinstance(source, JsonlSet):
        problems = _from_rows(_read_jsonl(Path(source.path)), source.fields, source.path)
    elif data_dir is not None:
        if source.local is None:
            raise DataError(f"{source.dataset}: this suite names no local file for --data-dir")
        path = data_dir / source.local
        problems = _from_rows(_read_jsonl(path), source.fields, str(path))
    else:
        problems = _from_rows(_read_hub(source), source.fields, source.dataset)
    if not problems:
        raise DataError(f"{source.source} problem set is empty")
    return problems if limit is None else problems[:limit]


def _arithmetic(source: Arithmetic) -> list[Problem]:
    if source.min_terms > source.max_terms:
        raise DataError(f"min_terms {source.min_terms} is larger than max_terms {source.max_terms}")
    draw = random.Random(f"arithmetic {source.half} {source.seed}")
    found: list[Problem] = []
    drawn: set[str] = set()
    misses = 0
    while len(found) < source.count:
        chain, steps, value = _chain(draw, draw.randint(source.min_terms, source.max_terms))
        # One chain in eight is for evaluation.
        half = "eval" if int(prompt_key(chain), 16) % 8 == 0 else "train"
        if half != source.half or (source.unique and chain in drawn):
            misses += 1
            if misses > 1000 + 100 * source.count:
                raise DataError(
                    f"only {len(found)} different chains of {source.min_terms} to "
                    f"{source.max_terms} terms exist; lower count ({source.count})"
                )
            continue
        drawn.add(chain)
        found.append(Problem(prompt_key(chain), chain, str(value), tuple(steps)))
    return found


def _chain(draw: random.Random, terms: int) -> tuple[str, list[str], int]:
    """A chain of one-digit terms whose running value never goes below zero."""
    value = draw.randint(1, 9)
    text, steps = str(value), list[str]()
    for _ in range(terms - 1):
        term = draw.randint(1, 9)
        sign = "+" if value < term or draw.random() < 0.5 else "-"
        after = value + term if sign == "+" else value - term
        steps.append(f"{value}{sign}{term}={after}")
        text += f"{sign}{term}"
        value = after
    return text, steps, value


def _from_rows(rows: list[dict[str, Any]], fields: Fields, origin: str) -> list[Problem]:
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        wanted = [fields.prompt, fields.gold, *([fields.id] if fields.id else [])]
        missing = [name for name in wanted if row.get(name) is None]
        if missing:
            raise DataError(
                f"{origin}, row {number + 1}: no field '{missing[0]}'; it has {', '.join(row)}"
            )
        prompt, gold = (_text(row, name, f"{origin}, row {number + 1}") for name in wanted[:2])
        if fields.gold_after is not None:
            _, found, gold = gold.rpartition(fields.gold_after)
            if not found:
                raise DataError(
                    f"{origin}, row {number + 1}: '{fields.gold_after}' is not in '{fields.gold}'"
                )
        identity = str(row[fields.id]) if fields.id else str(number)
        problems.append(Problem(identity, prompt, gold.strip()))
    doubled = len(problems) - len({p.id for p in problems})
    if doubled:
        raise DataError(f"{origin}: {doubled} problem ids occur more than once")
    return problems


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A field as text. Lists, objects and lone surrogates cannot be asked or compared."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: '{name}' is {type(value).__name__}, not a text or a number")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: '{name}' holds a lone surrogate, which is not text") from error
    return text


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return [row for _, row in read_records(path)]


def _read_hub(source: HubSet) -> list[dict[str, Any]]:
    try:
        import datasets  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError(
            "reading a Hub data set needs 'datasets'; pip install 'thinkgate[train]'"
        ) from error
    try:
        rows: Any = datasets.load_dataset(  # pyright: ignore[reportUnknownMemberType]
            source.dataset, source.subset, split=source.split, revision=source.revision
        )
    except Exception as error:  # the Hub client raises many kinds; all mean "not to be had"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{source.dataset}: cannot load it from the Hub ({reason}); pass --data-dir with "
            f"{source.local or 'a local copy'}"
        ) from error
    return [dict(row) for row in rows]
