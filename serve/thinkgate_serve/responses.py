"""`POST /v1/responses`, streamed and not.

Owns the shape of responses: items of reasoning, message and function calls, and the events that
tell of them. A response that ended inside its thought has a reasoning item alone, status
"incomplete" and `reasoning_truncated` true, which is true as well when the thought was closed for
the model at its budget. What a request means is `conversation`'s business, as in chat.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from starlette.responses import Response

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.conversation import Conversation, prepare
from thinkgate_serve.engine import Finish
from thinkgate_serve.failures import ApiError
from thinkgate_serve.generation import Choice, Piece
from thinkgate_serve.model import Model
from thinkgate_serve.responses_protocol import (
    OUR_NAMES,
    FunctionTool,
    ResponsesRequest,
    in_our_words,
)
from thinkgate_serve.service import Service
from thinkgate_serve.tools import CallDelta, Said
from thinkgate_serve.wire import dumps, logprob_entries, respond

__all__ = ["respond_to"]


async def respond_to(service: Service, request: ResponsesRequest, http: Request) -> Response:
    """Answer one request."""
    begun = time.perf_counter()
    model = await service.bind(request.model)
    try:
        conversation = await prepare(model, request.as_chat(), service.settings.tool_parser)
        writer = ResponseWriter(model, request, conversation, http.state.request_id)
    except ApiError as error:
        raise in_our_words(error) from error
    plan = conversation.plan
    plan = replace(plan, shaped_by=OUR_NAMES.get(plan.shaped_by, plan.shaped_by))
    events = service.run(model, plan, conversation.choices, writer.id, begun)
    return respond(events, writer, request.stream)


@dataclass(slots=True)
class Item:
    """One item of the output while it is written."""

    id: str
    index: int
    type: str
    """`reasoning`, `message` or `function_call`."""
    status: str = "in_progress"
    text: list[str] = field(default_factory=list)
    """Of its content, or the arguments."""
    logprobs: list[dict[str, Any]] | None = None
    name: str = ""
    call_id: str = ""

    @property
    def event(self) -> str:
        """What its deltas are called."""
        names = {"reasoning": "reasoning_text", "message": "output_text"}
        return f"response.{names.get(self.type, 'function_call_arguments')}"

    def part(self) -> dict[str, Any]:
        """Its one piece of content."""
        text = "".join(self.text)
        if self.type == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {
            "type": "output_text",
            "text": text,
            "annotations": [],
            "logprobs": self.logprobs or [],
        }

    def shown(self) -> dict[str, Any]:
        """The item as clients get it; without content until it is complete."""
        shown: dict[str, Any] = {"id": self.id, "type": self.type, "status": self.status}
        content = [] if self.status == "in_progress" else [self.part()]
        if self.type == "reasoning":
            return shown | {"summary": [], "content": content, "encrypted_content": None}
        if self.type == "message":
            return shown | {"role": "assistant", "content": content}
        called = {"call_id": self.call_id, "name": self.name}
        return shown | called | {"arguments": "".join(self.text)}


class ResponseWriter:
    """Writes the events or the body of one response."""

    def __init__(
        self, model: Model, request: ResponsesRequest, conversation: Conversation, request_id: str
    ) -> None:
        self.id = f"resp_{request_id}"
        self._suffix = request_id
        self._request = request
        self._plan = conversation.plan
        (self._choice,) = conversation.choices
        (self._reader,) = conversation.readers
        self._held = conversation.held
        self._with_logprobs = request.with_logprobs
        self._created = int(time.time())
        self._model = model.name
        self._items: list[Item] = []
        self._sequence = 0
        self._begun = False

    def chunks(self, choice: Choice, pieces: Sequence[Piece]) -> bytes:
        out: list[str] = []
        if not self._begun:
            self._begun = True
            out += [self._lifecycle("created"), self._lifecycle("in_progress")]
        for channel, text in pieces:
            if channel is Channel.ANSWER:
                out += self._close_empty_thought()
                out += self._say(self._reader.feed(text, choice.take_ids()))
            else:
                out += self._think(text)
        if choice.finish is not None:
            out += self._close_empty_thought()
            out += self._say(self._reader.close())
            out += self._finish()
        return "".join(out).encode()

    def last(self) -> bytes:
        status = self._status()
        return self._lifecycle(status, usage=self._usage()).encode()

    def failed(self, error: ApiError) -> bytes:
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        shown = {"code": code, "message": error.message}
        return self._lifecycle("failed", error=shown).encode()

    def body(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        pieces = texts[self._choice.index]
        answer = "".join(text for channel, text in pieces if channel is Channel.ANSWER)
        # The items come about as in a stream; its events go nowhere.
        for channel, text in pieces:
            if channel is Channel.REASONING:
                self._think(text)
        self._close_empty_thought()
        self._say(self._reader.whole(answer))
        self._finish()
        return self._response(self._status(), usage=self._usage())

    def _think(self, text: str) -> list[str]:
        if not self._request.include_reasoning:
            return []
        opened = [] if self._items else self._open(self._item("reasoning", "rs"))
        return [*opened, self._delta(text)]

    def _close_empty_thought(self) -> list[str]:
        """An empty thought is an item too; none is none."""
        shown = self._items or not self._request.include_reasoning
        if shown or self._choice.status is SplitStatus.UNTAGGED:
            return []
        return self._open(self._item("reasoning", "rs"))

    def _say(self, said: Iterable[Said]) -> list[str]:
        out: list[str] = []
        for one in said:
            if isinstance(one, CallDelta):
                if one.name is not None:
                    item = self._item("function_call", "fc", name=one.name, call_id=one.id or "")
                    out += self._next(item)
                if one.arguments:
                    out.append(self._delta(one.arguments))
            else:
                if not self._items or self._items[-1].type != "message":
                    out += self._next(self._item("message", "msg"))
                out.append(self._delta(one))
        return out

    def _finish(self) -> list[str]:
        out: list[str] = []
        wants_answer = self._choice.status is not SplitStatus.TRUNCATED
        if wants_answer and (not self._items or self._items[-1].type == "reasoning"):
            out += self._next(self._item("message", "msg"))  # an answer, though an empty one
        return out + (self._close(self._status()) if self._items else [])

    def _item(self, kind: str, prefix: str, name: str = "", call_id: str = "") -> Item:
        index = len(self._items)
        identity = f"{prefix}_{self._suffix}_{index}"
        return Item(identity, index, kind, name=name, call_id=call_id)

    def _next(self, item: Item) -> list[str]:
        closed = self._close("completed") if self._items else []
        return [*closed, *self._open(item)]

    def _open(self, item: Item) -> list[str]:
        self._items.append(item)
        out = [
            self._event("response.output_item.added", output_index=item.index, item=item.shown())
        ]
        if item.type != "function_call":
            out.append(
                self._event("response.content_part.added", **self._at(item), part=item.part())
            )
        return out

    def _delta(self, text: str) -> str:
        item = self._items[-1]
        item.text.append(text)
        logprobs = ""
        if item.type == "message":
            entries = self._take_logprobs(item)
            logprobs = f',"logprobs":{dumps(entries)}' if entries else ',"logprobs":[]'
        content = "" if item.type == "function_call" else ',"content_index":0'
        sequence, self._sequence = self._sequence, self._sequence + 1
        return (
            f'event: {item.event}.delta\ndata: {{"type":"{item.event}.delta",'
            f'"sequence_number":{sequence},"item_id":"{item.id}",'
            f'"output_index":{item.index}{content},"delta":{dumps(text)}{logprobs}}}\n\n'
        )

    def _take_logprobs(self, item: Item) -> list[dict[str, Any]]:
        if not self._with_logprobs:
            return []
        entries = logprob_entries(self._choice.take_logprobs())
        item.logprobs = [*(item.logprobs or []), *entries]
        return entries

    def _close(self, status: str) -> list[str]:
        item = self._items[-1]
        item.status = status
        out: list[str] = []
        at = self._at(item)
        if item.type == "function_call":
            arguments = {"name": item.name, "arguments": "".join(item.text)}
            del at["content_index"]
            out.append(self._event(f"{item.event}.done", **at, **arguments))
        else:
            if item.type == "message":
                self._take_logprobs(item)
            part = item.part()
            done = {"text": part["text"]}
            done |= {"logprobs": part["logprobs"]} if item.type == "message" else {}
            out.append(self._event(f"{item.event}.done", **at, **done))
            out.append(self._event("response.content_part.done", **at, part=part))
        shown = item.shown()
        return [*out, self._event("response.output_item.done", output_index=item.index, item=shown)]

    @staticmethod
    def _at(item: Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> str:
        body = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: {dumps(body)}\n\n"

    def _lifecycle(self, name: str, **more: Any) -> str:
        status = "in_progress" if name == "created" else name
        return self._event(f"response.{name}", response=self._response(status, **more))

    def _status(self) -> str:
        return "incomplete" if self._choice.finish is Finish.LENGTH else "completed"

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        choice, asked, sampling = self._choice, self._request, self._plan.sampling
        echoed = asked.model_dump(
            include={"instructions", "max_output_tokens", "reasoning", "tool_choice"},
            by_alias=True,
            exclude_none=True,
        )
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        in_progress = status == "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "model": self._model,
            "output": [] if in_progress else [item.shown() for item in self._items],
            "reasoning_truncated": choice.forced
            or (not in_progress and choice.status is SplitStatus.TRUNCATED),
            "instructions": None,
            "max_output_tokens": None,
            "reasoning": {"effort": None, "summary": None},
            "tool_choice": "auto",
            **echoed,
            "tools": [self._shown_tool(tool) for tool in asked.tools or ()],
            "text": self._text_format(),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_logprobs": asked.top_logprobs or 0,
            "metadata": asked.metadata or {},
            "user": asked.user,
            "previous_response_id": None,
            "store": False,
            "background": False,
            "truncation": "disabled",
            "service_tier": "default",
            "usage": None,
            **more,
        }

    def _shown_tool(self, tool: FunctionTool) -> dict[str, Any]:
        strict = bool(tool.strict) or tool.name in self._held
        return tool.model_dump(exclude_none=True) | {"strict": strict}

    def _text_format(self) -> dict[str, Any]:
        wanted = self._request.text.format if self._request.text else None
        if wanted is None:
            return {"format": {"type": "text"}}
        return {"format": wanted.model_dump(by_alias=True, exclude_none=True)}

    def _usage(self) -> dict[str, Any]:
        choice, prompt = self._choice, len(self._plan.prompt_ids)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": choice.tokens,
            "output_tokens_details": {"reasoning_tokens": choice.reasoning_tokens},
            "total_tokens": prompt + choice.tokens,
        }
