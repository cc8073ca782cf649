"""A model clients may ask for, and the deployment it belongs to.

Owns turning a request into a plan for one model: its defaults (request, then card, then the model's
own), its chat template, context-length arithmetic. A `Deployment` is one loaded engine with every
model it answers as; it is switched, drained and stopped as a whole. Knows no response formats, and
not which deployment is in force.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from thinkgate_serve.card import Card
from thinkgate_serve.engine import SCHEMA_SECONDS, Engine, Sampling, VLLMEngine
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Closing, Plan
from thinkgate_serve.messages import Message, Tool
from thinkgate_serve.prompts import render
from thinkgate_serve.protocol import Generate, History

__all__ = ["Deployment", "Model", "Prompt"]

SAMPLING_FIELDS = {field.name for field in fields(Sampling)} - {
    "max_tokens",
    "logit_bias",
    "logprobs",
    "constraint",
    "keep_special",
}


SHORT = 2_000
"""Characters of a conversation read in less time than a thread takes to be asked and to answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation."""

    ids: list[int]
    prefilled: bool


class Model:
    """One name in `/v1/models`: an engine to ask and the card that says who vouches for it."""

    def __init__(self, engine: Engine, card: Card, tokenizing: Executor) -> None:
        self.engine = engine
        self.card = card
        self.in_flight = 0
        """Requests bound to it that have not ended."""
        self._tokenizing = tokenizing
        tag = card.tags.close
        self.closings = self._closing(tag), self._closing(f"\n{tag}\n\n")

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.card.name

    def headers(self) -> dict[str, str]:
        """Headers of its responses: which bytes answered, and who vouched for them."""
        headers = {"x-thinkgate-gate": self.card.gate}
        if self.card.digest:
            headers["x-thinkgate-model-digest"] = self.card.digest
        return headers

    def sampling_defaults(self) -> dict[str, Any]:
        """What a request gets where it sets nothing: the card's values before the model's."""
        merged = {**self.engine.sampling_defaults, **self.card.sampling}
        return {key: value for key, value in merged.items() if key in SAMPLING_FIELDS}

    async def render(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Tool] = (),
        history: History = History.TEMPLATE,
        thinking: bool = True,
    ) -> Prompt:
        """The prompt of a conversation, by the model's own chat template."""
        asked = messages, template_kwargs, tools, history, thinking
        if not tools and sum(len(message.text) for message in messages) <= SHORT:
            return self._render(*asked)
        return await self._off_loop(self._render, *asked)

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
            raise _too_long(f"the prompt has {used} tokens, the context {context}", request.asks_in)
        if limit is not None and limit > room:
            raise _too_long(
                f"the prompt has {used} tokens and {limit} more are asked for, together more than "
                f"the context of {context}",
                request.limit_name,
            )
        if (request.min_tokens or 0) > (limit or room):
            raise ApiError(
                400,
                f"min_tokens is {request.min_tokens}, more than the {limit or room} tokens allowed",
                param="min_tokens",
            )
        return Plan(
            prompt_ids=prompt.ids,
            sampling=self._sampling(request, limit or room, logprobs),
            closings=self.closings,
            stops=request.stops,
            prefilled=prompt.prefilled,
            tags=self.card.tags,
            **more,
        )

    def _sampling(self, request: Generate, max_tokens: int, logprobs: int | None) -> Sampling:
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
        return Sampling(max_tokens=max_tokens, logit_bias=bias, logprobs=logprobs, **chosen)

    def _render(self, *args: Any) -> Prompt:
        text, prefilled = render(self.engine.tokenizer, self.card.tags, *args)
        try:
            text.encode()  # the arguments of earlier calls are JSON in JSON
        except UnicodeError as error:
            words = "the text holds a lone surrogate, which is not text"
            raise ApiError(400, words, param="messages") from error
        return Prompt(self._encode(text, False), prefilled)

    def _closing(self, text: str) -> Closing:
        return Closing(text, list(self._encode(text, False)))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self.engine.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def _off_loop(self, function: Any, *args: Any) -> Any:
        """Run tokenizer work beside the event loop, so that long prompts delay no stream."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, function, *args)


class Deployment:
    """One loaded engine and the models it answers as; the first is the default.

    A request is bound to one deployment from start to end, so that a switch changes nothing for
    those already running.
    """

    def __init__(self, engine: Engine, card: Card, adapters: Sequence[Card] = ()) -> None:
        self.engine = engine
        self.since = int(time.time())
        # One thread, for long prompts; beside it the event loop uses the same tokenizer, as it may.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self.models = {card.name: Model(engine, card, self._tokenizing)}
        for adapter in adapters:
            adapted = engine.adapted(adapter.name, str(adapter.adapter))
            self.models[adapter.name] = Model(adapted, adapter, self._tokenizing)

    @classmethod
    def load(
        cls,
        card: Card,
        adapters: Sequence[Card],
        options: Mapping[str, Any],
        *,
        schema_seconds: int = SCHEMA_SECONDS,
        fork: bool = True,
    ) -> "Deployment":
        """Load what `card` stands for on vLLM; `options` are its engine arguments.

        `schema_seconds` of processor time may go into trying a client's schema.
        `fork=False` where this process has threads or a running event loop: slower on CPUs.
        """
        visible = [tag for each in (card, *adapters) for tag in (each.tags.open, each.tags.close)]
        engine = VLLMEngine.load(
            card.source, options, visible=visible, schema_seconds=schema_seconds, fork=fork
        )
        try:
            return cls(engine, card, adapters)
        except BaseException:
            engine.shutdown()
            raise

    @property
    def default(self) -> Model:
        """The model of requests that name none."""
        return next(iter(self.models.values()))

    @property
    def labels(self) -> list[dict[str, str]]:
        """Those of all it answers as: two deployments of equal labels are of the same weights."""
        return [model.card.labels() for model in self.models.values()]

    @property
    def in_flight(self) -> int:
        """Requests bound to any of its models that have not ended."""
        return sum(model.in_flight for model in self.models.values())

    async def warm_up(self) -> None:
        """Load the adapters; ServerError when one cannot be."""
        for model in self.models.values():
            await model.engine.warm_up()

    def stop(self) -> None:
        """Stop the engine and the tokenizer's thread; safe to call twice."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        self.engine.shutdown()


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")
