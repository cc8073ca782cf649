"""Problems: a prompt with a gold answer, from a generator, a JSONL file or the Hub.

Training and evaluation read problems here and only here, so "is this problem in the training set"
has one meaning: equal `prompt_key`. It does not know how answers are checked.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from thinkgate.config import Config
from thinkgate.countdown import draw_puzzle
from thinkgate.errors import DataError, MissingDependencyError
from thinkgate.records import read_records
from thinkgate.word_problems import draw_word_problem

__all__ = [
    "Arithmetic",
    "Countdown",
    "Drawn",
    "HubSet",
    "JsonlSet",
    "Problem",
    "ProblemSet",
    "SymbolicWord",
    "load",
    "messages_digest",
    "prompt_key",
    "read_rows",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its gold answer."""

    id: str
    prompt: str
    gold: str
    steps: tuple[str, ...] = ()
    """A worked solution, one step each, where the source knows one."""
    answer: str | None = None
    """What to write after the steps, where the gold is not an answer but says how to tell one."""


class Drawn(Config):
    """Problems drawn from a seed, in two halves that share none."""

    half: Literal["train", "eval"]
    """A hash of the problem itself decides its half, whatever the seeds."""
    seed: int = 0
    count: Annotated[int, Field(gt=0, le=1_000_000)] = 1000


class Arithmetic(Drawn):
    """Chains such as `7+8-6+3`."""

    source: Literal["arithmetic"]
    min_terms: Annotated[int, Field(ge=2, le=12)] = 4
    max_terms: Annotated[int, Field(ge=2, le=12)] = 6
    unique: bool = True
    """False draws with replacement, so that short chains, of which few exist, keep their share."""


class SymbolicWord(Drawn):
    """Word problems with fresh names and numbers, after GSM-Symbolic (arXiv 2410.05229)."""

    source: Literal["symbolic-word"]
    distractors: bool = False
    """Add a sentence with a number that changes nothing. The problems are otherwise the same."""


class Countdown(Drawn):
    """Make a target from numbers; the gold is the puzzle: any expression that works is right."""

    source: Literal["countdown"]
    numbers: Annotated[int, Field(ge=2, le=6)] = 4
    largest: Annotated[int, Field(ge=5, le=100)] = 25
    min_target: Annotated[int, Field(ge=1)] = 10
    max_target: Annotated[int, Field(le=100_000)] = 100


class Fields(Config):
    """Which fields of a row hold the problem."""

    prompt: str = "prompt"
    gold: str = "gold"
    id: str | None = None
    """Default: the row's number."""
    gold_after: str | None = None
    """Keep what follows this text in the gold field: GSM8K's solutions end `#### 72`."""
    wrong: tuple[str, ...] = Field(default=(), max_length=25, exclude_if=lambda value: not value)
    """Fields with wrong answers. They and the gold become lettered options below the question, in
    an order of its own for each problem, and the gold becomes its letter."""


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


ProblemSet = Annotated[
    Arithmetic | SymbolicWord | Countdown | JsonlSet | HubSet, Field(discriminator="source")
]


def prompt_key(prompt: str) -> str:
    """A short stable key of a prompt: case and runs of whitespace do not count."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).hexdigest()[:16]


def messages_digest(messages: Sequence[Mapping[str, str]]) -> str:
    """What says that a model was asked in these very words; records keep the first 16 digits."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def load(
    source: Arithmetic | SymbolicWord | Countdown | JsonlSet | HubSet,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """The problems of a set, in a fixed order; DataError when missing, malformed or empty."""
    if isinstance(source, Arithmetic):
        problems = _arithmetic(source)
    elif isinstance(source, SymbolicWord):
        problems = _half(
            source, lambda draw: _word_problem(draw, source.distractors), name=source.source
        )
    elif isinstance(source, Countdown):
        problems = _half(source, lambda draw: _puzzle(draw, source), name=source.source)
    else:
        origin = source.path if isinstance(source, JsonlSet) else source.dataset
        problems = _from_rows(read_rows(source, data_dir), source.fields, origin)
    if not problems:
        raise DataError(f"{source.source} problem set is empty")
    return problems if limit is None else problems[:limit]


def _half(
    source: Drawn,
    drawn: Callable[[random.Random], tuple[str, Problem] | None],
    *,
    name: str,
    kind: str = "problems",
    unique: bool = True,
) -> list[Problem]:
    """Draw what is in the source's half until there are enough; `drawn` gives what decides the
    half and makes two problems the same, and the problem, or None to be asked again."""
    draw = random.Random(f"{name} {source.half} {source.seed}")
    found: list[Problem] = []
    seen: set[str] = set()
    misses = 0
    while len(found) < source.count:
        one = drawn(draw)
        # One problem in eight is for evaluation.
        half = "eval" if one and int(prompt_key(one[0]), 16) % 8 == 0 else "train"
        if one is None or half != source.half or (unique and one[0] in seen):
            misses += 1
            if misses > 1000 + 100 * source.count:
                raise DataError(
                    f"only {len(found)} different {kind} exist; lower count ({source.count})"
                )
            continue
        seen.add(one[0])
        found.append(one[1])
    return found


