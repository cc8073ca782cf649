"""Running a suite against an endpoint: many requests at once, each sample recorded as it finishes.

Owns concurrency, seeds, what a failed request means for the run, and progress. How a request is
made is the client's, what is correct the verifier's, what is kept the recording's.

A failed measurement is never a wrong answer: a request that fails for good becomes an ERROR that
is asked again on resuming. A server that is gone leaves its work to the others of the same model;
when none is left, the run stops.
"""

import asyncio
import hashlib
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from thinkgate.answers import Verdict, check, extract
from thinkgate.console import Meter, progress
from thinkgate.errors import ConfigError, DataError, EndpointError, explain_os_error
from thinkgate.problems import Problem, messages_digest
from thinkgate_clients.client import AsyncClient, Failure, Reply, RequestFailed
from thinkgate_evals.cache import ResponseCache
from thinkgate_evals.records import Record, Recording, Session
from thinkgate_evals.replicas import Replicas
from thinkgate_evals.stats import wilson
from thinkgate_evals.suites import LoadedSuite

__all__ = ["Endpoint", "missing", "run", "sample_seed"]

SPARE_FILES = 50
"""Open files that are left for anything but connections."""

BUDGET_SLACK = 64
"""Tokens beyond a thinking budget that ending the thought may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Whom to ask."""

    base_url: str
    model: str
    digest: str | None = None
    """Of the model that must answer; a reply that names another one stops the run."""

    api_key: str | None = None
    concurrency: int = 64
    timeout: float = 600.0
    max_retries: int = 5
    others: tuple[str, ...] = ()
    """More addresses of the same model, among which the requests are shared out."""

    cache: Path | None = None
    """Where answers are kept and looked for."""

    read_cache: bool = True
    """Whether they are looked for."""

    @property
    def identity(self) -> str:
        """The model's digest where it has one, else its name and address."""
        return self.digest or f"{self.model} at {self.base_url}"


@dataclass(frozen=True, slots=True)
class _Sample:
    problem: Problem
    repeat: int


def missing(recording: Recording, loaded: LoadedSuite, limit: int | None) -> int:
    """How many planned samples are not measured yet."""
    return sum(1 for _ in _open_samples(recording, loaded, limit))


def run(endpoint: Endpoint, loaded: LoadedSuite, recording: Recording, limit: int | None) -> None:
    """Measure every planned sample that is missing; returns when each has a record.

    EndpointError when the endpoint is gone or refuses: what is finished is kept, and the same call
    goes on from there.
    """
    try:
        asyncio.run(_Run(endpoint, loaded, recording, limit).run())
    except OSError as error:  # at the end, when the time it took is written down
        raise _unwritten(recording, error) from None
    except ExceptionGroup as group:
        broken = group.subgroup(DataError)
        if broken is not None:
            raise _first(broken) from group
        disk = group.subgroup(OSError)
        if disk is not None:
            raise _unwritten(recording, _first(disk)) from None
        failures = group.subgroup(EndpointError)
        if failures is None:
            raise
        first = failures.exceptions[0]
        kept = sum(record.error is None for record in recording.done.values())
        raise EndpointError(
            f"{loaded.name}: {first}; {kept} samples are kept in {recording.path}, "
            "nothing was counted as wrong; run the same command again to go on"
        ) from first


def _unwritten(recording: Recording, error: OSError) -> Exception:
    """What to tell the user about a full disk and the like; the error itself where it is none."""
    sentence = explain_os_error(error)
    if sentence is None:
        return error
    return DataError(
        f"{recording.path} cannot be written: {sentence}; what is in it is kept; run the same "
        "command again to go on"
    )


E = TypeVar("E", bound=Exception)


def _first(group: ExceptionGroup[E]) -> E:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def sample_seed(suite_seed: int, problem_id: str, repeat: int) -> int:
    """A 31-bit seed of its own for each sample, the same for every model that is asked."""
    digest = hashlib.sha256(f"{suite_seed} {problem_id} {repeat}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _open_samples(
    recording: Recording, loaded: LoadedSuite, limit: int | None
) -> Iterator[_Sample]:
    """One repeat over all problems after the other, so that an unfinished run covers the suite."""
    for repeat in range(loaded.suite.samples):
        for problem in loaded.planned(limit):
            if (problem.id, repeat) not in recording.done:
                yield _Sample(problem, repeat)


