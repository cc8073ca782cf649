"""Getting a suite measured, whoever asks: `thinkgate eval` and `thinkgate gate` both come here.

Owns where a checkpoint's records lie, starting a server only if something is missing, and the
rule that records of another suite, other problems or other weights are never used. What the
numbers mean is for `metrics.py` and `gate.py`.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from thinkgate.answers import Verdict, check_many
from thinkgate.checkpoint import MANIFEST, META, Checkpoint, load_checkpoint, read_manifest
from thinkgate.console import warn
from thinkgate.errors import (
    ConfigError,
    DataError,
    EndpointError,
    explain_os_error,
)
from thinkgate.provenance import SIGNATURE
from thinkgate.registry import Registry
from thinkgate_evals.metrics import Summary, summarise
from thinkgate_evals.records import Record, Recording, set_aside
from thinkgate_evals.runner import Endpoint, missing, run
from thinkgate_evals.second_grader import Grader, grade_again
from thinkgate_evals.suites import LoadedSuite

__all__ = [
    "RUNS",
    "Measurement",
    "Options",
    "find_checkpoint",
    "graded_again",
    "measure_checkpoint",
    "measure_endpoint",
    "naming_files",
    "records_folder",
    "require_outside_checkpoints",
    "serving",
]


RUNS = Path("runs/evals")
"""Records of models that have no folder here that could hold them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure; nothing here changes what a sample is worth."""

    limit: int | None = None
    """Ask only the first this many problems of each suite."""

    concurrency: int = 64
    timeout: float = 600.0
    """Seconds one request may take."""

    fresh: bool = False
    """Set recorded samples aside and measure again, without looking into the cache."""

    second_grader: Grader | None = None
    """Let this one grade every answer too."""

    cache: Path | None = None
    """Keep answers in this file, and take them from it."""

    def applied_to(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, asked as these options say."""
        return replace(
            endpoint,
            concurrency=self.concurrency,
            timeout=self.timeout,
            cache=self.cache,
            read_cache=not self.fresh,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All planned samples of one suite for one model."""

    loaded: LoadedSuite
    model: str
    fingerprint: str
    records: tuple[Record, ...]
    summary: Summary
    path: Path


@contextmanager
def naming_files() -> Iterator[None]:
    """Turn a full disk or a folder that may not be written into a sentence that names the file."""
    try:
        yield
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        raise DataError(sentence) from error


def find_checkpoint(target: str, registry: Path | None = None) -> Checkpoint:
    """The checkpoint behind the alias, or in the folder, `target`: its files are those of its
    manifest, and behind an alias those that were promoted."""
    known = Registry(registry)
    checkpoint = load_checkpoint(known.folder_of(target))
    if target in known.aliases():
        known.require_unchanged(target, checkpoint.path, checkpoint.digest)
    return checkpoint


def require_outside_checkpoints(file: Path, option: str) -> None:
    """ConfigError where writing `file` would change a finished checkpoint: the model's own files,
    or anything once it is signed."""
    place = Path(os.path.abspath(file))
    for folder in (place, *place.parents):
        if not (folder / META / MANIFEST).is_file():
            continue
        inside = place.relative_to(folder).parts[:1] == (META,)
        if not inside or (folder / META / SIGNATURE).is_file():
            raise ConfigError(
                f"{option} {file} lies in the checkpoint {folder}, which would not be what was "
                "trained or signed any more; choose a place outside"
            )


def records_folder(checkpoint: Path) -> Path:
    """Where the records of a checkpoint lie by default: in it, beside it once it is signed, and in
    `runs/evals` where neither may be written.

    Nothing is written into a signed checkpoint, for an extra file breaks its signature. The folder
    elsewhere starts as a copy of the records inside, so that nothing is measured twice.
    """
    inside = checkpoint / META / "evals"
    if not (checkpoint / META / SIGNATURE).is_file() and _may_be_written(inside):
        return inside
    folder = Path(os.path.abspath(checkpoint))
    digest = read_manifest(checkpoint).model_digest[:12]
    elsewhere = folder.with_name(f"{folder.name}.evals") / digest
    if not _may_be_written(elsewhere):
        elsewhere = RUNS / digest
    if inside.is_dir() and not elsewhere.exists():
        partial = elsewhere.with_name(f".{elsewhere.name}.{os.getpid()}.partial")
        shutil.copytree(inside, partial)
        partial.rename(elsewhere)
    return elsewhere


def _may_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder that may have to be made itself."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return os.access(there, os.W_OK | os.X_OK)


@contextmanager
def serving(checkpoint: Checkpoint, folder: Path) -> Iterator[Callable[[], Endpoint]]:
    """A function that gives the checkpoint's endpoint; the server starts when it is first called.

    An EndpointError names the server's log, which is in `folder`.
    """
    from thinkgate_clients.local import local_server

    log = folder / "server.log"
    with ExitStack() as stack:

        @cache
        def endpoint() -> Endpoint:
            server = stack.enter_context(
                local_server(checkpoint.path.absolute(), allow_ungated=True, log=log)
            )
            return Endpoint(base_url=server.base_url, model=server.model, digest=checkpoint.digest)

        try:
            yield endpoint
        except EndpointError as error:
            raise EndpointError(f"{error}; the server's log: {log}") from error


def measure_checkpoint(
    checkpoint: Checkpoint,
    suites: Iterable[LoadedSuite],
    options: Options,
    out: Path | None = None,
    endpoint: Callable[[], Endpoint] | None = None,
) -> list[Measurement]:
    """Measure what is missing, and return everything planned.

    `endpoint` is one of `serving`; without it, a server is started if something is missing.
    """
    suites = list(suites)
    folder = out or records_folder(checkpoint.path)
    paths = [folder / f"{loaded.name}.jsonl" for loaded in suites]
    with ExitStack() as stack:
        recordings = _opened(stack, paths, suites, checkpoint.digest, options)
        todo = _unfinished(recordings, suites, options)
        if todo and endpoint:
            _run_all(endpoint(), todo, options)
        elif todo:
            with serving(checkpoint, folder) as started:
                _run_all(started(), todo, options)
        return _measured(recordings, suites, options)


def measure_endpoint(
    endpoint: Endpoint, suites: Iterable[LoadedSuite], options: Options, out: Path
) -> list[Measurement]:
    """The same for a server that is already there."""
    suites = list(suites)
    paths = [out / f"{loaded.name}.jsonl" for loaded in suites]
    with ExitStack() as stack:
        recordings = _opened(stack, paths, suites, endpoint.identity, options)
        _run_all(endpoint, _unfinished(recordings, suites, options), options)
        return _measured(recordings, suites, options)


def _run_all(
    endpoint: Endpoint, todo: Sequence[tuple[Recording, LoadedSuite]], options: Options
) -> None:
    endpoint = options.applied_to(endpoint)
    for recording, loaded in todo:
        run(endpoint, loaded, recording, options.limit)


def _opened(
    stack: ExitStack,
    paths: Sequence[Path],
    suites: Sequence[LoadedSuite],
    model: str,
    options: Options,
) -> list[Recording]:
    if options.fresh:
        for path in paths:
            set_aside(path)
    recordings: list[Recording] = []
    for path, loaded in zip(paths, suites, strict=True):
        recording = stack.enter_context(Recording(path, loaded, model))
        golds = {problem.id: problem.gold for problem in loaded.problems}
        if changed := graded_again(path, recording.done.values(), golds):
            recording.replace(changed.values())
        recordings.append(recording)
    return recordings


def graded_again(
    path: Path, records: Iterable[Record], golds: Mapping[str, str]
) -> dict[tuple[str, int], Record]:
    """By their keys, the records in `path` of which the verifier says otherwise, with its verdict;
    a warning says how many. `golds` are by problem; what has none keeps its verdict.

    Two models are compared by one verifier, however long ago one of them was measured; and what
    somebody wrote into the file says nothing.
    """
    # What could not be settled took its seconds, and is no credit to anyone.
    found = [r for r in records if r.problem_id in golds and r.verdict is not Verdict.ERROR]
    verdicts = check_many((record.answer, golds[record.problem_id]) for record in found)
    changed = [
        record.model_copy(update={"gold": golds[record.problem_id], "verdict": verdict})
        for record, verdict in zip(found, verdicts, strict=True)
        if verdict is not record.verdict
    ]
    if changed:
        warn(
            f"{path}: the verifier says of {len(changed):,} recorded answers otherwise than the "
            f"record, such as problem {changed[0].problem_id}; its verdicts count"
        )
    return {record.key: record for record in changed}


def _unfinished(
    recordings: Sequence[Recording], suites: Sequence[LoadedSuite], options: Options
) -> list[tuple[Recording, LoadedSuite]]:
    pairs = zip(recordings, suites, strict=True)
    return [(r, loaded) for r, loaded in pairs if missing(r, loaded, options.limit)]


def _measured(
    recordings: Sequence[Recording], suites: Sequence[LoadedSuite], options: Options
) -> list[Measurement]:
    return [
        _measurement(recording, loaded, options)
        for recording, loaded in zip(recordings, suites, strict=True)
    ]


def _measurement(recording: Recording, loaded: LoadedSuite, options: Options) -> Measurement:
    """The planned samples only: an earlier run without a limit may have recorded more."""
    records = tuple(
        recording.done[problem.id, repeat]
        for problem in loaded.planned(options.limit)
        for repeat in range(loaded.suite.samples)
    )
    if options.second_grader is not None:
        twice = tuple(grade_again(records, options.second_grader, recording.path.parent))
        if twice != records:
            recording.replace(twice)
        records = twice
    summary = summarise(records, recording.header.sessions)
    return Measurement(
        loaded=loaded,
        model=recording.header.model,
        fingerprint=recording.header.fingerprint,
        records=records,
        summary=summary,
        path=recording.path,
    )