def _arithmetic(source: Arithmetic) -> list[Problem]:
    shortest, longest = source.min_terms, source.max_terms
    if shortest > longest:
        raise DataError(f"min_terms {shortest} is larger than max_terms {longest}")

    def drawn(draw: random.Random) -> tuple[str, Problem]:
        chain, steps, value = _chain(draw, draw.randint(shortest, longest))
        return chain, Problem(prompt_key(chain), chain, str(value), tuple(steps))

    kind = f"chains of {shortest} to {longest} terms"
    return _half(source, drawn, name=source.source, kind=kind, unique=source.unique)


def _word_problem(draw: random.Random, distractors: bool) -> tuple[str, Problem]:
    made = draw_word_problem(draw, distractors)
    return made.core, Problem(prompt_key(made.core), made.prompt, made.gold, made.steps)


def _puzzle(draw: random.Random, source: Countdown) -> tuple[str, Problem] | None:
    targets = (source.min_target, source.max_target)
    made = draw_puzzle(draw, source.numbers, source.largest, targets)
    if made is None:
        return None
    puzzle = made.puzzle
    *most, last = map(str, puzzle.numbers)
    prompt = (
        f"Write an expression that equals {puzzle.target}. You may use +, -, *, / and brackets, "
        f"and each of the numbers {', '.join(most)} and {last} once at most."
    )
    core = f"{puzzle.target} {sorted(puzzle.numbers)}"
    return core, Problem(prompt_key(core), prompt, puzzle.gold(), made.steps, made.solution)


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
        wanted = [fields.prompt, fields.gold, *fields.wrong, *([fields.id] if fields.id else [])]
        missing = [name for name in wanted if row.get(name) is None]
        if missing:
            raise DataError(
                f"{origin}, row {number + 1}: no field '{missing[0]}'; it has {', '.join(row)}"
            )
        texts = [
            _text(row, name, f"{origin}, row {number + 1}")
            for name in (fields.prompt, fields.gold, *fields.wrong)
        ]
        prompt, gold, *wrong = texts
        if fields.gold_after is not None:
            _, found, gold = gold.rpartition(fields.gold_after)
            if not found:
                raise DataError(
                    f"{origin}, row {number + 1}: '{fields.gold_after}' is not in '{fields.gold}'"
                )
        identity = str(row[fields.id]) if fields.id else str(number)
        if wrong:
            prompt, gold = _with_options(prompt, gold, wrong)
        problems.append(Problem(identity, prompt, gold.strip()))
    doubled = len(problems) - len({p.id for p in problems})
    if doubled:
        raise DataError(f"{origin}: {doubled} problem ids occur more than once")
    return problems


def _with_options(question: str, gold: str, wrong: list[str]) -> tuple[str, str]:
    """The question with its answers as lettered options, and the letter of the gold.

    The order is drawn from the texts themselves, so that it is the same wherever a row stands.
    """

    def drawn(option: str) -> bytes:
        return hashlib.sha256(f"{question}\n{option}".encode()).digest()

    options = sorted((text.strip() for text in (gold, *wrong)), key=drawn)
    lines = [f"({chr(65 + n)}) {option}" for n, option in enumerate(options)]
    return "\n".join([question.strip(), "", *lines]), chr(65 + options.index(gold.strip()))


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


def read_rows(source: JsonlSet | HubSet, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a file or Hub data set as they are; DataError when they cannot be had."""
    if isinstance(source, JsonlSet):
        return _read_jsonl(Path(source.path))
    if data_dir is None:
        return _read_hub(source)
    if source.local is None:
        raise DataError(f"{source.dataset}: no local file is named for --data-dir")
    return _read_jsonl(data_dir / source.local)


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
        if "gated dataset" in reason:
            page = f"https://huggingface.co/datasets/{source.dataset}"
            raise DataError(
                f"{source.dataset} is only for those who accept its terms: do that on {page}, then "
                "log in with 'hf auth login' or set HF_TOKEN; or pass --data-dir with "
                f"{source.local or 'a local copy'}"
            ) from error
        raise DataError(
            f"{source.dataset}: cannot load it from the Hub ({reason}); pass --data-dir with "
            f"{source.local or 'a local copy'}"
        ) from error
    return [dict(row) for row in rows]
