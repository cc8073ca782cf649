"""What TRL hands a reward function and takes back, and functions of the user's own.

Owns reading prompts and completions in TRL's shapes, finding `module:function`, and checking what
it returns. Does not know which rewards ship (`rewards.py`).
"""

import asyncio
import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from thinkgate.config import Config, nearest, parse
from thinkgate.errors import ConfigError, ThinkgateError, TrainingError
from thinkgate.format import THINK, Split, Tags

__all__ = [
    "TRL_ARGUMENTS",
    "RewardFunction",
    "Splitter",
    "column",
    "judged_part",
    "last_question",
    "tags_of",
    "text_of",
    "user_reward",
]

Splitter = Callable[[str], Split]
"""`thinkgate.format.split` with the run's tags and prefill bound."""

RewardFunction = Callable[..., list[float | None]]
"""TRL's signature: keyword arguments `prompts`, `completions`, `completion_ids`, data columns,
`log_metric`; one value each, None where it could not be measured."""

TRL_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
    | {"environments"}
)
"""What TRL passes beside the columns of the data; a column of such a name it cannot pass."""
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")


def text_of(completion: Any, tags: Tags = THINK) -> str:
    """What the model wrote: a string as it is, or its own turns of a list of messages.

    Where a tokenizer's response template made TRL take the thought apart already, it is put back
    between `tags`: without it, every reward would see an answer that no thought came before.
    """
    if isinstance(completion, str):
        return completion
    turns = [m for m in completion if m.get("role", "assistant") == "assistant"]
    return "".join(_turn(message, tags) for message in turns)


def last_question(prompt: Any) -> str:
    """The text of a prompt, or of the last user message in a conversation."""
    if isinstance(prompt, str):
        return prompt
    asked = [m for m in prompt if m.get("role") == "user"] or list(prompt)[-1:]
    return _content(asked[-1]) if asked else ""


def tags_of(splitter: Splitter) -> Tags:
    """The tag pair bound in `splitter`."""
    bound = inspect.signature(splitter).parameters.get("tags")
    return bound.default if bound is not None and isinstance(bound.default, Tags) else THINK


def judged_part(splitter: Splitter, on: str) -> Callable[[Any], str | None]:
    """What of a completion is judged; None where there is no answer."""
    tags = tags_of(splitter)
    if on == "completion":
        return lambda completion: text_of(completion, tags)
    return lambda completion: splitter(text_of(completion, tags)).answer


def column(name: str, reward: str, columns: Mapping[str, Any]) -> Sequence[Any]:
    """The data's column `name`, which `reward` cannot do without."""
    if name not in columns:
        raise TrainingError(
            f"reward '{reward}' needs the column '{name}', which the data does not have "
            f"({_columns_in(columns)}); name it under data.fields, or take the reward out"
        )
    return columns[name]


class UserArguments(Config):
    """What `args` of a `module:function` reward means to us; other keys go to the function."""

    completions: Literal["text", "messages"] = "text"
    """The shape of completions and prompts. Text, as the tutorials' `len(c)` and `re.search` want,
    also where the data are conversations; prompts are then the last user message."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Other names the function uses for columns of the data: `{answers: gold}`."""


def user_reward(reference: str, args: Mapping[str, Any], tags: Tags = THINK) -> RewardFunction:
    """The function named by `module:function` or `path/to/file.py:function`, made safe to call.

    It may be async, take only some of what TRL passes, and return NumPy or torch numbers. NaN
    becomes None and is logged as `<function>/nan`, the share of the batch. What it raises ends the
    run: nobody can tell a bug from a completion that could not be measured.
    """
    function = _find(reference)
    own = {key: value for key, value in args.items() if key in UserArguments.model_fields}
    options = parse(UserArguments, own, f"reward '{reference}'")
    bound = {key: value for key, value in args.items() if key not in own}
    accepted, required = _parameters(function)
    for key in bound:
        if accepted is not None and key not in accepted:
            known = accepted - TRL_ARGUMENTS | UserArguments.model_fields.keys()
            raise ConfigError(
                f"reward '{reference}': unknown argument '{key}'; {nearest(key, known)}"
            )
    call = _Call(reference, function)
    name = getattr(function, "__name__", type(function).__name__)

    def reward(
        completions: Sequence[Any], prompts: Sequence[Any] = (), **columns: Any
    ) -> list[float | None]:
        if options.completions == "text":
            prompts = [last_question(prompt) for prompt in prompts]
            completions = [text_of(completion, tags) for completion in completions]
        passed = {"prompts": prompts, "completions": completions, **columns}
        for theirs, ours in options.columns.items():
            passed[theirs] = column(ours, reference, columns)
        passed |= bound
        if missing := required - passed.keys():
            names = " and ".join(f"'{m}'" for m in sorted(missing))
            raise TrainingError(
                f"reward '{reference}' takes {names}, which the data does not have "
                f"({_columns_in(columns)}); say which column it is in the reward's args, for "
                f"example columns: {{{min(missing)}: gold}}"
            )
        if accepted is not None:
            passed = {key: value for key, value in passed.items() if key in accepted}
        values = call(passed, len(completions))
        nan = [value is not None and math.isnan(value) for value in values]
        if "log_metric" in columns and values:
            columns["log_metric"](f"{name}/nan", sum(nan) / len(nan))
        return [None if bad else value for value, bad in zip(values, nan, strict=True)]

    reward.__name__ = name
    return reward


