"""What every endpoint needs: the loaded model, its card, and turning requests into plans.

Owns defaults (request, then card, then model), context-length arithmetic, and translating what the
engine says into API errors. It does not know response formats.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from thinkgate.errors import ConfigError
from thinkgate.format import Channel, SplitStatus, prefilled_by
from thinkgate_serve.card import Card
from thinkgate_serve.engine import Engine, EngineDead, RequestRefused, Sampling
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Closing, Piece, Plan, run_choices
from thinkgate_serve.metrics import Metrics
from thinkgate_serve.protocol import Generate, Message

__all__ = ["Prompt", "ReasoningField", "Service", "Settings"]

SAMPLING_FIELDS = {field.name for field in fields(Sampling)} - {
    "max_tokens",
    "logit_bias",
    "logprobs",
    "constraint",
    "keep_special",
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
    drain_seconds: int = 60
    """How long requests in flight may go on after SIGTERM."""


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
        self.metrics = Metrics()
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
        self.metrics.running.inc()
        try:
            async with aclosing(run_choices(self.engine, plan, choices, request_id)) as events:
                async for choice, pieces in events:
                    if len(seen) < 2:
                        self._first(seen, pieces, time.perf_counter() - begun)
                    yield choice, pieces
        except EngineDead as error:
            raise ApiError(503, "the engine has stopped", code="engine_dead") from error
        except RequestRefused as error:
            raise ApiError(400, str(error)) from error
        finally:
            self.metrics.running.dec()
            self._count(plan, choices, time.perf_counter() - begun)

    def _first(self, seen: set[Channel | None], pieces: Sequence[Piece], after: float) -> None:
        if None not in seen:
            seen.add(None)
            self.metrics.first_token.observe(after)
        if any(channel is Channel.ANSWER for channel, _ in pieces):
            seen.add(Channel.ANSWER)
            self.metrics.first_answer.observe(after)

    def _count(self, plan: Plan, choices: Sequence[Choice], seconds: float) -> None:
        tokens = self.metrics.tokens
        tokens.labels("prompt").inc(len(plan.prompt_ids))
        tokens.labels("reasoning").inc(sum(choice.reasoning_tokens for choice in choices))
        tokens.labels("answer").inc(sum(choice.answer_tokens for choice in choices))
        self.metrics.truncated.inc(sum(c.status is SplitStatus.TRUNCATED for c in choices))
        self.metrics.duration.observe(seconds)

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
