"""What `--suite lm:NAME` means: lm-eval's tasks, loaded, checked, and as suites for our runner.

Owns names, refusals, settings and identity of tasks; importing it loads no lm-eval. Asking and
scoring is `lm_harness.py`'s; what our own suites are as tasks, `tasks/thinkgate_suite.py`'s.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from thinkgate.config import Config, apply_overrides, bundled, nearest, parse
from thinkgate.errors import ConfigError, DataError, MissingDependencyError, ThinkgateError
from thinkgate.problems import JsonlSet, Problem
from thinkgate_evals.suites import LoadedSuite, Prompt, Sampling, Suite

__all__ = [
    "PREFIX",
    "AnswerPart",
    "LmSettings",
    "LoadedTasks",
    "TaskSuite",
    "lm_names",
    "load_tasks",
    "own_suite",
    "settings_from",
    "task_suite",
    "tasks_folder",
    "until",
]

PREFIX = "thinkgate_"
"""Begins the names of our suites as lm-eval tasks."""

ROOM_TO_THINK = 4096
"""Tokens at least, where a task's own limit is meant for an answer without a thought."""


SCORING = ("metric_list", "filter_list", "process_results")
"""Keys of a task's definition that only decide what an answer is worth."""

ELSEWHERE = (
    "metadata",
    "repeats",
    "generation_kwargs",
    "custom_dataset",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
)
"""Keys that say nothing more once sampling and documents are known."""


class AnswerPart(str):
    """The answer part of a completion: it has been split, and must not be split again."""

    __slots__ = ()


class LmSampling(Config):
    """How answers are drawn; what is None is the task's own."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """A task that names none is asked with 0, as lm-eval does."""

    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """Reasoning and answer together. None: what the task gives the answer, but 4096 at least; for
    our own suites exactly the suite's."""

    thinking_budget: Annotated[int, Field(gt=0)] | None = None

    seed: int | None = None
    """Every sample gets its own seed, derived from this, the problem and the repeat. None: 0, or
    the suite's."""


class LmSettings(Config):
    """What `--set` may change about an lm-eval task."""

    sampling: LmSampling = LmSampling()
    samples: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Answers per problem; None is the task's."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    filter: str | None = None
    """Which of the task's filters decides the verdict in the records; None is its first."""

    metric: str | None = None
    """Which of its metrics does; None is the first that is 0 or 1 for every sample."""


class TaskSampling(Sampling):
    """A task's parameters as they are sent; lm-eval passes on those it does not know, so do we."""

    model_config = ConfigDict(extra="allow")

    stop: tuple[str, ...] | None = None


class Conversation(Prompt):
    """Makes the messages of a problem that is a whole conversation already, as JSON."""

    def messages(self, problem: str) -> list[dict[str, str]]:
        """The conversation."""
        return json.loads(problem)


@dataclass(frozen=True)
class TaskSuite(LoadedSuite):
    """An lm-eval task as runner and recording see it; its problems are those of one run."""

    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What decides the answers and, under `scoring`, a digest of what decides the verdicts."""

    def identity(self) -> dict[str, Any]:
        """What decides the results. Not which problems are asked: a larger `--limit` goes on."""
        sampling = self.suite.sampling.model_dump(mode="json", exclude={"stop"})
        return {"sampling": sampling, "samples": self.suite.samples, **self.facts}


@dataclass(frozen=True, slots=True)
class LoadedTasks:
    """What one name stands for: a task, or a group or tag of several."""

    name: str
    specs: Sequence[Any]
    """Task and group objects, as `simple_evaluate` takes them."""

    tasks: Mapping[str, Any]
    """Every single task in it, by name."""

    manager: Any
    """lm-eval's TaskManager that loaded them; another would read all task files again."""


def tasks_folder() -> Path:
    """Where our suites lie as lm-eval tasks: what plain lm-eval's `--include_path` wants."""
    return bundled("thinkgate_evals", "tasks", f"{PREFIX}gsm8k").parent.resolve()


def lm_names(suites: Iterable[str]) -> tuple[list[str], list[str]]:
    """The suites without and with `lm:`, the latter bare: `a,lm:b,lm:c`, or `a,lm:b,c`."""
    ours: list[str] = []
    theirs: list[str] = []
    for given in suites:
        names = [given] if given.startswith("jsonl:") else given.split(",")
        kind = ours
        for name in map(str.strip, names):
            kind = theirs if name.startswith("lm:") else kind
            kind.append(name.removeprefix("lm:") if kind is theirs else name)
    if "" in theirs:
        raise ConfigError("--suite lm: names no task; write it as lm:gsm8k")
    if "" in ours:
        raise ConfigError("--suite has an empty name; write several as gsm8k,math500")
    return ours, theirs


