"""lm-eval in this process: it makes the prompts, filters and scores; our runner asks.

Owns what lies between the two. lm-eval gets the answer part of each completion and nothing else.
Because the runner asks, every sample has a seed of its own, is written down as it finishes and is
asked once; a request that fails costs one sample, which is left out of lm-eval's numbers as of
ours. lm-eval's HTTP client and its cache are not used.

    lm-gsm8k.jsonl          records; the verdict is what lm-eval's metric says
    lm-gsm8k.lm_eval.json   lm-eval's numbers, standard errors, versions and per-sample log
    lm_eval.log             what lm-eval printed
"""

import json
import os
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict
from thinkgate.checkpoint import write_atomic
from thinkgate.console import console
from thinkgate.errors import ConfigError, DataError, ThinkgateError, explain_os_error
from thinkgate_evals.lm_scores import LmMeasurement, cells, scores_in, write_log
from thinkgate_evals.lm_tasks import (
    AnswerPart,
    LmSettings,
    LoadedTasks,
    TaskSuite,
    load_tasks,
    own_suite,
    settings_from,
    task_suite,
    until,
)
from thinkgate_evals.measure import Options
from thinkgate_evals.metrics import summarise
from thinkgate_evals.records import Header, Record, Recording, read_records, set_aside
from thinkgate_evals.runner import Endpoint, missing, run
from thinkgate_evals.suites import changed_keys

__all__ = ["LmPlan", "plan"]

NO_MATCH = "[invalid]"
"""What lm-eval's filters say when they find nothing."""


@dataclass(frozen=True, slots=True)
class LmPlan:
    """The lm-eval tasks that are to be measured, loaded and checked."""

    tasks: Sequence[LoadedTasks]
    settings: LmSettings

    def measure(
        self,
        options: Options,
        *,
        model: str,
        folder: Path,
        endpoint: Callable[[], Endpoint],
        ours: bool,
    ) -> list[LmMeasurement]:
        """Ask what is missing, let lm-eval score all of it, and keep both.

        `endpoint` is called only if something is missing. `ours` says that it is a thinkgate
        server, which applies stop strings to the answer alone; others are not sent any.
        """
        target = _Target(model, folder, endpoint, ours)
        return [m for tasks in self.tasks for m in _measure(tasks, self.settings, options, target)]


def plan(names: Sequence[str], overrides: Iterable[str], data_dir: Path | None) -> LmPlan:
    """What `--suite lm:…` names, with `--set` applied; mistakes are found here, not midway."""
    if not names:
        return LmPlan((), LmSettings())
    settings = settings_from(overrides)
    return LmPlan(load_tasks(names, settings, data_dir), settings)


@dataclass(frozen=True, slots=True)
class _Target:
    model: str
    folder: Path
    endpoint: Callable[[], Endpoint]
    ours: bool


class _Rejudged(Recording):
    """A recording whose answers stay when only the scoring of its task changes.

    Their verdicts do not: what is not judged anew in this run is left without one.
    """

    def _match(self, found: Header) -> None:
        if changed_keys(found.identity, self.header.identity) == ["scoring"]:
            records = [_unjudged(record) for record in read_records(self.path)]
            write_atomic(self.path, _lines(records))
            ours = {"identity": self.header.identity, "fingerprint": self.header.fingerprint}
            super()._match(found.model_copy(update=ours))
            self._write_header()
        else:
            super()._match(found)


def _unjudged(record: Record) -> Record:
    return record if record.error else record.model_copy(update={"verdict": Verdict.BAD_GOLD})