class _Run:
    def __init__(
        self, endpoint: Endpoint, loaded: LoadedSuite, recording: Recording, limit: int | None
    ) -> None:
        self._endpoint = endpoint
        self._loaded = loaded
        self._recording = recording
        self._samples = list(_open_samples(recording, loaded, limit))
        self._planned = len(loaded.planned(limit)) * loaded.suite.samples
        self._replicas = Replicas((endpoint.base_url, *endpoint.others))
        self._cache: ResponseCache | None = None
        self._new: list[Record] = []
        done = recording.done.values()
        self._correct = sum(record.verdict is Verdict.CORRECT for record in done)
        self._graded = sum(record.graded for record in done)
        self._problems = {record.problem_id for record in done if record.graded}

    async def run(self) -> None:
        endpoint = self._endpoint
        count = min(endpoint.concurrency, len(self._samples))
        _require_files(count)
        started = time.perf_counter()
        try:
            async with AsyncExitStack() as stack:
                meter = stack.enter_context(progress(f"eval {self._loaded.name}", self._planned))
                meter.set(self._planned - len(self._samples))
                if endpoint.cache is not None:
                    self._cache = stack.enter_context(ResponseCache(endpoint.cache))
                # Clients for each worker: in a pool of many connections every request would look
                # at all of them.
                workers = [
                    [
                        await stack.enter_async_context(self._client(url))
                        for url in self._replicas.urls
                    ]
                    for _ in range(count)
                ]
                queue = iter(self._samples)
                async with asyncio.TaskGroup() as group:
                    for number, clients in enumerate(workers):
                        group.create_task(self._work(number, clients, queue, meter))
        finally:
            self._close_session(time.perf_counter() - started)

    def _client(self, url: str) -> AsyncClient:
        endpoint = self._endpoint
        return AsyncClient(
            url,
            endpoint.model,
            api_key=endpoint.api_key,
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
        )

    async def _work(
        self, number: int, clients: Sequence[AsyncClient], queue: Iterator[_Sample], meter: Meter
    ) -> None:
        """Take samples from the queue the workers share until it is empty."""
        for sample in queue:
            record = await self._measure(number, clients, sample)
            self._recording.append(record)
            self._new.append(record)
            self._graded += record.graded
            self._correct += record.verdict is Verdict.CORRECT
            meter.advance()
            if record.graded:
                self._problems.add(record.problem_id)
                # A problem counts once, however many answers it has: never too narrow.
                share = self._correct / self._graded
                low, high = wilson(share, len(self._problems))
                meter.note(f"accuracy {share:.0%} ({100 * low:.0f} to {high:.0%})")

    async def _measure(
        self, number: int, clients: Sequence[AsyncClient], sample: _Sample
    ) -> Record:
        suite, problem = self._loaded.suite, sample.problem
        messages = suite.prompt.messages(problem.prompt)
        seed = sample_seed(suite.sampling.seed, problem.id, sample.repeat)
        sampling = suite.sampling.model_dump() | {"seed": seed}
        asked = {
            "problem_id": problem.id,
            "repeat": sample.repeat,
            "seed": seed,
            "prompt": problem.prompt,
            "prompt_hash": messages_digest(messages)[:16],
            "gold": problem.gold,
        }
        try:
            reply, url = await self._ask_any(number, clients, messages, sampling)
        except RequestFailed as error:
            if error.failure is Failure.REFUSED:
                raise
            failed = {"verdict": Verdict.ERROR, "error": str(error)}
            return Record.model_validate(asked | failed)
        # In a thread: a hard comparison may take seconds, and the other requests go on.
        verdict, extracted = await asyncio.to_thread(_grade, reply.answer, problem.gold)
        about = {**asked, "cached": url is None, "endpoint": url}
        return _answered(about, reply, verdict, extracted)

    async def _ask_any(
        self,
        number: int,
        clients: Sequence[AsyncClient],
        messages: list[dict[str, str]],
        sampling: Mapping[str, Any],
    ) -> tuple[Reply, str | None]:
        """The answer, and the address it is from; RequestFailed where it failed at all of them."""
        failure: RequestFailed | None = None
        for client in self._replicas.order(number, clients):
            try:
                return await self._ask(client, messages, sampling)
            except RequestFailed as error:
                self._replicas.failed(client.base_url, error)
                failure = error
        assert failure is not None
        raise failure

    async def _ask(
        self, client: AsyncClient, messages: list[dict[str, str]], sampling: Mapping[str, Any]
    ) -> tuple[Reply, str | None]:
        """The answer, and the address it is from; None for the cache."""
        key = None
        if self._cache is not None:
            key = ResponseCache.key(self._endpoint.identity, messages, sampling)
            kept = self._cache.get(key) if self._endpoint.read_cache else None
            if kept is not None:
                return kept, None
        reply = await _ask(client, messages, sampling)
        self._replicas.answered(client.base_url)
        self._check_digest(client, reply)  # before it is kept under the wrong weights
        self._check_budget(client, reply)
        if self._cache is not None and key is not None:
            self._cache.put(key, reply)
        return reply, client.base_url

    def _check_digest(self, client: AsyncClient, reply: Reply) -> None:
        expected, found = self._endpoint.digest, reply.model_digest
        if expected and found and expected != found:
            raise EndpointError(
                f"{client.base_url} now serves model {found[:12]}, not {expected[:12]}"
            )

    def _check_budget(self, client: AsyncClient, reply: Reply) -> None:
        budget, used = self._loaded.suite.sampling.thinking_budget, reply.reasoning_tokens
        if budget is not None and used is not None and used > budget + BUDGET_SLACK:
            raise EndpointError(
                f"{client.base_url} does not keep to thinking_budget {budget}: a thought had "
                f"{used} tokens; leave sampling.thinking_budget away"
            )

    def _close_session(self, seconds: float) -> None:
        answered = [r for r in self._new if r.error is None and not r.cached]
        tokens = sum((r.reasoning_tokens or 0) + (r.answer_tokens or 0) for r in answered)
        if answered:
            self._recording.close_session(
                Session(samples=len(answered), tokens=tokens, seconds=seconds)
            )