def settings_from(overrides: Iterable[str]) -> LmSettings:
    """What the command line sets; ConfigError for keys that only suites of ours have."""
    return parse(LmSettings, apply_overrides({}, overrides), "--set, for an lm-eval task")


def load_tasks(
    names: Sequence[str], settings: LmSettings, data_dir: Path | None
) -> list[LoadedTasks]:
    """Every named task, checked; a mistake is one sentence, before anything is asked."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError(
            f"--suite lm:{names[0]} needs lm-eval ({error.name} is not installed); "
            "pip install 'thinkgate[evals]'"
        ) from error
    files = {name: _file_of(name) for name in names}
    groups = {name: group for name in names if (group := _group_in(name))}
    manager = TaskManager(
        include_path=[tasks_folder(), *(Path(name).parent for name in groups)],
        # lm-eval parses all of its 14,000 task files to know their names: ten seconds.
        include_defaults=any(not files[name] and not name.startswith(PREFIX) for name in names),
        metadata={"data_dir": str(data_dir.absolute())} if data_dir else None,
    )
    found = [_load(manager, name, str(files[name] or groups.get(name, name))) for name in names]
    owner: dict[str, str] = {}
    for loaded in found:
        for name, task in loaded.tasks.items():
            if name in owner:
                raise ConfigError(
                    f"lm:{owner[name]} and lm:{loaded.name} both ask {name}; drop one"
                )
            owner[name] = loaded.name
            _check(loaded.name, task, settings)
    return found


def _file_of(name: str) -> Path | None:
    """The file of a single task: `name`, or lm-eval's with that name; None for a group or tag."""
    import lm_eval.tasks

    if Path(name).is_file():
        return None if _group_in(name) else Path(name)
    if name.startswith(PREFIX) or not re.fullmatch(r"[\w.-]+", name):
        return None
    line = re.compile(rb"(?m)^task:[ '\"]*%s[ '\"]*(?:#.*)?\r?$" % re.escape(name.encode()))
    shipped = Path(lm_eval.tasks.__file__).parent.rglob("*.yaml")
    found = [file for file in shipped if line.search(file.read_bytes())]
    return found[0] if len(found) == 1 else None


def _group_in(name: str) -> str | None:
    """The group that the file `name` defines, if it does; lm-eval loads a group by name only."""
    if not Path(name).is_file():
        return None
    found = re.search(r"(?m)^group\s*:[ '\"]*([^\s'\"#]+)", Path(name).read_text(encoding="utf-8"))
    return found[1] if found else None


def _load(manager: Any, name: str, spec: str) -> LoadedTasks:
    if spec not in manager.all_tasks and not Path(spec).is_file():
        hint = nearest(name, manager.all_tasks)
        hint = hint if len(hint) < 100 else "'lm_eval ls tasks' lists them"
        raise ConfigError(f"lm:{name}: no such task or file; {hint}")
    try:
        found = manager.load([spec])
    except ThinkgateError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"lm:{name} needs {error.name or error}, which is not installed; lm-eval's README "
            "names the extra that has it"
        ) from error
    except Exception as error:  # a task file may be wrong in many ways, its data out of reach
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"lm:{name} cannot be loaded: {reason}") from error
    tasks, groups = found["tasks"], found.get("groups", {})
    inner = {child for group in groups.values() for child in group.child_names}
    specs = [item for key, item in {**groups, **tasks}.items() if key not in inner]
    return LoadedTasks(name, specs, tasks, manager)


def _check(name: str, task: Any, settings: LmSettings) -> None:
    """Refuse a task that a chat endpoint cannot answer, and settings it does not know."""
    which = f"lm:{name}" if name == task.task_name else f"lm:{name} ({task.task_name})"
    if task.OUTPUT_TYPE != "generate_until":
        raise ConfigError(
            f"{which} compares probabilities of given texts ({task.OUTPUT_TYPE}), which a chat API "
            "does not tell; choose a task that generates its answer"
        )
    if task.get_config("gen_prefix"):
        raise ConfigError(
            f"{which} puts the first words of the answer into the model's mouth, which leaves no "
            "room for a thought; choose a task without gen_prefix"
        )
    if getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(
            f"{which} runs code that the model writes; use lm_eval itself, in a sandbox, with "
            "--confirm_run_unsafe_code"
        )
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError(f"{which} asks about images or sound; choose a task of text")
    _prepare_instructions(which, task)
    filters = {each.name for each in task._filters}
    if settings.filter is not None and settings.filter not in filters:
        raise ConfigError(
            f"{which} has no filter '{settings.filter}'; {nearest(settings.filter, filters)}"
        )
    if settings.samples is not None:
        task.set_config("repeats", settings.samples)


