"""What all requests share: which models are served, limits, metrics, the log.

Owns binding a request to a model, running its plan measured, and translating what the engine says
into API errors. It does not know response formats, nor how a model plans a request (`model.py`).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.auth import Keyring
from thinkgate_serve.disconnect import in_time
from thinkgate_serve.engine import EngineDead, RequestFailed, RequestRefused
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece, Plan, run_choices
from thinkgate_serve.limits import Limiter
from thinkgate_serve.logs import EXCHANGE, Exchange, LogFormat, RequestLog
from thinkgate_serve.metrics import Metrics
from thinkgate_serve.model import Deployment, Model
from thinkgate_serve.tools import ToolParser
from thinkgate_serve.traces import TraceStore
from thinkgate_serve.tracing import Tracing

__all__ = ["ReasoningField", "Service", "Settings"]

VOTING_THREADS = 4


class ReasoningField(StrEnum):
    """Which key of a message carries the thought."""

    BOTH = "both"
    REASONING_CONTENT = "reasoning_content"
    REASONING = "reasoning"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys to write."""
        return ("reasoning_content", "reasoning") if self is ReasoningField.BOTH else (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator chose."""

    reasoning_field: ReasoningField = ReasoningField.BOTH
    max_body_bytes: int = 4 * 2**20
    keyring: Keyring = field(default_factory=lambda: Keyring(()))
    """Empty: no key is asked for."""
    max_queue: int = 1024
    """Requests that may wait for their first token."""
    request_timeout: float | None = None
    """Seconds a generation request may take."""
    cors_origins: tuple[str, ...] = ()
    log_format: LogFormat = LogFormat.OFF
    log_prompts: bool = False
    tracing: Tracing | None = None
    traces: TraceStore | None = None
    tool_parser: ToolParser | None = None
    """How the models write calls of their own accord; None refuses to look for them."""


class Service:
    """The models being served, and what all requests share."""

    def __init__(self, deployment: Deployment, settings: Settings) -> None:
        self.deployment = deployment
        """The one new requests go to."""
        self.settings = settings
        self.keyring = settings.keyring
        self.limiter = Limiter(settings.max_queue)
        self.log = RequestLog(settings.log_format)
        self.metrics = Metrics()
        self.metrics.waiting.set_function(lambda: self.limiter.waiting)
        if settings.traces is not None:
            settings.traces.on_failure = self.metrics.traces_lost.inc
        self._open = asyncio.Event()
        self._open.set()
        self._show(deployment)
        # Comparing answers may take seconds: nothing else waits behind it.
        self.voting = ThreadPoolExecutor(VOTING_THREADS, thread_name_prefix="vote")

    def find(self, name: str | None) -> Model:
        """The model of that name now, the default one for None; ApiError 404 for another's."""
        models = self.deployment.models
        if name is None:
            return self.deployment.default
        if name not in models:
            known = ", ".join(f"'{known}'" for known in models)
            raise ApiError(
                404,
                f"the model '{name}' is not served here; this server has {known}",
                param="model",
                code="model_not_found",
            )
        return models[name]

    async def bind(self, name: str | None) -> Model:
        """`find`, for the whole of the current request: its engine stays until the request ends,
        and the response's headers, the log and the metrics say that this model answered."""
        exchange = EXCHANGE.get()
        self.find(name)
        while self.held:
            async with in_time("the request's time was over before a deployed model was loaded"):
                await self._open.wait()
        model = self.find(name)
        if exchange is not None:
            exchange.bind(model)
        return model

    @property
    def held(self) -> bool:
        """Whether new requests wait, because no engine can take them now."""
        return not self._open.is_set()

    @property
    def dead(self) -> bool:
        """Whether the engine is gone and no other is coming."""
        return self.deployment.engine.dead and not self.held

    @contextmanager
    def holding(self) -> Generator[None]:
        """New requests wait until the block ends."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def switch(self, new: Deployment) -> Deployment:
        """New requests go to `new` from here on; returns where they went before."""
        old, self.deployment = self.deployment, new
        self.metrics.model_info.clear()
        self._show(new)
        return old

    def _show(self, deployment: Deployment) -> None:
        for model in deployment.models.values():
            self.metrics.model_info.labels(**model.card.labels()).set(1)

    async def run(
        self, model: Model, plan: Plan, choices: Sequence[Choice], request_id: str, begun: float
    ) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
        """`run_choices`, measured, with the engine's failures as ApiErrors.

        `begun` is when the request arrived, by `time.perf_counter()`.
        """
        first_at: float | None = None
        answered = False
        exchange = EXCHANGE.get()
        kept = exchange.completions if exchange is not None else None
        if kept is not None:
            kept |= {choice: {channel: [] for channel in Channel} for choice in choices}
        self.metrics.running.inc()
        try:
            async with aclosing(run_choices(model.engine, plan, choices, request_id)) as events:
                async for choice, pieces in events:
                    if first_at is None:
                        first_at = time.perf_counter() - begun
                        self._first_token(exchange, first_at)
                    if not answered and pieces and pieces[-1][0] is Channel.ANSWER:
                        answered = True
                        self.metrics.first_answer.observe(time.perf_counter() - begun)
                    if kept is not None:
                        for channel, text in pieces:
                            kept[choice][channel].append(text)
                    yield choice, pieces
        except EngineDead as error:
            raise ApiError(503, "the engine has stopped", code="engine_dead") from error
        except RequestFailed as error:
            raise ApiError(500, "the engine failed on this request", code="engine_error") from error
        except RequestRefused as error:
            param = plan.shaped_by if plan.constraint else None
            raise ApiError(400, str(error), param=param) from error
        finally:
            self.metrics.running.dec()
            self._count(plan, choices, first_at, time.perf_counter() - begun)

    def _first_token(self, exchange: Exchange | None, after: float) -> None:
        self.metrics.first_token.observe(after)
        if exchange is not None and exchange.admission is not None:
            self.limiter.started(exchange.admission)
            if exchange.first_token is None:
                exchange.first_token = after

    def _count(
        self, plan: Plan, choices: Sequence[Choice], first_at: float | None, seconds: float
    ) -> None:
        prompt = len(plan.prompt_ids)
        reasoning = sum(choice.reasoning_tokens for choice in choices)
        answer = sum(choice.answer_tokens for choice in choices)
        truncated = sum(choice.status is SplitStatus.TRUNCATED for choice in choices)
        endings = [choice.finish.value if choice.finish else "aborted" for choice in choices]
        metrics = self.metrics
        metrics.tokens.labels("prompt").inc(prompt)
        metrics.tokens.labels("reasoning").inc(reasoning)
        metrics.tokens.labels("answer").inc(answer)
        metrics.truncated.inc(truncated)
        metrics.duration.observe(seconds)
        for ending in endings:
            metrics.finished.labels(ending).inc()
        each = (reasoning + answer) / len(choices)
        if first_at is not None and each > 1:
            metrics.between_tokens.observe((seconds - first_at) / (each - 1))
        exchange = EXCHANGE.get()
        if exchange is not None:
            exchange.prompt_tokens += prompt
            exchange.reasoning_tokens += reasoning
            exchange.answer_tokens += answer
            exchange.finish += endings
            exchange.sampling = plan.sampling
