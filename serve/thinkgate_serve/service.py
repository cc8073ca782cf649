"""What every endpoint needs: the loaded model, its card, and turning requests into plans.

Owns defaults (request, then card, then model), context-length arithmetic, and translating what the
engine says into API errors. It does not know response formats.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from thinkgate.errors import ConfigError
from thinkgate.format import Channel, SplitStatus, prefilled_by
from thinkgate_serve.auth import Keyring
from thinkgate_serve.card import Card
from thinkgate_serve.engine import Engine, EngineDead, RequestRefused, Sampling
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Closing, Piece, Plan, run_choices
from thinkgate_serve.limits import Limiter
from thinkgate_serve.logs import EXCHANGE, LogFormat, RequestLog
from thinkgate_serve.metrics import Metrics
from thinkgate_serve.protocol import Generate, Message

__all__ = ["Prompt", "ReasoningField", "Service", "Settings"]

SAMPLING_FIELDS = {field.name for field in fields(Sampling)} - {
    "max_tokens",
    "logit_bias",
    "logprobs",
    "constraint",
}


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation."""

    ids: list[int]
    prefilled: bool


class Service:
    """One model being served."""

    def __init__(self, engine: Engine, card: Card, settings: Settings) -> None:
        self.engine = engine
        self.card = card
        self.settings = settings
        self.keyring = settings.keyring
        self.limiter = Limiter(settings.max_queue)
        self.log = RequestLog(settings.log_format)
        self.metrics = Metrics()
        self.metrics.waiting.set_function(lambda: self.limiter.waiting)
        self.started = int(time.time())
        # One thread: fast tokenizers fail when two threads change their settings at once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        tag = card.tags.close
        self.closings = self._closing(tag), self._closing(f"\n{tag}\n\n")

    def headers(self) -> dict[str, str]:
        """Headers of every response: which bytes answered, and who vouched for them."""
        headers = {"x-thinkgate-gate": self.card.gate}
        if self.card.digest:
            headers["x-thinkgate-model-digest"] = self.card.digest
        return headers

    def sampling_defaults(self) -> dict[str, Any]:
        """What a request gets where it sets nothing: the card's values before the model's."""
        merged = {**self.engine.sampling_defaults, **self.card.sampling}
        return {key: value for key, value in merged.items() if key in SAMPLING_FIELDS}

    def close(self) -> None:
        """Stop the tokenizer thread; the engine belongs to whoever made it."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> None:
        """ApiError 404 when the request names another model."""
        if name is not None and name != self.card.name:
            raise ApiError(
                404,
                f"the model '{name}' is not served here; this is '{self.card.name}'",
                param="model",
                code="model_not_found",
            )

    async def render(
        self, messages: Sequence[Message], template_kwargs: Mapping[str, Any] | None
    ) -> Prompt:
        """The prompt of a conversation, by the model's own chat template."""
        turns = [message.for_template() for message in messages]
        kwargs = dict(template_kwargs or {})
        if reserved := RESERVED.intersection(kwargs):
            raise ApiError(
                400,
                f"chat_template_kwargs may not set '{min(reserved)}'",
                param="chat_template_kwargs",
            )
        return await self._off_loop(self._render, turns, kwargs)

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of plain text."""
        return await self._off_loop(self._encode, text, add_special_tokens)

    async def decode(self, ids: list[int]) -> str:
        """Text of token ids; ApiError 400 for ids outside the vocabulary."""
        vocabulary = len(self.engine.tokenizer)
        if ids and max(ids) >= vocabulary:
            raise ApiError(400, f"token {max(ids)} is outside 0..{vocabulary - 1}", param="tokens")
        return await self._off_loop(self.engine.tokenizer.decode, ids)

    def plan(
        self,
        request: Generate,
        prompt: Prompt,
        limit: int | None,
        logprobs: int | None = None,
        **more: Any,
    ) -> Plan:
        """What to generate; ApiError 400 when prompt and completion do not fit the context."""
        context, used = self.engine.context_length, len(prompt.ids)
        room = context - used
        if room < 1:
            raise _too_long(f"the prompt has {used} tokens, the context {context}", None)
        if limit is not None and limit > room:
            raise _too_long(
                f"the prompt has {used} tokens and max_tokens is {limit}, together more than the "
                f"context of {context}",
                "max_tokens",
            )
        if (request.min_tokens or 0) > (limit or room):
            raise ApiError(
                400,
                f"min_tokens is {request.min_tokens}, more than the {limit or room} tokens allowed",
                param="min_tokens",
            )
        return Plan(
            prompt_ids=prompt.ids,
            sampling=replace(self._sampling(request, limit or room), logprobs=logprobs),
            closings=self.closings,
            stops=request.stops,
            prefilled=prompt.prefilled,
            tags=self.card.tags,
            **more,
        )

    async def run(
        self, plan: Plan, choices: Sequence[Choice], request_id: str, begun: float
    ) -> AsyncGenerator[tuple[Choice, Sequence[Piece]], None]:
        """`run_choices`, measured, with the engine's failures as ApiErrors.

        `begun` is when the request arrived, by `time.perf_counter()`.
        """
        seen: set[Channel | None] = set()
        first_at: float | None = None
        self.metrics.running.inc()
        try:
            async with aclosing(run_choices(self.engine, plan, choices, request_id)) as events:
                async for choice, pieces in events:
                    if len(seen) < 2:
                        after = time.perf_counter() - begun
                        first_at = after if first_at is None else first_at
                        self._first(seen, pieces, after)
                    yield choice, pieces
        except EngineDead as error:
            raise ApiError(503, "the engine has stopped", code="engine_dead") from error
        except RequestRefused as error:
            raise ApiError(400, str(error)) from error
        finally:
            self.metrics.running.dec()
            self._count(plan, choices, first_at, time.perf_counter() - begun)

    def _first(self, seen: set[Channel | None], pieces: Sequence[Piece], after: float) -> None:
        if None not in seen:
            seen.add(None)
            self.metrics.first_token.observe(after)
            exchange = EXCHANGE.get()
            if exchange is not None and exchange.admission is not None:
                self.limiter.started(exchange.admission)
                if exchange.first_token is None:
                    exchange.first_token = after
        if any(channel is Channel.ANSWER for channel, _ in pieces):
            seen.add(Channel.ANSWER)
            self.metrics.first_answer.observe(after)

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

    def _sampling(self, request: Generate, max_tokens: int) -> Sampling:
        chosen = self.sampling_defaults()
        for name in SAMPLING_FIELDS:
            value = getattr(request, name)
            if value is not None:
                chosen[name] = value
        chosen["top_k"] = max(0, chosen.get("top_k", 0))
        bias = None
        if request.logit_bias:
            bias = {int(token): value for token, value in request.logit_bias.items()}
            vocabulary = len(self.engine.tokenizer)
            if max(bias) >= vocabulary:
                raise ApiError(
                    400,
                    f"logit_bias names token {max(bias)}, the vocabulary has {vocabulary}",
                    param="logit_bias",
                )
        return Sampling(max_tokens=max_tokens, logit_bias=bias, **chosen)

    def _render(self, turns: list[dict[str, Any]], kwargs: dict[str, Any]) -> Prompt:
        from jinja2.exceptions import TemplateError

        tokenizer = self.engine.tokenizer
        try:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **kwargs
            )
            prefilled = prefilled_by(tokenizer, turns, self.card.tags, **kwargs)
        except (TemplateError, ConfigError, ValueError, TypeError) as error:
            raise ApiError(
                400, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return Prompt(self._encode(text, False), prefilled)

    def _closing(self, text: str) -> Closing:
        return Closing(text, list(self._encode(text, False)))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()  # of a lone surrogate tokenizers say no more than TypeError
        except UnicodeError as error:
            raise ApiError(400, "the text holds a lone surrogate, which is not text") from error
        return self.engine.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def _off_loop(self, function: Any, *args: Any) -> Any:
        """Run tokenizer work beside the event loop, so that long prompts delay no stream."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function, *args)


RESERVED = {
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "chat_template",
    "conversation",
}


def _too_long(message: str, param: str | None) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")