def _lines(records: Iterable[Record]) -> str:
    return "".join(f"{record.model_dump_json()}\n" for record in records)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One task: its answers as they are recorded, and how lm-eval's documents name them."""

    task: Any
    suite: TaskSuite
    recording: Recording
    documents: Mapping[int, str]
    """lm-eval's number of a document -> problem id."""

    def sample(self, document: int, repeat: int) -> Record:
        """The sample that answers lm-eval's `repeat`-th request about a document."""
        return self.recording.done[self.documents[document], repeat]

    def samples(self, instance: Any) -> list[Record]:
        """All samples that answer one of lm-eval's instances."""
        count = len(instance.resps)
        return [self.sample(instance.doc_id, instance.idx * count + n) for n in range(count)]

    def text(self, record: Record) -> str:
        """What lm-eval sees of a sample: the answer, up to a stop string."""
        from lm_eval.models.utils import postprocess_generated_text

        answer = record.answer or ""
        if own_suite(self.task):
            return AnswerPart(answer)
        return postprocess_generated_text(answer, until(self.task), None)

    def logged(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a line of lm-eval's sample log."""
        return {
            "problem_id": self.documents[row["doc_id"]],
            "filter": row["filter"],
            "filtered": [item.value for item in row["filtered_resps"]],
            "metrics": {metric: row[metric] for metric in row["metrics"]},
        }


class _Fate(Enum):
    """What became of the samples behind one of lm-eval's instances."""

    ANSWERED = auto()
    TRUNCATED = auto()
    """No thought among them ended, so there is no answer to score."""

    FAILED = auto()
    """A request failed, so the instance is not measured."""


@dataclass(frozen=True, slots=True)
class _Filtered:
    """What a filter made of an instance's answers."""

    value: Any
    fate: _Fate


@dataclass(frozen=True, slots=True)
class _Judge:
    """What decides a verdict: one metric on what one filter lets through."""

    filter: str
    metric: str
    single: Mapping[int, tuple[Any, Any]]
    """By document, where it has one sample: what the filter found, and the metric's value."""


def _measure(
    tasks: LoadedTasks, settings: LmSettings, options: Options, target: _Target
) -> list[LmMeasurement]:
    with ExitStack() as stack:
        session = _Session(tasks, settings, options, target, stack)
        results = session.evaluate()
        measured = [session.finish(name, results) for name in tasks.tasks]
    for group, numbers in results.get("groups", {}).items():
        for score in scores_in(numbers):
            console.print(f"lm:{group}", *cells(score), markup=False)
    return measured


class _Session:
    """One `simple_evaluate`: answers its requests, then reads its verdicts."""

    def __init__(
        self,
        tasks: LoadedTasks,
        settings: LmSettings,
        options: Options,
        target: _Target,
        stack: ExitStack,
    ) -> None:
        self._tasks = tasks
        self._settings = settings
        self._options = options
        self._target = target
        self._stack = stack
        self._asked: dict[str, _Asked] = {}
        self._score = {name: task.process_results for name, task in tasks.tasks.items()}

    def evaluate(self) -> dict[str, Any]:
        """lm-eval's results; DataError when it, or the task's own code, fails."""
        from lm_eval.evaluator import simple_evaluate

        for name, task in self._tasks.tasks.items():
            self._guard(name, task)
        self._target.folder.mkdir(parents=True, exist_ok=True)
        log = self._target.folder / "lm_eval.log"
        try:
            with _printing_to(log):
                results: Any = simple_evaluate(
                    model=_chat_model(self._answer),
                    tasks=list(self._tasks.specs),
                    task_manager=self._tasks.manager,
                    num_fewshot=self._settings.num_fewshot,
                    limit=self._options.limit,
                    apply_chat_template=True,
                    fewshot_as_multiturn=True,
                    torch_random_seed=None,  # pyright: ignore[reportArgumentType]
                )
        except ThinkgateError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and explain_os_error(error):
                raise  # a full disk and the like: named where the files are
            raise DataError(
                f"lm:{self._tasks.name}: lm-eval failed ({type(error).__name__}: {error}); the "
                f"answers are kept in {self._target.folder}, the traceback in {log.name} there"
            ) from error
        return results

    def finish(self, name: str, results: Mapping[str, Any]) -> LmMeasurement:
        """Put lm-eval's verdicts into the records of a task, and its numbers beside them."""
        asked = self._asked[name]
        recording, path = asked.recording, asked.recording.path
        judge = self._judge(asked, results["samples"][name])
        planned = [
            self._judged(asked, judge, instance, record)
            for instance in asked.task.instances
            for record in asked.samples(instance)
        ]
        done = recording.done | {record.key: record for record in planned}
        write_atomic(path, _lines(done.values()))
        samples = [asked.logged(row) for row in results["samples"][name]]
        write_log(path.with_suffix(".lm_eval.json"), name, results, samples)
        return LmMeasurement(
            loaded=asked.suite,
            model=recording.header.model,
            fingerprint=recording.header.fingerprint,
            records=tuple(planned),
            summary=summarise(planned, recording.header.sessions),
            path=path,
            scores=tuple(scores_in(results["results"][name])),
        )

    def _answer(self, requests: Sequence[Any]) -> list[str]:
        """The answer part for each request; a document that occurs again is a further repeat."""
        by_task: defaultdict[str, list[Any]] = defaultdict(list)
        for request in requests:
            by_task[request.task_name].append(request)
        for name, own in by_task.items():
            self._asked[name] = self._open(self._tasks.tasks[name], own)
        for asked in self._asked.values():
            if missing(asked.recording, asked.suite, None):
                run(self._endpoint, asked.suite, asked.recording, None)
        seen: Counter[tuple[str, int]] = Counter()
        texts: list[str] = []
        for request in requests:
            asked, key = self._asked[request.task_name], (request.task_name, request.doc_id)
            texts.append(asked.text(asked.sample(request.doc_id, seen[key])))
            seen[key] += 1
        return texts

    @cached_property
    def _endpoint(self) -> Endpoint:
        return self._options.applied_to(self._target.endpoint())

    def _open(self, task: Any, requests: Sequence[Any]) -> _Asked:
        suite, documents = task_suite(task, requests, self._settings, send_stops=self._target.ours)
        path = self._target.folder / f"{suite.name}.jsonl"
        if self._options.fresh:
            set_aside(path)
        recording = self._stack.enter_context(_Rejudged(path, suite, self._target.model))
        return _Asked(task, suite, recording, documents)

    def _guard(self, name: str, task: Any) -> None:
        """Keep failed samples out of a task's numbers, and missing answers from earning credit."""
        filter_all, score = task.apply_filters, task.process_results

        def apply_filters() -> None:
            filter_all()
            for instance in task.instances:
                fate = _fate(self._asked[name].samples(instance))
                instance.filtered_resps = {
                    key: _Filtered(value, fate) for key, value in instance.filtered_resps.items()
                }

        def process_results(doc: Any, filtered: Sequence[_Filtered]) -> dict[str, Any]:
            measured = [item for item in filtered if item.fate is not _Fate.FAILED]
            if not measured:
                return {}  # lm-eval leaves a document out of the metrics it has no value for
            scores: dict[str, Any] = score(doc, [item.value for item in measured])
            if any(item.fate is _Fate.ANSWERED for item in measured):
                return scores
            better = task.higher_is_better()
            return {k: _no_credit(v) if better.get(k, True) else v for k, v in scores.items()}

        task.apply_filters, task.process_results = apply_filters, process_results

    def _judge(self, asked: _Asked, rows: Sequence[Mapping[str, Any]]) -> _Judge | None:
        """The first metric that is 0 or 1 for every document, or the one that was asked for."""
        chosen = self._settings.filter or rows[0]["filter"]
        rows = [row for row in rows if row["filter"] == chosen and row["metrics"]]
        better = asked.task.higher_is_better()
        names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
        plain = [
            name
            for name in names
            if better.get(name, True) and all(row.get(name) in (0, 1) for row in rows)
        ]
        wanted = self._settings.metric
        if wanted is not None and rows and wanted not in plain:
            raise ConfigError(
                f"lm:{asked.task.task_name}: metric '{wanted}' says of no sample that it is right "
                f"or wrong; such metrics here: {', '.join(plain) or 'none'}; the answers are kept"
            )
        if not plain:
            return None
        metric = wanted or plain[0]
        found = {row["doc_id"]: (row["filtered_resps"][0].value, row[metric]) for row in rows}
        return _Judge(chosen, metric, found)

    def _judged(self, asked: _Asked, judge: _Judge | None, instance: Any, record: Record) -> Record:
        """The record with the verdict of lm-eval's metric; that of a suite of ours has ours."""
        if own_suite(asked.task):
            return record.model_copy(update={"prompt": instance.doc["prompt"]})
        gold = str(asked.task.doc_to_target(instance.doc))
        prompt = json.loads(instance.args[0])[-1]["content"]
        asked_for = {"gold": gold, "prompt": prompt}
        if record.error is not None:
            return record.model_copy(update=asked_for)
        if record.answer is None:
            return record.model_copy(update=asked_for | {"verdict": Verdict.NO_ANSWER})
        if judge is None:
            return record.model_copy(update=asked_for | {"verdict": Verdict.BAD_GOLD})
        if len(instance.resps) == 1:
            found, value = judge.single[instance.doc_id]
        else:
            found, value = self._alone(asked, judge, instance, record)
        extracted = found if isinstance(found, str) and found != NO_MATCH else None
        missed = (
            Verdict.NO_ANSWER if found == NO_MATCH or not record.answer.strip() else Verdict.WRONG
        )
        verdict = Verdict.CORRECT if value else missed
        return record.model_copy(update=asked_for | {"verdict": verdict, "extracted": extracted})

    def _alone(
        self, asked: _Asked, judge: _Judge, instance: Any, record: Record
    ) -> tuple[Any, Any]:
        """What filter and metric say of one of several samples: lm-eval itself takes the first, or
        lets them vote."""
        single = replace(instance, resps=[asked.text(record)], filtered_resps={})
        [ensemble] = [each for each in asked.task._filters if each.name == judge.filter]
        ensemble.apply([single])
        found = single.filtered_resps[judge.filter]
        return found, self._score[asked.task.task_name](instance.doc, [found])[judge.metric]


def _chat_model(answer: Callable[[Sequence[Any]], list[str]]) -> Any:
    """lm-eval's model interface around `answer`; a conversation is its prompt, as JSON."""
    from lm_eval.api.model import LM

    class ChatModel(LM):
        @property
        def tokenizer_name(self) -> str:
            return ""

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            assert add_generation_prompt  # tasks that begin the answer are refused
            return json.dumps(chat_history, ensure_ascii=False)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return answer(requests)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise AssertionError("tasks that need probabilities are refused")

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise AssertionError("tasks that need probabilities are refused")

    return ChatModel()


@contextmanager
def _printing_to(log: Path) -> Generator[None]:
    """Send stderr to a file: lm-eval's bars and warnings, and what git says to it where there is
    no repository."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
            os.dup2(file.fileno(), 2)
            try:
                yield
            except Exception:
                traceback.print_exc()
                raise
            finally:
                file.flush()
                os.dup2(terminal, 2)
    finally:
        os.close(terminal)


def _fate(samples: Sequence[Record]) -> _Fate:
    if any(sample.error is not None for sample in samples):
        return _Fate.FAILED
    answered = any(sample.answer is not None for sample in samples)
    return _Fate.ANSWERED if answered else _Fate.TRUNCATED


def _no_credit(value: Any) -> Any:
    """What a metric is worth where there is no answer, whatever it says about an empty one."""
    if isinstance(value, list):
        return [_no_credit(each) for each in value]
    return 0.0 if isinstance(value, bool | int | float) else value
