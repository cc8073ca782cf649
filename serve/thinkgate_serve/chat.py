"""`POST /v1/chat/completions`, streamed and not.

Owns the shape of chat responses. A thought goes to `reasoning_content` and `reasoning` (or one of
them), never into `content`: "" when the model closed an empty thought, null when it opened none. A
choice that ended inside its thought has null content, `finish_reason` "length" and
`reasoning_truncated` true; that field is on every choice, beside `finish_reason`, and true as well
when the thought was closed for the model at its budget.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.consensus import Election
from thinkgate_serve.engine import Constraint, RequestRefused, TokenLogprob
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece, Plan, Thinking
from thinkgate_serve.logs import EXCHANGE
from thinkgate_serve.model import Model
from thinkgate_serve.phases import EFFORTS, Phased, bounded
from thinkgate_serve.protocol import ChatRequest, ResponseFormat
from thinkgate_serve.service import Service
from thinkgate_serve.wire import SIGN_OF_LIFE, dumps, respond, usage

__all__ = ["chat_completion"]


async def chat_completion(service: Service, request: ChatRequest, http: Request) -> Response:
    """Answer one chat request."""
    begun = time.perf_counter()
    model = await service.bind(request.model)
    constraint = None
    if request.response_format is not None:  # compiling a schema may take a while
        constraint = await asyncio.to_thread(_constraint, model, request.response_format)
    kwargs = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort == "none":
        kwargs.setdefault("enable_thinking", False)
    prompt = await model.render(request.messages, kwargs)
    plan = model.plan(
        request,
        prompt,
        request.limit,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        stop_in_reasoning=request.stop_in_reasoning,
        constraint=constraint,
    )
    plan = replace(plan, thinking_budget=_budget(model, request, plan.sampling.max_tokens))
    decode = model.engine.tokenizer.decode
    kind = Phased if plan.phased else Thinking
    count = request.consensus or request.n or 1
    choices = [kind(index, plan, decode) for index in range(count)]
    request_id: str = http.state.request_id
    writer = ChatWriter(service, model, request, plan, choices, f"chatcmpl-{request_id}")
    if request.consensus is not None:
        writer.election = Election(plan, choices, service.voting)
        if exchange := EXCHANGE.get():
            exchange.report = writer.election.report
    events = service.run(model, plan, choices, writer.id, begun)
    if writer.election is not None:
        events = writer.election.hold(events)
    return await respond(http, events, writer, request.stream)


def _budget(model: Model, request: ChatRequest, room: int) -> int | None:
    budget = request.thinking_budget
    if request.reasoning_effort is not None:
        budget = int(EFFORTS[request.reasoning_effort] * room)
    if budget is None:
        return None
    return bounded(budget, room, len(model.closings[1].ids))


def _constraint(model: Model, wanted: ResponseFormat) -> Constraint | None:
    """The shape of the answer; ApiError 400 for a schema that is none, or that vLLM cannot keep."""
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Constraint(None)
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    schema = wanted.json_schema.json_schema
    if schema is None:
        raise ApiError(400, "response_format has no 'schema'", param="response_format")
    constraint = Constraint(schema)
    try:
        Draft202012Validator.check_schema(schema)
        model.engine.check_constraint(constraint)
    except (SchemaError, RequestRefused, RecursionError) as error:
        reason = error.message if isinstance(error, SchemaError) else str(error)
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply"
        raise ApiError(
            400, f"the schema cannot be used: {reason}", param="response_format"
        ) from error
    return constraint


def _entry(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode())}


class ChatWriter:
    """Writes the chunks or the body of one chat response."""

    def __init__(
        self,
        service: Service,
        model: Model,
        request: ChatRequest,
        plan: Plan,
        choices: Sequence[Thinking],
        identity: str,
    ) -> None:
        self.id = identity
        self._created = int(time.time())
        self._model = model.name
        self._choices = choices
        self._prompt_tokens = len(plan.prompt_ids)
        self._keys = service.settings.reasoning_field.keys
        self._show_reasoning = request.include_reasoning
        self._with_usage = request.include_usage
        self._with_logprobs = bool(request.logprobs)
        self._head = (
            f'data: {{"id":{dumps(self.id)},"object":"chat.completion.chunk",'
            f'"created":{self._created},"model":{dumps(self._model)},"choices":['
        )
        self._tail = '],"usage":null}\n\n' if self._with_usage else "]}\n\n"
        self.election: Election | None = None
        """Set when only one of the choices is written: the elected one."""
        self._begun: set[int] = set()
        self._thought_shown: set[int] = set()

    def chunks(self, choice: Choice, pieces: Sequence[Piece]) -> bytes:
        index = choice.index
        if self.election is not None and choice is not self.election.winner:
            return SIGN_OF_LIFE
        out: list[str] = []
        if index not in self._begun:
            self._begun.add(index)
            out.append(self._chunk(index, '"role":"assistant"'))
        for channel, text in pieces:
            if channel is Channel.ANSWER:
                self._close_empty_thought(choice, out)
                entries = self._taken(choice)
                out.append(self._chunk(index, f'"content":{dumps(text)}', entries))
            elif self._show_reasoning:
                self._thought_shown.add(index)
                out.append(self._chunk(index, self._thought(text)))
        if choice.finish is not None:
            self._close_empty_thought(choice, out)
            out.append(self._final_chunk(choice))
        return "".join(out).encode()

    def last(self) -> bytes:
        if not self._with_usage:
            return b""
        counted = dumps(usage(self._prompt_tokens, self._choices))
        return f'{self._head}],"usage":{counted}}}\n\n'.encode()

    def body(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        shown, beside = self._choices, {}
        if self.election is not None:
            assert self.election.winner is not None
            shown, beside = [self.election.winner], {"consensus": self.election.report()}
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._whole(choice, texts[choice.index]) for choice in shown],
            "usage": usage(self._prompt_tokens, self._choices),
        } | beside

    def _whole(self, choice: Thinking, pieces: Sequence[Piece]) -> dict[str, Any]:
        answer = "".join(text for channel, text in pieces if channel is Channel.ANSWER)
        thought = "".join(text for channel, text in pieces if channel is Channel.REASONING)
        no_thought = choice.status is SplitStatus.UNTAGGED or not self._show_reasoning
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if choice.truncated else answer,
            "refusal": None,
        }
        message |= dict.fromkeys(self._keys, None if no_thought else thought)
        assert choice.finish is not None
        return {
            "index": choice.index,
            "message": message,
            "logprobs": json.loads(self._taken(choice)) if self._with_logprobs else None,
            "finish_reason": choice.finish.value,
            "reasoning_truncated": choice.truncated or choice.forced,
        }

    def _taken(self, choice: Choice) -> str:
        """The logprobs settled since the last chunk, as JSON."""
        if not self._with_logprobs:
            return "null"
        content = [
            _entry(one) | {"top_logprobs": [_entry(other) for other in one.top]}
            for one in choice.take_logprobs()
        ]
        return dumps({"content": content, "refusal": None})

    def _close_empty_thought(self, choice: Choice, out: list[str]) -> None:
        """Tell an empty thought from none: readers who join the pieces get "" and not null."""
        index = choice.index
        if (
            self._show_reasoning
            and index not in self._thought_shown
            and choice.status is not SplitStatus.UNTAGGED
        ):
            self._thought_shown.add(index)
            out.append(self._chunk(index, self._thought("")))

    def _thought(self, text: str) -> str:
        quoted = dumps(text)
        return ",".join(f'"{key}":{quoted}' for key in self._keys)

    def _chunk(self, index: int, delta: str, logprobs: str = "null") -> str:
        return (
            f'{self._head}{{"index":{index},"delta":{{{delta}}},"logprobs":{logprobs},'
            f'"finish_reason":null}}{self._tail}'
        )

    def _final_chunk(self, choice: Choice) -> str:
        assert choice.finish is not None
        truncated = dumps(choice.forced or choice.status is SplitStatus.TRUNCATED)
        logprobs = self._taken(choice) if choice.logprobs else "null"
        tail = self._tail
        if self.election is not None:
            tail = f'],"consensus":{dumps(self.election.report())}{tail[1:]}'
        return (
            f'{self._head}{{"index":{choice.index},"delta":{{}},"logprobs":{logprobs},'
            f'"finish_reason":"{choice.finish.value}","reasoning_truncated":{truncated}}}'
            f"{tail}"
        )