def _prepare_instructions(which: str, task: Any) -> None:
    """For IFEval and its kin: what scoring needs beside code, looked for before anything is asked,
    and the same verdicts in every run."""
    scoring = task.get_config("process_results")
    if "instructions_registry" not in getattr(scoring, "__globals__", {}):
        return
    import langdetect  # pyright: ignore[reportMissingTypeStubs]
    import nltk  # pyright: ignore[reportMissingTypeStubs]

    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise DataError(
            f"{which} counts sentences with NLTK's punkt_tab, which is not here and could not be "
            "downloaded; where there is a network run 'python -m nltk.downloader -d nltk_data "
            "punkt_tab', and set NLTK_DATA to that folder here"
        ) from error


def own_suite(task: Any) -> LoadedSuite | None:
    """The suite of ours that a task is, if it is one."""
    suite = getattr(task, "suite", None)
    return suite if isinstance(suite, LoadedSuite) else None


def task_suite(
    task: Any, requests: Sequence[Any], settings: LmSettings, *, send_stops: bool
) -> tuple[TaskSuite, dict[int, str]]:
    """What lm-eval asks of a task, and which problem each of its documents is.

    Golds of a task that is not ours are left empty: only lm-eval knows how to read them.
    """
    own = own_suite(task)
    if own is None and any(request.idx for request in requests):
        raise ConfigError(f"lm:{task.task_name} asks several things about one document")
    problems: dict[int, Problem] = {}
    for request in requests:
        doc = request.doc
        identity, gold = (doc["id"], doc["gold"]) if own else (str(request.doc_id), "")
        problems[request.doc_id] = Problem(identity, request.args[0], gold)
    [count] = set(Counter(request.doc_id for request in requests).values())
    suite = Suite(
        name=f"lm-{re.sub(r'[^a-z0-9._-]+', '-', task.task_name.lower())}"[:64],
        data=JsonlSet(source="jsonl", path=f"lm:{task.task_name}"),
        prompt=Conversation(),
        sampling=_sampling(task, settings, send_stops),
        samples=count,
    )
    documents = {number: problem.id for number, problem in problems.items()}
    return TaskSuite(suite, tuple(problems.values()), facts=_facts(task, settings)), documents


def until(task: Any) -> list[str]:
    """The strings that end an answer of the task."""
    found = (task.config.generation_kwargs or {}).get("until") or []
    return [text for text in ([found] if isinstance(found, str) else found) if text]


def _sampling(task: Any, settings: LmSettings, send_stops: bool) -> TaskSampling:
    given: dict[str, Any] = dict(task.config.generation_kwargs or {})
    for unsent in ("until", "do_sample"):  # the latter lm-eval's chat models drop too
        given.pop(unsent, None)
    limit = given.pop("max_gen_toks", None) or given.pop("max_tokens", None) or 0
    own = own_suite(task)
    limit, seed = (limit, own.suite.sampling.seed) if own else (max(limit, ROOM_TO_THINK), 0)
    values = {"temperature": 0.0, "max_tokens": limit, "seed": seed, **given}
    values |= {k: v for k, v in settings.sampling.model_dump().items() if v is not None}
    if send_stops and (stops := until(task)):
        values["stop"] = tuple(stops)
    return parse(TaskSampling, values, f"lm:{task.task_name}, generation_kwargs")


def _facts(task: Any, settings: LmSettings) -> dict[str, Any]:
    from lm_eval import __version__

    config = task.dump_config()
    scoring = {key: config.pop(key, None) for key in SCORING}
    asking = {key: value for key, value in config.items() if key not in ELSEWHERE}
    own = own_suite(task)
    return {
        "task": task.task_name,
        "lm_eval": __version__,
        "version": str(task.VERSION),
        "num_fewshot": task.get_config("num_fewshot"),
        "until": until(task),
        "definition": _digest(_as_json(asking)),
        "scoring": _digest(_as_json(scoring), str(settings.filter), str(settings.metric)),
        "documents": own.fingerprint if own else _digest(*map(_as_json, task.eval_docs)),
    }


def _as_json(value: Any) -> str:
    # Functions without source are shown with their address, which is another in each process.
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, sort_keys=True, default=str))


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()
