"""`POST /v1/chat/completions`, streamed and not.

Owns the shape of chat responses. A thought goes to `reasoning_content` and `reasoning` (or one of
them), never into `content`: "" when the model closed an empty thought, null when it opened none. A
choice that ended inside its thought has null content, `finish_reason` "length" and
`reasoning_truncated` true; that field is on every choice, beside `finish_reason`, and true as well
when the thought was closed for the model at its budget.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.consensus import Election
from thinkgate_serve.conversation import Conversation, prepare
from thinkgate_serve.engine import Finish, TokenLogprob
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece, Thinking
from thinkgate_serve.logs import EXCHANGE
from thinkgate_serve.model import Model
from thinkgate_serve.protocol import ChatRequest
from thinkgate_serve.service import Service
from thinkgate_serve.tools import CallDelta, Said, gather
from thinkgate_serve.wire import (
    DONE,
    SIGN_OF_LIFE,
    dumps,
    error_event,
    logprob_entries,
    respond,
    usage,
)

__all__ = ["chat_completion"]


async def chat_completion(service: Service, request: ChatRequest, http: Request) -> Response:
    """Answer one chat request."""
    begun = time.perf_counter()
    model = await service.bind(request.model)
    conversation = await prepare(model, request, service.settings.tool_parser)
    request_id: str = http.state.request_id
    writer = ChatWriter(service, model, request, conversation, f"chatcmpl-{request_id}")
    plan, choices = conversation.plan, conversation.choices
    events = service.run(model, plan, choices, writer.id, begun)
    if request.consensus is not None:
        writer.election = Election(plan, choices, service.voting)
        if exchange := EXCHANGE.get():
            exchange.report = writer.election.report
        events = writer.election.hold(events)
    return respond(events, writer, request.stream)


class ChatWriter:
    """Writes the chunks or the body of one chat response."""

    def __init__(
        self,
        service: Service,
        model: Model,
        request: ChatRequest,
        conversation: Conversation,
        identity: str,
    ) -> None:
        self.id = identity
        self._created = int(time.time())
        self._model = model.name
        self._choices = conversation.choices
        self._readers = conversation.readers
        self._prompt_tokens = len(conversation.plan.prompt_ids)
        self._keys = service.settings.reasoning_field.keys
        # Joined by a thought: every key with it.
        self._around_thought = [f'"{self._keys[0]}":', *(f',"{k}":' for k in self._keys[1:]), ""]
        self._show_reasoning = request.include_reasoning
        self._with_usage = request.include_usage
        self._with_logprobs = bool(request.logprobs)
        self._with_reasoning_logprobs = request.logprobs_in_reasoning
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
        reader = self._readers[index]
        for channel, text in pieces:
            if channel is Channel.ANSWER:
                self._close_empty_thought(choice, out)
                self._write(choice, reader.feed(text, choice.take_ids()), out)
            elif self._show_reasoning:
                self._thought_shown.add(index)
                out.append(self._thought(choice, text))
        if choice.finish is not None:
            self._close_empty_thought(choice, out)
            self._write(choice, reader.close(), out)
            out.append(self._final_chunk(choice))
        return "".join(out).encode()

    def last(self) -> bytes:
        if not self._with_usage:
            return DONE
        counted = dumps(usage(self._prompt_tokens, self._choices))
        return f'{self._head}],"usage":{counted}}}\n\n'.encode() + DONE

    def failed(self, error: ApiError) -> bytes:
        return error_event(error)

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
        content, calls = gather(self._readers[choice.index].whole(answer))
        if choice.truncated or (calls and not content.strip()):
            content = None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        no_thought = choice.status is SplitStatus.UNTAGGED or not self._show_reasoning
        message |= dict.fromkeys(self._keys, None if no_thought else thought)
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": json.loads(self._taken(choice)),
            "finish_reason": self._finish_reason(choice),
            "reasoning_truncated": choice.truncated or choice.forced,
        }

    def _finish_reason(self, choice: Choice) -> str:
        assert choice.finish is not None
        called = self._readers[choice.index].called
        return "tool_calls" if called and choice.finish is Finish.STOP else choice.finish.value

    def _taken(self, choice: Choice) -> str:
        """The logprobs settled since the last chunk, as JSON."""
        if not self._with_logprobs:
            return "null"
        return self._logprobs(choice.take_logprobs(), choice.take_reasoning_logprobs())

    def _logprobs(self, answer: list[TokenLogprob], thought: list[TokenLogprob]) -> str:
        found: dict[str, Any] = {"content": logprob_entries(answer), "refusal": None}
        if self._with_reasoning_logprobs:
            found["reasoning"] = logprob_entries(thought)
        return dumps(found)

    def _close_empty_thought(self, choice: Choice, out: list[str]) -> None:
        """Tell an empty thought from none: readers who join the pieces get "" and not null."""
        index = choice.index
        if (
            self._show_reasoning
            and index not in self._thought_shown
            and choice.status is not SplitStatus.UNTAGGED
        ):
            self._thought_shown.add(index)
            out.append(self._thought(choice, ""))

    def _thought(self, choice: Choice, text: str) -> str:
        delta = dumps(text).join(self._around_thought)
        tokens = choice.take_reasoning_logprobs() if self._with_reasoning_logprobs else []
        return self._chunk(choice.index, delta, self._logprobs([], tokens) if tokens else "null")

    def _write(self, choice: Choice, said: Sequence[Said], out: list[str]) -> None:
        for one in said:
            if isinstance(one, CallDelta):
                delta = f'"tool_calls":[{dumps(_call(one))}]'
            else:
                delta = f'"content":{dumps(one)}'
            out.append(self._chunk(choice.index, delta, self._taken(choice)))

    def _chunk(self, index: int, delta: str, logprobs: str = "null") -> str:
        return (
            f'{self._head}{{"index":{index},"delta":{{{delta}}},"logprobs":{logprobs},'
            f'"finish_reason":null}}{self._tail}'
        )

    def _final_chunk(self, choice: Choice) -> str:
        truncated = dumps(choice.forced or choice.status is SplitStatus.TRUNCATED)
        left = choice.logprobs or choice.reasoning_logprobs
        logprobs = self._taken(choice) if left else "null"
        tail = self._tail
        if self.election is not None:
            tail = f'],"consensus":{dumps(self.election.report())}{tail[1:]}'
        return (
            f'{self._head}{{"index":{choice.index},"delta":{{}},"logprobs":{logprobs},'
            f'"finish_reason":"{self._finish_reason(choice)}",'
            f'"reasoning_truncated":{truncated}}}{tail}'
        )


def _call(delta: CallDelta) -> dict[str, Any]:
    """A piece of a call, as chunks have it."""
    function: dict[str, Any] = {"arguments": delta.arguments}
    if delta.name is None:
        return {"index": delta.index, "function": function}
    function = {"name": delta.name, **function}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
