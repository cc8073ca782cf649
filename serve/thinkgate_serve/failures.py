"""Errors as OpenAI clients expect them: one JSON shape, the parameter named, the status right.

Owns the wording of refused requests. It does not decide which requests are refused.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from thinkgate.config import nearest
from thinkgate_serve.messages import Refused, Unsupported, Wire

__all__ = [
    "ApiError",
    "error_body",
    "invalid_request",
    "on_api_error",
    "on_http_error",
    "on_invalid_request",
]


LONGEST_NAME = 100


class ApiError(Exception):
    """A request this server answers with an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body OpenAI's API answers errors with."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message, param = _text(message), param and _text(param)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _text(quoted: str) -> str:
    """A lone surrogate in what is quoted is not text."""
    return quoted.encode("utf-8", "replace").decode()


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of `ApiError`."""
    assert isinstance(error, ApiError)
    request.state.error = error.message
    body = error_body(error.status, error.message, error.param, error.code)
    return JSONResponse(body, error.status)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of Starlette's own errors: unknown paths, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"no such path: {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}"
    elif error.status_code == 400:
        message = "the body is not valid UTF-8 JSON"
    return JSONResponse(
        error_body(error.status_code, message), error.status_code, headers=error.headers
    )


async def on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Handler of bodies that do not fit the wire model: 400, naming the parameter."""
    assert isinstance(error, RequestValidationError)
    return await on_api_error(_, invalid_request(error.errors()))


def invalid_request(errors: Sequence[Any]) -> ApiError:
    """Pydantic's errors about a body as one, naming the parameter."""
    worst = max(errors, key=_weight)
    message, param, code = _explain(worst)
    return ApiError(400, message, param=param, code=code)


def _weight(error: dict[str, Any]) -> tuple[int, bool, bool]:
    """Of the branches of a union the one that got furthest says what is wrong, of two that got as
    far the one whose type it was; and what is of another type is not to have our fields."""
    location, kind = error["loc"], error["type"]
    return len(location), location[-1:] == ("type",), not kind.endswith("_type")


def _explain(error: dict[str, Any]) -> tuple[str, str | None, str | None]:
    location = [part for part in error["loc"][1:] if not _is_branch(part)]
    if error["type"] == "extra_forbidden":  # its last part is the client's own word
        return _unknown(error["loc"][1:])
    param = _dotted(location) or None
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "malformed")
        return f"the body is not valid JSON: {reason}", None, None
    if error["type"] == "missing":
        if param is None:
            return "the request has no body", None, None
        return f"missing required parameter '{param}'", param, "missing_required_parameter"
    if param is None and error["type"] in ("model_attributes_type", "dict_type", "model_type"):
        return (
            "the body must be a JSON object, sent as 'Content-Type: application/json'",
            None,
            None,
        )
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Refused):
        param = _dotted([*location, cause.field[:LONGEST_NAME]])
    if isinstance(cause, Unsupported):
        message = f"'{param}' is not supported by this server"
        message += f": {cause.instead}" if cause.instead else ""
        return message, param, "unsupported_parameter"
    reason = str(error["msg"]).removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    return (f"'{param}': {reason}" if param else reason), param, "invalid_value"


def _unknown(location: Sequence[int | str]) -> tuple[str, str, str]:
    *parents, last = location
    name = str(last)[:LONGEST_NAME]
    param = _dotted([*(part for part in parents if not _is_branch(part)), name])
    known = _known(Wire)
    hint = "" if name in known else nearest(name, known)  # it is a field elsewhere
    suffix = f"; {hint}" if hint.startswith("did") else ""
    return f"unknown parameter '{param}'{suffix}", param, "unknown_parameter"


def _is_branch(part: int | str) -> bool:
    """Pydantic puts the name of a union's branch into the location of an error."""
    return isinstance(part, str) and (
        part in ("str", "int") or not part.isidentifier() or part[0].isupper()
    )


def _dotted(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def _known(cls: type[Wire]) -> set[str]:
    """Names of all fields of all request bodies."""
    names = set(cls.model_fields)
    return names.union(*map(_known, cls.__subclasses__()))
