"""Records: one JSON line per sample, appended as it finishes, and a header that says of what run.

Owns the two files of a run and what makes it resumable: the same header, whole lines, no sample
twice. It does not know how samples are drawn or what they add up to.

    arithmetic.jsonl       the records
    arithmetic.run.json    suite, problems and model they belong to; time spent
"""

import fcntl
import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Any, Self

from pydantic import Field, ValidationError

from thinkgate.answers import Verdict
from thinkgate.checkpoint import now, write_atomic
from thinkgate.config import Config
from thinkgate.errors import ConfigError, DataError
from thinkgate.format import SplitStatus
from thinkgate_evals.suites import LoadedSuite, changed_keys

__all__ = [
    "GRADED",
    "Header",
    "Record",
    "Recording",
    "Session",
    "header_path",
    "read_header",
    "read_records",
    "refuse_doubles",
    "set_aside",
]

Key = tuple[str, int]

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""No more than a JSON number holds exactly, and no less than none, which clears any ceiling."""

GRADED = frozenset({Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER})
"""Verdicts that say something about the model; the others say that the measurement failed."""


class Record(Config):
    """One sample: what was asked, what came back, what it was worth.

    Only `problem_id` and `verdict` are always known; of records from elsewhere (`record_sets.py`)
    the rest may be None, and what needs it then says nothing.
    """

    problem_id: str
    repeat: Count = 0
    """Which of several answers to the problem, from 0."""

    seed: int | None = None
    prompt: str | None = None
    """The problem as it stands in the suite."""

    prompt_hash: str | None = None
    """Of the messages as they were sent."""

    gold: str | None = None
    verdict: Verdict
    second_verdict: Verdict | None = None
    """Of a second grader, where one was asked."""

    second_grader: str | None = None
    """Which one."""

    reasoning: str | None = None
    answer: str | None = None
    """None when the thought was cut off, or when the request failed."""

    extracted: str | None = None
    """The final answer the verifier found in `answer`."""

    status: SplitStatus | None = None
    """None when the request failed."""

    finish_reason: str | None = None
    reasoning_tokens: Count | None = None
    answer_tokens: Count | None = None
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    request_id: str | None = None
    endpoint: str | None = None
    """The address that answered; None where the response cache did."""

    model_digest: str | None = None
    cached: bool = False
    """The answer was found in the response cache; its latency is of when it was asked."""

    error: str | None = None
    """Why the request failed; such a sample is asked again when the run is resumed."""

    @property
    def key(self) -> Key:
        """What identifies a sample within a run."""
        return (self.problem_id, self.repeat)

    @property
    def graded(self) -> bool:
        """Whether the verdict says something about the model."""
        return self.verdict in GRADED


class Session(Config):
    """One uninterrupted stretch of a run, for throughput."""

    samples: int
    tokens: int
    seconds: float


class Header(Config):
    """What the records of a file belong to."""

    schema_version: int = 1
    suite: str
    fingerprint: str
    identity: dict[str, Any]
    model: str
    """The model's digest where it has one, else its name and address."""

    created: str = Field(default_factory=now)
    sessions: tuple[Session, ...] = ()


