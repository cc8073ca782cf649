"""Examples:

thinkgate batch questions.jsonl answers.jsonl http://127.0.0.1:8000/v1
thinkgate batch questions.jsonl answers.jsonl production            starts a server for it
thinkgate batch requests.jsonl results.jsonl production --concurrency 128 --temperature 0.6

A line of IN is {"prompt": "…"} or {"messages": […]}, with "id" and sampling fields as it likes, or
a request in OpenAI's batch format ("custom_id", "body"), whose result is in that format too. The
same command goes on where an earlier one stopped, and asks again what failed or was changed.

Exit codes: 0 all answered, 1 some requests failed, 2 a mistake to fix.
"""

import argparse
import asyncio
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from thinkgate.console import Meter, console, printable, progress
from thinkgate.errors import DataError
from thinkgate_clients.client import AsyncClient, Failure, Reply, RequestFailed, key_from
from thinkgate_clients.local import local_server

__all__ = ["Request", "add_arguments", "read_done", "read_requests", "run", "run_batch"]

OWN = {"id", "prompt", "messages"}
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input."""

    id: str
    line: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of all that is asked: a changed request is asked again."""
        return hashlib.sha256(json.dumps(self.line, sort_keys=True).encode()).hexdigest()

    @property
    def is_openai(self) -> bool:
        """Whether it is written, and to be answered, in OpenAI's batch format."""
        return "custom_id" in self.line

    @property
    def messages(self) -> Any:
        """What to ask, for a line of our own form."""
        return self.line.get("messages") or self.line["prompt"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate batch`."""
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="one request a line")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="one result a line, as done")
    parser.add_argument("target", metavar="TARGET", help="URL, registry alias or checkpoint folder")
    parser.add_argument("--model", help="default: the only one the server offers")
    parser.add_argument("--concurrency", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--thinking-budget", type=int, help="tokens of each thought at most")
    parser.add_argument("--consensus", type=int, metavar="K", help="let K samples vote")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key")
    parser.add_argument("--allow-ungated", action="store_true", help="for a TARGET without a gate")


def run(args: argparse.Namespace) -> int:
    """Ask everything that has no result yet."""
    if args.concurrency < 1:
        raise DataError(f"--concurrency {args.concurrency}: give 1 or more")
    requests = read_requests(args.input)
    done = read_done(args.output)
    left = [request for request in requests if done.get(request.id) != request.digest]
    console.print(f"{len(requests)} requests, {len(requests) - len(left)} done before")
    if not left:
        return 0
    defaults = {
        name: value
        for name in ("temperature", "max_tokens", "thinking_budget", "consensus")
        if (value := getattr(args, name)) is not None
    }
    key = key_from(args.api_key_env)
    with _address(args.target, args.allow_ungated) as url, _appending(args.output) as out:
        client = AsyncClient(url, args.model, api_key=key)
        failed = asyncio.run(run_batch(client, left, out, args.concurrency, defaults))
    if failed:
        console.print(f"{failed} of {len(left)} failed; the same command asks them again")
    return 1 if failed else 0


async def run_batch(
    client: AsyncClient,
    requests: Iterable[Request],
    out: TextIO,
    concurrency: int,
    defaults: Mapping[str, Any],
) -> int:
    """Ask `requests`, write each result when it comes, return how many failed.

    RequestFailed when the server is gone or refuses everybody: what was finished is written.
    """
    pending = list(requests)
    queue = iter(pending)
    failed = 0

    async def work(meter: Meter) -> None:
        nonlocal failed
        for request in queue:
            result, good = await _ask(client, request, defaults)
            failed += not good
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()
            meter.advance()
            meter.note(f"{failed} failed" if failed else "")

    async with client:
        await client.model()
        with progress("asked", len(pending)) as meter:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(concurrency, len(pending))):
                        group.create_task(work(meter))
            except ExceptionGroup as errors:  # the first says what is wrong with all
                raise errors.exceptions[0] from None
    return failed


async def _ask(
    client: AsyncClient, request: Request, defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The result line, and whether it is one."""
    try:
        if request.is_openai:
            body = {"model": await client.model(), **defaults, **request.line["body"]}
            response = await client.complete(body)
            told = {"status_code": 200, "request_id": response.get("id"), "body": response}
            return _openai_result(request, response=told, error=None), True
        sampling = {key: value for key, value in request.line.items() if key not in OWN}
        reply = await client.ask(request.messages, **{**defaults, **sampling})
        return _result(request, reply), True
    except RequestFailed as error:
        if error.failure in (Failure.UNREACHABLE, Failure.REFUSED):
            raise
        told = {"message": str(error), "code": error.code}
        if request.is_openai:
            return _openai_result(request, response=None, error=told), False
        return {"id": request.id, "error": str(error), "request_sha256": request.digest}, False


def _openai_result(request: Request, **more: Any) -> dict[str, Any]:
    return {
        "id": f"batch_req_{request.digest[:24]}",
        "custom_id": request.id,
        **more,
        "request_sha256": request.digest,
    }


def _result(request: Request, reply: Reply) -> dict[str, Any]:
    asked = {key: request.line[key] for key in ("prompt", "messages") if key in request.line}
    votes = reply.consensus
    return {
        "id": request.id,
        **asked,
        "reasoning": reply.reasoning,
        "answer": reply.answer,
        "status": reply.status.value,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "reasoning_tokens": reply.reasoning_tokens,
        "answer_tokens": reply.answer_tokens,
        "model_digest": reply.model_digest,
        **({"votes": dict(votes.votes), "agreement": votes.agreement} if votes else {}),
        "error": None,
        "request_sha256": request.digest,
    }


def read_requests(file: Path) -> list[Request]:
    """The lines of `file`; DataError naming the first that cannot be asked."""
    requests: dict[str, Request] = {}
    for number, line in _lines(file):
        where = f"{file}:{number}"
        if "custom_id" in line:
            if line.get("url", CHAT) != CHAT or not isinstance(line.get("body"), dict):
                raise DataError(f"{where}: only requests to {CHAT} with a 'body' can be asked")
            if line["body"].get("stream"):
                raise DataError(f"{where}: 'stream' has no place in a batch; leave it out")
        elif not isinstance(line.get("prompt"), str) and not isinstance(line.get("messages"), list):
            raise DataError(f"{where}: neither a 'prompt', nor 'messages', nor a 'custom_id'")
        identity = str(line.get("custom_id", line.get("id", f"line-{number}")))
        if identity in requests:
            raise DataError(f"{where}: the id '{identity}' is there twice")
        requests[identity] = Request(identity, line)
    if not requests:
        raise DataError(f"{file}: no requests in it")
    return list(requests.values())


def read_done(file: Path) -> dict[str, str]:
    """Digests of the requests with a result in `file`, by id; a torn last line is none."""
    if not file.exists():
        return {}
    done: dict[str, str] = {}
    for number, line in _lines(file, torn=True):
        identity = line.get("custom_id", line.get("id"))
        if "request_sha256" not in line or identity is None:
            raise DataError(f"{file}:{number} is no result of a batch; name another OUT.jsonl")
        if line.get("error") is None:
            done[str(identity)] = line["request_sha256"]
    return done


def _lines(file: Path, *, torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = file.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, 1):
        if not raw.strip() or (torn and number == len(lines)):
            continue
        try:
            line = json.loads(raw)
        except ValueError as error:
            raise DataError(f"{file}:{number}: not JSON: {printable(str(error))}") from error
        if not isinstance(line, dict):
            raise DataError(f"{file}:{number}: not a JSON object")
        yield number, line


@contextmanager
def _appending(file: Path) -> Iterator[TextIO]:
    """`file` to write on at its end, without the line that an earlier run left unfinished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        whole = file.read_bytes().rfind(b"\n") + 1
        with file.open("rb+") as old:
            old.truncate(whole)
    with file.open("a", encoding="utf-8") as out:
        yield out


@contextmanager
def _address(target: str, allow_ungated: bool) -> Iterator[str]:
    """The URL to ask: TARGET itself, or that of a server started for it."""
    if target.startswith(("http://", "https://")):
        yield target
        return
    with local_server(target, allow_ungated=allow_ungated) as server:
        yield server.base_url