def _require_files(connections: int) -> None:
    """ConfigError where the system would refuse connections, which looks like a failing server."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and connections + SPARE_FILES > allowed:
        raise ConfigError(
            f"{connections:,} connections at once, and this process may have {allowed:,} files "
            "open; lower --concurrency, or raise 'ulimit -n'"
        )


async def _ask(
    client: AsyncClient, messages: list[dict[str, str]], sampling: Mapping[str, Any]
) -> Reply:
    """Ask; where the context leaves less room than `max_tokens`, with the room there is."""
    try:
        return await client.ask(messages, **sampling)
    except RequestFailed as error:
        if (error.code, error.param) != ("context_length_exceeded", "max_tokens"):
            raise
    # Without a limit the server's is what is left of the context, which is less than was asked.
    return await client.ask(messages, **{**sampling, "max_tokens": None})


def _grade(answer: str | None, gold: str) -> tuple[Verdict, str | None]:
    found = extract(answer)
    return check(answer, gold), found.text if found else None


def _answered(
    asked: dict[str, object], reply: Reply, verdict: Verdict, extracted: str | None
) -> Record:
    return Record.model_validate(
        asked
        | {
            "reasoning": _storable(reply.reasoning),
            "answer": _storable(reply.answer),
            "extracted": _storable(extracted),
            "verdict": verdict,
            "status": reply.status,
            "finish_reason": reply.finish_reason,
            "reasoning_tokens": reply.reasoning_tokens,
            "answer_tokens": reply.answer_tokens,
            "latency_s": round(reply.latency_s, 4),
            "request_id": reply.request_id,
            "model_digest": reply.model_digest,
        }
    )


def _storable(text: str | None) -> str | None:
    """`text` with lone surrogates replaced: JSON can carry them, UTF-8 cannot."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")
