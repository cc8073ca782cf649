"""`POST /v1/completions`: raw text, streamed and not.

Owns the shape of plain completions. No chat template is applied and nothing is split: the text
comes back as generated, tags included, and stop strings end it wherever they occur.
"""

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import Response

from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece, Plan, Raw
from thinkgate_serve.model import Model, Prompt
from thinkgate_serve.protocol import CompletionRequest
from thinkgate_serve.service import Service
from thinkgate_serve.wire import DONE, Events, dumps, error_event, respond, usage

__all__ = ["completion"]

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


async def completion(service: Service, request: CompletionRequest, http: Request) -> Response:
    """Answer one completion request; several prompts give `n` choices each, in order."""
    begun = time.perf_counter()
    model = await service.bind(request.model)
    plans = await _plans(model, request)
    n = request.n or 1
    groups = [
        (plan, [Raw(index, plan) for index in range(at * n, (at + 1) * n)])
        for at, plan in enumerate(plans)
    ]
    request_id: str = http.state.request_id
    writer = CompletionWriter(model, request, groups, f"cmpl-{request_id}")
    events = _run_all(service, model, groups, writer.id, begun)
    return respond(events, writer, request.stream)


async def _plans(model: Model, request: CompletionRequest) -> list[Plan]:
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    given = request.prompt
    prompts: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given  # pyright: ignore[reportAssignmentType]
    plans: list[Plan] = []
    vocabulary = len(model.engine.tokenizer)
    for prompt in prompts:
        ids = await model.encode(prompt, True) if isinstance(prompt, str) else prompt
        if not ids or not all(0 <= token < vocabulary for token in ids):
            raise ApiError(
                400, f"the prompt has no tokens, or one outside 0..{vocabulary - 1}", param="prompt"
            )
        plans.append(model.plan(request, Prompt(ids, False), limit, request.logprobs))
    return plans


async def _run_all(
    service: Service,
    model: Model,
    groups: Sequence[tuple[Plan, Sequence[Raw]]],
    request_id: str,
    begun: float,
) -> Events:
    """Prompts one after another, so that a long list holds only its own place in the engine."""
    for at, (plan, choices) in enumerate(groups):
        run = service.run(model, plan, choices, f"{request_id}-{at}", begun)
        async with aclosing(run):
            async for event in run:
                yield event


class CompletionWriter:
    """Writes the chunks or the body of one completion response."""

    def __init__(
        self,
        model: Model,
        request: CompletionRequest,
        groups: Sequence[tuple[Plan, Sequence[Raw]]],
        identity: str,
    ) -> None:
        self.id = identity
        self._created = int(time.time())
        self._model = model.name
        self._choices = [choice for _, choices in groups for choice in choices]
        self._prompt_tokens = sum(len(plan.prompt_ids) for plan, _ in groups)
        self._with_usage = request.include_usage
        self._with_logprobs = request.logprobs is not None
        self._offsets: dict[int, int] = {}

    def chunks(self, choice: Choice, pieces: Sequence[Piece]) -> bytes:
        text = "".join(text for _, text in pieces)
        if not text and choice.finish is None:
            return b""
        return self._event([self._choice(choice, text)], None)

    def last(self) -> bytes:
        if not self._with_usage:
            return DONE
        return self._event([], usage(self._prompt_tokens, self._choices)) + DONE

    def failed(self, error: ApiError) -> bytes:
        return error_event(error)

    def body(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        whole = [
            self._choice(choice, "".join(text for _, text in texts[choice.index]))
            for choice in self._choices
        ]
        return self._envelope(whole) | {"usage": usage(self._prompt_tokens, self._choices)}

    def _choice(self, choice: Choice, text: str) -> dict[str, Any]:
        finish = choice.finish.value if choice.finish else None
        logprobs = self._logprobs(choice) if self._with_logprobs else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        entries = choice.take_logprobs()
        offsets: list[int] = []
        at = self._offsets.get(choice.index, 0)
        for entry in entries:
            offsets.append(at)
            at += len(entry.token)
        self._offsets[choice.index] = at
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {other.token: other.logprob for other in entry.top} for entry in entries
            ],
            "text_offset": offsets,
        }

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _event(self, choices: list[dict[str, Any]], counted: dict[str, Any] | None) -> bytes:
        body = self._envelope(choices)
        if self._with_usage:
            body["usage"] = counted
        return f"data: {dumps(body)}\n\n".encode()
