"""One line per request: what was asked of which endpoint by whom, and how it went.

Owns `Exchange`, what is known about the request being answered, and how it is written down. Text of
prompts is written only when the operator asked for it; text of answers never is.
"""

import json
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from starlette.types import Send

from thinkgate.format import Channel
from thinkgate_serve.engine import Sampling
from thinkgate_serve.generation import Choice
from thinkgate_serve.limits import Admission
from thinkgate_serve.model import Model

__all__ = ["EXCHANGE", "TIMEOUT", "Exchange", "LogFormat", "RequestLog"]

TIMEOUT = "timeout"
"""The error of a request whose time was over."""


class LogFormat(StrEnum):
    """How request lines are written."""

    TEXT = "text"
    JSON = "json"
    OFF = "off"


@dataclass(slots=True)
class Exchange:
    """One request and its response, filled in by whoever learns something about it."""

    request_id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    key: str | None = None
    status: int = 0
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    first_token: float | None = None
    """Seconds after `began`."""
    finish: list[str] = field(default_factory=list)
    """Of each choice; "truncated" is one that ended inside its thought."""
    error: str | None = None
    body: bytearray | None = None
    """What was sent, kept only to be logged or traced."""
    completions: dict[Choice, dict[Channel, list[str]]] | None = None
    """What was generated, in pieces, kept only to be traced."""
    report: Callable[[], dict[str, Any]] | None = None
    """What else there is to say about the completions, such as their votes."""
    admission: Admission | None = None
    model: Model | None = None
    """The model that answers."""
    sampling: Sampling | None = None
    """How its completions were drawn."""
    deadline: float | None = None
    """By the event loop's clock."""
    send: Send | None = None
    """The HTTP server's own, past layers that look only at how a response starts."""

    @property
    def tokens(self) -> int:
        """All tokens, prompt and completions."""
        return self.prompt_tokens + self.reasoning_tokens + self.answer_tokens

    def bind(self, model: Model) -> None:
        """`model` answers, and is in use until `release`."""
        self.release()
        self.model = model
        model.in_flight += 1

    def release(self) -> None:
        """The request is over."""
        if self.model is not None:
            self.model.in_flight -= 1


EXCHANGE: ContextVar[Exchange | None] = ContextVar("EXCHANGE", default=None)
"""The request this task works on; None outside one."""


class RequestLog:
    """Writes finished exchanges to stderr."""

    def __init__(self, form: LogFormat, stream: TextIO | None = None) -> None:
        self._form = form
        self._stream = stream

    def write(self, exchange: Exchange) -> None:
        """One line; nothing when the log is off."""
        if self._form is LogFormat.OFF:
            return
        entry = _entry(exchange)
        line = json.dumps(entry) if self._form is LogFormat.JSON else _text(entry)
        print(line, file=self._stream or sys.stderr, flush=True)


def _entry(exchange: Exchange) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": exchange.request_id,
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "seconds": round(time.perf_counter() - exchange.began, 4),
    }
    if exchange.key is not None:
        entry["key"] = exchange.key
    if exchange.model is not None:
        entry |= exchange.model.card.labels()
    if exchange.tokens:
        entry |= {
            "prompt_tokens": exchange.prompt_tokens,
            "reasoning_tokens": exchange.reasoning_tokens,
            "answer_tokens": exchange.answer_tokens,
        }
    if exchange.first_token is not None:
        entry["ttft"] = round(exchange.first_token, 4)
    if exchange.finish:
        entry["finish"] = exchange.finish
    if exchange.error is not None:
        entry["error"] = exchange.error
    if exchange.body is not None:
        entry["request"] = exchange.body.decode("utf-8", "replace")
    return entry


def _text(entry: dict[str, Any]) -> str:
    """The same for people; values from clients are quoted, so that none can forge a line."""
    head = " ".join(str(entry.pop(key)) for key in ("time", "method"))
    path, status = json.dumps(entry.pop("path"))[1:-1], entry.pop("status")
    rest = " ".join(f"{key}={_plain(value)}" for key, value in entry.items())
    return f"{head} {path} {status} {rest}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value)
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)
