"""Another checkpoint in the place of the one being served, without a failed request.

Owns the order of things: verify, load, canary, switch, drain, and going back by itself when one of
them fails. It does not know how a target is found or loaded; `Source` says.

BESIDE loads the new engine while the old one serves, and switches between two requests. REPLACE is
for machines that hold one engine: new requests wait, running ones finish, the old engine stops, the
new one loads; if it fails, the old checkpoint is loaded again.
"""

import asyncio
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from thinkgate.checkpoint import now
from thinkgate.errors import CheckpointError, ThinkgateError
from thinkgate_serve.canary import Canary, CanaryFailed, sing
from thinkgate_serve.card import Card
from thinkgate_serve.model import Deployment
from thinkgate_serve.service import Service

__all__ = ["Attempt", "Busy", "Deployer", "Outcome", "Placement", "Source", "Stage"]

T = TypeVar("T")

POLL_SECONDS = 0.02
WATCH_SECONDS = 1.0
KEPT = 20
"""How many past attempts the status lists."""


class Placement(StrEnum):
    """Where the new engine goes."""

    AUTO = "auto"
    BESIDE = "beside"
    REPLACE = "replace"


class Stage(StrEnum):
    """What a deploy is busy with."""

    VERIFY = "verify"
    WAIT = "wait"
    """REPLACE only: for the requests that run."""
    LOAD = "load"
    CANARY = "canary"
    DRAIN = "drain"


class Outcome(StrEnum):
    """How a deploy ended. All but DEPLOYED leave the old checkpoint serving."""

    DEPLOYED = "deployed"
    UNCHANGED = "unchanged"
    """It is served already."""
    REFUSED = "refused"
    """It could not be found, or is not proven."""
    LOAD_FAILED = "load_failed"
    CANARY_FAILED = "canary_failed"


