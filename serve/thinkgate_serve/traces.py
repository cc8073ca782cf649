"""The trace store: what was asked and answered, kept in one SQLite file when the operator wants it.

Owns the file, its retention, and who may see what. A request never waits for it: traces are put in
a bounded queue and written by a task of their own in batches; what cannot be written is counted and
logged, and the request is none the worse. It does not know HTTP.
"""

import asyncio
import json
import os
import sqlite3
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiosqlite

from thinkgate.errors import ConfigError
from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.generation import Choice
from thinkgate_serve.logs import Exchange

__all__ = ["Filter", "Page", "TraceStatus", "TraceStore", "trace_of"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS traces (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created REAL NOT NULL,
    key TEXT, request_id TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL,
    question TEXT NOT NULL, answer TEXT, texts TEXT NOT NULL, record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS traces_by_key ON traces (key, seq);
CREATE INDEX IF NOT EXISTS traces_by_time ON traces (created);
"""
COLUMNS = (
    "id", "created", "key", "request_id", "model", "status", "question", "answer", "texts", "record"
)  # fmt: skip
INSERT = f"INSERT INTO traces ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
QUEUE_LENGTH = 1000
BATCH = 100
SWEEP_SECONDS = 60
EXCERPT = 300
"""Characters of question and answer in a list of traces."""


class TraceStatus(StrEnum):
    """How a request went."""

    OK = "ok"
    TRUNCATED = "truncated"
    """It ended inside its thought, without an answer."""
    ABORTED = "aborted"
    """The client went away."""
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which traces to list; None is any."""

    key: str | None = None
    """Only those of this key's requests."""
    q: str | None = None
    """A piece of a question, thought or answer, in any case."""
    status: TraceStatus | None = None
    model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some traces, newest first, and whether older ones follow."""

    traces: list[dict[str, Any]]
    has_more: bool


class TraceStore:
    """One SQLite file. `record` belongs to the event loop that runs `opened`."""

    def __init__(self, file: Path, *, keep_days: float = 30, max_rows: int = 100_000) -> None:
        self.file = file
        self.on_failure: Callable[[int], None] = lambda count: None
        """Called with how many traces were lost."""
        self._keep_seconds = keep_days * 86_400
        self._max_rows = max_rows
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE_LENGTH)
        self._prepare()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None, None]:
        """Connections and the writing task for as long as the server runs; writes what waits."""
        async with aiosqlite.connect(self.file) as writer, aiosqlite.connect(self.file) as reader:
            self._writer, self._reader = writer, reader
            tasks = asyncio.create_task(self._write_all()), asyncio.create_task(self._sweep_all())
            try:
                yield
            finally:
                await self._queue.join()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def record(self, trace: dict[str, Any]) -> None:
        """Keep `trace` (see `trace_of`) some time soon; never waits, never raises."""
        try:
            self._queue.put_nowait(trace)
        except asyncio.QueueFull:
            self._lost(1, f"{QUEUE_LENGTH} traces wait to be written")

    async def page(self, wanted: Filter, limit: int, after: str | None = None) -> Page:
        """Summaries, newest first, from the one that follows the trace `after`."""
        clauses, values = _where(wanted)
        if after is not None:
            clauses.append("seq < (SELECT seq FROM traces WHERE id = ?)")
            values.append(after)
        where = " AND ".join(clauses) or "1"
        rows = await self._reader.execute_fetchall(
            f"SELECT record, substr(question, 1, {EXCERPT}), substr(answer, 1, {EXCERPT}) "
            f"FROM traces WHERE {where} ORDER BY seq DESC LIMIT ?",
            [*values, limit + 1],
        )
        traces = [
            json.loads(record) | {"question": question, "answer": answer}
            for record, question, answer in rows
        ]
        return Page(traces[:limit], len(traces) > limit)

    async def get(self, identity: str, key: str | None) -> dict[str, Any] | None:
        """One trace with all its texts; None where there is none, or not for this key."""
        clauses, values = _where(Filter(key=key))
        where = " AND ".join([*clauses, "id = ?"])
        rows = await self._reader.execute_fetchall(
            f"SELECT record, question, answer, texts FROM traces WHERE {where}",
            [*values, identity],
        )
        for record, question, answer, texts in rows:
            told = {"question": question, "answer": answer}
            return json.loads(record) | told | json.loads(texts)
        return None

    async def delete(self, identity: str, key: str | None) -> bool:
        """Forget one trace; False where there is none, or not for this key."""
        clauses, values = _where(Filter(key=key))
        where = " AND ".join([*clauses, "id = ?"])
        cursor = await self._writer.execute(
            f"DELETE FROM traces WHERE {where}", [*values, identity]
        )
        await self._writer.commit()
        return cursor.rowcount > 0

    def _prepare(self) -> None:
        """Create or check the file; ConfigError before a model is loaded for nothing."""
        try:
            # Made before SQLite makes it: conversations are nobody else's business.
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(self.file)
            try:
                database.execute("PRAGMA journal_mode = WAL")  # reading does not hold up writing
                database.executescript(SCHEMA)
                database.execute(f"SELECT {', '.join(COLUMNS)} FROM traces LIMIT 1")
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"--traces {self.file}: {reason}; name a file of its own in a folder that exists"
            ) from error

    async def _write_all(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._write(batch)
            except Exception as error:  # whatever it is, the next batch is to be written
                self._lost(len(batch), str(error))
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _write(self, batch: Sequence[dict[str, Any]]) -> None:
        rows = await asyncio.to_thread(lambda: [_row(trace) for trace in batch])
        await self._writer.executemany(INSERT, rows)
        await self._writer.commit()

    async def _sweep_all(self) -> None:
        while True:
            try:
                await self.sweep()
            except sqlite3.Error as error:
                print(f"thinkgate: old traces were not deleted: {error}", file=sys.stderr)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Drop what is too old, and the oldest of what is too much; done every minute."""
        execute = self._writer.execute
        await execute("DELETE FROM traces WHERE created < ?", [time.time() - self._keep_seconds])
        await execute(
            "DELETE FROM traces WHERE seq <= "
            "(SELECT seq FROM traces ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            [self._max_rows],
        )
        await self._writer.commit()

    def _lost(self, count: int, reason: str) -> None:
        self.on_failure(count)
        print(f"thinkgate: traces not kept: {count} ({reason})", file=sys.stderr, flush=True)


def trace_of(exchange: Exchange, error: str | None = None) -> dict[str, Any] | None:
    """What is kept of a finished request; None for one that reached no model."""
    model, kept = exchange.model, exchange.completions
    if model is None or kept is None:
        return None
    votes = exchange.report() if exchange.report is not None and kept else None
    return {
        "id": f"trace-{uuid.uuid4().hex}",
        "object": "trace",
        "created": time.time(),
        "request_id": exchange.request_id,
        "key": exchange.key,
        "path": exchange.path,
        "model": model.name,
        "digest": model.card.digest,
        "gate": model.card.gate,
        "status": _status(exchange, votes is not None, error).value,
        "http_status": exchange.status,
        "error": exchange.error or error,
        "usage": {
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": exchange.reasoning_tokens + exchange.answer_tokens,
            "completion_tokens_details": {"reasoning_tokens": exchange.reasoning_tokens},
        },
        "timings": {
            "total_s": round(time.perf_counter() - exchange.began, 4),
            "first_token_s": exchange.first_token,
        },
        "consensus": votes,
        "body": bytes(exchange.body or b""),
        "completions": kept,
    }


def _status(exchange: Exchange, elected: bool, error: str | None) -> TraceStatus:
    choices = list(exchange.completions or ())
    if exchange.status != 499 and (exchange.status >= 400 or exchange.error or error):
        return TraceStatus.ERROR
    finished = [choice for choice in choices if choice.finish is not None]
    # Samples that cannot change an election's outcome are stopped on purpose.
    if not finished or (len(finished) < len(choices) and not elected):
        return TraceStatus.ABORTED
    if all(choice.status is SplitStatus.TRUNCATED for choice in finished):
        return TraceStatus.TRUNCATED
    return TraceStatus.OK


def _row(trace: dict[str, Any]) -> list[Any]:
    """The columns; whatever takes long is done here, off the event loop."""
    request: dict[str, Any] = json.loads(trace.pop("body"))
    completions: Mapping[Choice, Mapping[Channel, Sequence[str]]] = trace.pop("completions")
    choices = [_told(index, *one) for index, one in enumerate(completions.items())]
    answer = next((one["answer"] for one in choices if one["answer"]), None)
    texts = json.dumps({"request": request, "choices": choices}, ensure_ascii=False)
    record = json.dumps(trace, ensure_ascii=False)
    told = trace | {
        "question": _question(request), "answer": answer, "texts": texts, "record": record
    }  # fmt: skip
    # A lone surrogate in a request is no text for SQLite.
    return [_text(told[column]) for column in COLUMNS]


def _told(index: int, choice: Choice, said: Mapping[Channel, Sequence[str]]) -> dict[str, Any]:
    finish = choice.finish.value if choice.finish else None
    return {
        "index": index,
        "reasoning": "".join(said[Channel.REASONING]),
        "answer": "".join(said[Channel.ANSWER]),
        "finish_reason": finish,
        "reasoning_tokens": choice.reasoning_tokens,
        "answer_tokens": choice.answer_tokens,
    }


def _question(request: Mapping[str, Any]) -> str:
    """What was asked last, in whichever shape."""
    asked = request.get("messages") or request.get("input") or request.get("prompt") or ""
    while isinstance(asked, list) and asked:
        asked = asked[-1]
        if isinstance(asked, dict):
            asked = asked.get("content") or asked.get("text") or ""
    return asked if isinstance(asked, str) else ""


def _text(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _where(wanted: Filter) -> tuple[list[str], list[Any]]:
    """SQL clauses and their values."""
    clauses: list[str] = []
    values: list[Any] = []
    for column in ("key", "status", "model", "request_id"):
        value = getattr(wanted, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(str(value))
    if wanted.q:
        literal = json.dumps(wanted.q, ensure_ascii=False)[1:-1]  # texts are kept as JSON
        for special in "\\%_":
            literal = literal.replace(special, f"\\{special}")
        clauses.append("texts LIKE ? ESCAPE '\\'")
        values.append(f"%{literal}%")
    return clauses, values