class Recording:
    """The records of one suite for one model, open for appending; one process at a time.

    Opening takes up what an earlier process left: a last line torn by a crash is cut off, failed
    requests are dropped so that they are asked again. A file of another configuration is refused.
    """

    def __init__(self, path: Path, loaded: LoadedSuite, model: str) -> None:
        self.path = path
        self.header = Header(
            suite=loaded.name,
            fingerprint=loaded.fingerprint,
            identity=loaded.identity(),
            model=model,
        )
        self._done: dict[Key, Record] = {}
        self._open = ExitStack()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._lock(stack)
            self._take_up()
            # Unbuffered: after a full disk nothing is left over that closing would try to write.
            self._file = stack.enter_context(self.path.open("ab", buffering=0))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def done(self) -> dict[Key, Record]:
        """Samples that are measured, by key; also those the request failed for in this session."""
        return self._done

    def append(self, record: Record) -> None:
        """Add a finished sample; it survives the death of this process from here on."""
        assert self._file is not None and record.key not in self._done
        line = f"{record.model_dump_json()}\n".encode()
        while line:
            line = line[self._file.write(line) :]
        self._done[record.key] = record

    def replace(self, records: Iterable[Record]) -> None:
        """Put these in the place of the ones with their keys, all at once."""
        assert self._file is not None
        self._done |= {record.key: record for record in records}
        kept = [record for record in self._done.values() if record.error is None]
        write_atomic(self.path, "".join(record.model_dump_json() + "\n" for record in kept))
        self._file.close()
        self._file = self._open.enter_context(self.path.open("ab", buffering=0))

    def close_session(self, session: Session) -> None:
        """Keep the time this session took."""
        self.header = self.header.model_copy(update={"sessions": (*self.header.sessions, session)})
        self._write_header()

    def _lock(self, stack: ExitStack) -> None:
        # Not the records themselves: they may be replaced, and the lock would stay on the old file.
        file = stack.enter_context(self.path.with_name(f".{self.path.stem}.lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{self.path} is being written by another process; wait for it, or choose another "
                "folder with --out"
            ) from error

    def _take_up(self) -> None:
        if not self.path.is_file() or not self.path.stat().st_size:
            self._write_header()
            return
        self._match(read_header(self.path))
        _cut_torn_line(self.path)
        records = read_records(self.path)
        self._refuse_strangers(records)
        kept = [record for record in records if record.error is None]
        if len(kept) < len(records):
            write_atomic(self.path, "".join(record.model_dump_json() + "\n" for record in kept))
        self._done = {record.key: record for record in kept}

    def _refuse_strangers(self, records: Iterable[Record]) -> None:
        """DataError for answers of other weights, as files that were joined by hand have."""
        ours = self.header.model
        for record in records:
            if re.fullmatch("[0-9a-f]{64}", ours) and record.model_digest not in (None, ours):
                raise DataError(
                    f"{self.path}: problem {record.problem_id}, repeat {record.repeat} was "
                    f"answered by model {str(record.model_digest)[:12]}, not {ours[:12]}; measure "
                    "again with --fresh"
                )

    def _match(self, found: Header) -> None:
        """Take over the header found, or refuse it naming every key that differs."""
        changed = changed_keys(found.identity, self.header.identity)
        if found.model != self.header.model:
            changed.append(f"model ({found.model[:12]} -> {self.header.model[:12]})")
        if changed or found.fingerprint != self.header.fingerprint:
            raise ConfigError(
                f"{self.path} holds records of another configuration, which differs in "
                f"{', '.join(changed) or 'its fingerprint'}; measure again with --fresh, or choose "
                "another folder with --out"
            )
        self.header = found

    def _write_header(self) -> None:
        write_atomic(header_path(self.path), self.header.model_dump_json(indent=2) + "\n")


def header_path(records: Path) -> Path:
    """Where the header of a records file lies."""
    return records.with_suffix(".run.json")


def set_aside(records: Path) -> None:
    """Rename a run's two files to `NAME.old.*`, replacing those of an earlier call.

    A file without a header is no run of ours, but perhaps somebody's problems: it stays.
    """
    header = header_path(records)
    if not header.is_file():
        return
    for path in (records, header):
        if path.is_file():
            suffix = path.name.removeprefix(records.stem)
            path.rename(path.with_name(f"{records.stem}.old{suffix}"))


def read_records(path: Path) -> list[Record]:
    """All whole records of a file; DataError on a malformed line or a sample that occurs twice.

    A torn last line, as a crash leaves it, is not a record.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    records: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = f"{where} {first['msg']}".strip()
            raise DataError(f"{path}, line {number}: not a record: {reason}") from error
    refuse_doubles(path, records)
    return records


def refuse_doubles(path: Path, records: Iterable[Record]) -> None:
    """DataError when a sample occurs twice."""
    seen: set[Key] = set()
    for record in records:
        if record.key in seen:
            raise DataError(
                f"{path}: problem {record.problem_id}, repeat {record.repeat} occurs twice; a "
                "sample counted twice would make the intervals too narrow, so number several "
                "answers to a problem with 'sample': 0, 1, 2"
            )
        seen.add(record.key)


def read_header(records: Path) -> Header:
    """What the records of a run of ours belong to; DataError when the header is not there."""
    file = header_path(records)
    if not file.is_file():
        raise DataError(
            f"{records} has no {file.name} beside it, so it is not a recorded run; choose another "
            "folder with --out, or move it away"
        )
    try:
        return Header.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        raise DataError(f"{file}: not a run header: {str(error).splitlines()[0]}") from error


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last newline."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