class Busy(Exception):
    """One deploy at a time, and none while the server is on its way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where deployments come from: what stays the same from one deploy to the next."""

    target: str
    find: Callable[[str, Mapping[str, str]], tuple[Card, Sequence[Card]]]
    """The verified card of a target and those of adapters by name; ThinkgateError."""
    load: Callable[[Card, Sequence[Card]], Deployment]
    room_beside: Callable[[Card], bool]
    """Whether the engine of this card fits beside the one that runs."""
    version: Callable[[], object | None] | None = None
    """Changes when another checkpoint is to be served; None is not known now, or not watched."""
    known: object | None = None
    """The version before the first deployment was found."""
    lora: Mapping[str, str] = field(default_factory=dict)
    """The adapters served beside each target: folders, or aliases that may have moved."""
    placement: Placement = Placement.AUTO
    drain_seconds: float = 600
    """How long the old checkpoint's requests may go on after a switch."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One deploy, from the wish to its end."""

    target: str
    began: str = field(default_factory=now)
    placement: Placement | None = None
    stage: Stage | None = None
    outcome: Outcome | None = None
    why: str | None = None
    """Why it failed."""
    digest: str | None = None
    decision: str | None = None
    canary: Canary | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage; `switch` is how long new requests had no engine to go to."""

    @contextmanager
    def at(self, stage: Stage) -> Generator[None]:
        """Busy with `stage` until the block ends."""
        self.stage, began = stage, time.perf_counter()
        try:
            yield
        finally:
            before = self.seconds.get(stage, 0)
            self.seconds[stage] = round(before + time.perf_counter() - began, 3)


class Deployer:
    """Deploys one checkpoint after another; belongs to the event loop."""

    def __init__(self, service: Service, source: Source) -> None:
        self._service = service
        self._source = source
        # An engine process dies with the thread that started it, so this one lives on.
        self._engines = ThreadPoolExecutor(1, thread_name_prefix="engines")
        self._running: Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._past: deque[Attempt] = deque(maxlen=KEPT)

    def start(self, target: str | None = None) -> Attempt:
        """Begin to deploy `target`, or what the server was started with; Busy during another."""
        if self._service.limiter.leaving:
            raise Busy("the server is shutting down")
        if self._running is not None:
            raise Busy(f"{self._running.target} is being deployed; one at a time")
        attempt = self._running = Attempt(target=target or self._source.target)
        self._task = asyncio.create_task(self._deploy(attempt))
        return attempt

    async def watch(self) -> None:
        """Deploy when the source's version has changed, once for each change; never returns."""
        version, known = self._source.version, self._source.known
        while version is not None:
            seen = await asyncio.to_thread(version)
            if seen is not None and seen != known:
                with suppress(Busy):
                    self.start()
                    known = seen
            await asyncio.sleep(WATCH_SECONDS)

    def status(self) -> dict[str, Any]:
        """What is served, what goes on, and how the last attempts went, the newest first."""
        return {
            "serving": self._service.deployment.default.card.labels(),
            "running": asdict(self._running) if self._running else None,
            "past": [asdict(attempt) for attempt in reversed(self._past)],
        }

    async def close(self) -> None:
        """Give up what is not finished; the deployment in force is its owner's to stop."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._engines.shutdown(wait=False, cancel_futures=True)

    async def _deploy(self, attempt: Attempt) -> None:
        try:
            attempt.outcome = await self._try(attempt)
        except CanaryFailed as error:
            attempt.outcome, attempt.why = Outcome.CANARY_FAILED, str(error)
        except Exception as error:
            verified = Stage.LOAD in attempt.seconds
            attempt.outcome = Outcome.LOAD_FAILED if verified else Outcome.REFUSED
            attempt.why = str(error) or type(error).__name__
            if not isinstance(error, ThinkgateError):
                traceback.print_exc()
        finally:
            attempt.stage, self._running = None, None
            self._past.append(attempt)
            outcome = attempt.outcome.value if attempt.outcome else "abandoned"
            self._service.metrics.deploys.labels(outcome).inc()
            why = f": {attempt.why}" if attempt.why else ""
            print(f"thinkgate: deploy of {attempt.target}: {outcome}{why}", file=sys.stderr)

    async def _try(self, attempt: Attempt) -> Outcome:
        source, service = self._source, self._service
        with attempt.at(Stage.VERIFY):
            card, adapters = await asyncio.to_thread(source.find, attempt.target, source.lora)
        labels = card.labels()
        attempt.digest, attempt.decision = labels["digest"], labels["decision"]
        if service.deployment.labels == [each.labels() for each in (card, *adapters)]:
            return Outcome.UNCHANGED
        attempt.placement = source.placement
        if source.placement is Placement.AUTO:
            fits = await asyncio.to_thread(source.room_beside, card)
            attempt.placement = Placement.BESIDE if fits else Placement.REPLACE
        if attempt.placement is Placement.BESIDE:
            await self._beside(attempt, card, adapters)
        else:
            await self._replace(attempt, card, adapters)
        return Outcome.DEPLOYED

    async def _beside(self, attempt: Attempt, card: Card, adapters: Sequence[Card]) -> None:
        new = await self._prepared(attempt, card, adapters)
        began = time.perf_counter()
        old = self._service.switch(new)
        attempt.seconds["switch"] = round(time.perf_counter() - began, 6)
        with attempt.at(Stage.DRAIN):
            await self._drained(old)
        await self._in_thread(old.stop)

    async def _replace(self, attempt: Attempt, card: Card, adapters: Sequence[Card]) -> None:
        service, old = self._service, self._service.deployment
        began = time.perf_counter()
        with service.holding():
            with attempt.at(Stage.WAIT):
                await self._drained(old)
            await self._in_thread(old.stop)
            try:
                new = await self._prepared(attempt, card, adapters)
            except Exception:
                service.switch(await self._again(old))
                raise
            service.switch(new)
        attempt.seconds["switch"] = round(time.perf_counter() - began, 3)

    async def _again(self, old: Deployment) -> Deployment:
        """`old` loaded anew, if it still is what was verified: its files had time to change."""
        was, *others = (model.card for model in old.models.values())
        lora = {card.name: card.source for card in others}
        card, adapters = await asyncio.to_thread(self._source.find, was.source, lora)
        if old.labels != [each.labels() for each in (card, *adapters)]:
            raise CheckpointError(f"{card.source} is no longer what was served; start again")
        return await self._in_thread(self._source.load, card, adapters)

    async def _prepared(self, attempt: Attempt, card: Card, adapters: Sequence[Card]) -> Deployment:
        """Loaded, its adapters too, and the canary alive."""
        with attempt.at(Stage.LOAD):
            new = await self._in_thread(self._source.load, card, adapters)
        try:
            with attempt.at(Stage.LOAD):
                await new.warm_up()
                if (parser := self._service.settings.tool_parser) is not None:
                    await asyncio.to_thread(parser.check, new.engine.tokenizer)
            with attempt.at(Stage.CANARY):
                attempt.canary = await sing(new.default, Path(card.source))
        except BaseException:
            await self._in_thread(new.stop)
            raise
        return new

    async def _drained(self, old: Deployment) -> None:
        until = time.monotonic() + self._source.drain_seconds
        while old.in_flight and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._engines, work, *args)