class _Call:
    """Calls the user's function; what goes wrong inside is a TrainingError that says where."""

    def __init__(self, reference: str, function: Callable[..., Any]) -> None:
        self._reference = reference
        self._function = function
        # One loop for the whole run: clients that the function keeps are bound to theirs.
        self._runner = asyncio.Runner()
        atexit.register(self._runner.close)

    def __call__(self, passed: dict[str, Any], count: int) -> list[float | None]:
        try:
            result = self._function(**passed)
            if inspect.isawaitable(result):
                result = self._runner.run(_awaited(result))
            if hasattr(result, "tolist"):
                result = result.tolist()
            if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
                raise self._returned(f"{_shown(result)}, which is no list of rewards")
            values = list(result)
        except ThinkgateError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainingError(
                f"reward '{self._reference}' raised {type(error).__name__}: {reason} "
                f"({_where(error, self._function)}); mend it, or let it return None for what it "
                "cannot measure"
            ) from error
        if len(values) != count:
            raise self._returned(f"{len(values)} values for {count} completions")
        return [self._number(value) for value in values]

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        if hasattr(value, "item"):  # a NumPy or torch number; more than one raises
            with contextlib.suppress(ValueError, RuntimeError):
                value = value.item()
        if not isinstance(value, Real):
            raise self._returned(f"{_shown(value)} among the rewards, which is no number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            raise self._returned(f"{_shown(value)} among the rewards, with which no mean is finite")
        return number

    def _returned(self, what: str) -> TrainingError:
        return TrainingError(
            f"reward '{self._reference}' returned {what}; it must return one number, or None, "
            "for each completion"
        )


def _find(reference: str) -> Callable[..., Any]:
    """Import what `reference` names; the working folder counts as a place to import from."""
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise ConfigError(
            f"reward '{reference}': write it as module:function or path/to/file.py:function"
        )
    module = _load_file(reference, where) if where.endswith(".py") else _load(reference, where)
    try:
        function = reduce(getattr, name.split("."), module)
    except AttributeError as error:
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"reward '{reference}': {where} has no '{name}'; {nearest(name, functions)}"
        ) from error
    if not callable(function):
        kind = type(function).__name__
        raise ConfigError(f"reward '{reference}': '{name}' is {kind}, not a function")
    return function


def _load(reference: str, name: str) -> ModuleType:
    _allow_imports_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Ours is missing, or the first half of its dotted name; not something it imports itself.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _broken(reference, error) from error
        raise ConfigError(
            f"reward '{reference}': there is no module '{error.name}'; install it, run from the "
            "folder it is in, or name its file: path/to/file.py:function"
        ) from error
    except (Exception, SystemExit) as error:
        raise _broken(reference, error) from error


def _load_file(reference: str, path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"reward '{reference}': no such file {file}")
    # Two functions of one file share its module and what it loads; an edited file is a new one.
    identity = f"{file}\0{file.stat().st_mtime_ns}\0{file.stat().st_size}"
    name = f"thinkgate_user_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    _allow_imports_from(file.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _broken(reference, error) from error
    return module


def _allow_imports_from(folder: Path) -> None:
    # Last, so that a file named like an installed package does not replace it.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _broken(reference: str, error: BaseException) -> ConfigError:
    reason = " ".join(str(error).split())[:300]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    # A syntax error names its own line; its traceback ends in the import machinery.
    at = "" if isinstance(error, SyntaxError) else f" ({_line(frame)})"
    return ConfigError(
        f"reward '{reference}': importing it raised {type(error).__name__}: {reason}{at}"
    )


def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str] | None, frozenset[str]]:
    """Names that may be passed (None: any) and names that must be."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in callables do not tell
        return None, frozenset()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = frozenset(p.name for p in named if p.default is p.empty)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None, required
    return frozenset(p.name for p in named), required


def _where(error: Exception, function: Callable[..., Any]) -> str:
    """File and line of the user's own code that `error` came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    frame = (own or frames)[-1]
    return _line(frame)


def _line(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name} line {frame.lineno}"


async def _awaited(result: Any) -> Any:
    return await result


def _columns_in(columns: Mapping[str, Any]) -> str:
    names = sorted(columns.keys() - TRL_ARGUMENTS)
    return f"its columns: {', '.join(names)}" if names else "it has no columns but the prompt"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _turn(message: Mapping[str, Any], tags: Tags) -> str:
    content = _content(message)
    thought = next((message[key] for key in THOUGHT_KEYS if message.get(key)), None)
    if thought is None:
        return content
    # Nothing after the thought most likely means that it was cut.
    return f"{tags.open}{thought}{tags.close}{content}" if content else f"{tags.open}{thought}"


def _content(message: Mapping[str, Any]) -> str:
    """Text of a message; the text parts where the content is a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""
