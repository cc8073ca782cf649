"""Answers kept by what was asked of whom, so that the same question is not paid for twice.

Owns one SQLite file. An answer is found again only for the same weights (or, where those are not
known, the same model at the same address), the same messages, the same sampling and the same seed:
two repeats of a problem never get one answer. Failed requests are not kept.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from thinkgate.errors import DataError
from thinkgate.format import SplitStatus
from thinkgate_clients.reply import Reply

__all__ = ["ResponseCache"]

VERSION = 1
"""Rises when keys or replies mean something else; older answers are then not found any more."""


class ResponseCache:
    """The file, open; several processes may use it at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            # Losing the last answers to a power cut is no harm: they are asked again.
            self._open.execute("PRAGMA journal_mode=WAL")
            self._open.execute("PRAGMA synchronous=NORMAL")
            self._open.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)"
            )
        except (sqlite3.Error, OSError) as error:
            self.__exit__()
            raise self._broken(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    @staticmethod
    def key(model: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any]) -> str:
        """Of one question; `sampling` has the seed."""
        asked = {"v": VERSION, "model": model, "messages": list(messages), "sampling": sampling}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Reply | None:
        """The answer kept under `key`."""
        assert self._open is not None
        try:
            with closing(
                self._open.execute("SELECT reply FROM replies WHERE key = ?", (key,))
            ) as c:
                row = c.fetchone()
            if row is None:
                return None
            fields = json.loads(row[0])
            return Reply(**fields | {"status": SplitStatus(fields["status"])})
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise self._broken(error) from error

    def put(self, key: str, reply: Reply) -> None:
        """Keep an answer."""
        assert self._open is not None
        try:
            text = json.dumps(asdict(reply))
            self._open.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> DataError:
        return DataError(
            f"{self._path} cannot be used as a response cache: {error}; delete it, or name another "
            "with --cache"
        )
