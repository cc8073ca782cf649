"""`POST /v1/chat/completions`, streamed and not.

Owns the shape of chat responses. A thought goes to `reasoning_content` and `reasoning` (or one of
them), never into `content`: "" when the model closed an empty thought, null when it opened none. A
choice that ended inside its thought has null content, `finish_reason` "length" and
`reasoning_truncated` true; that field is on every choice, beside `finish_reason`.
"""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response

from thinkgate.format import Channel, SplitStatus
from thinkgate_serve.generation import Choice, Piece, Plan, Thinking
from thinkgate_serve.protocol import ChatRequest
from thinkgate_serve.service import Service
from thinkgate_serve.wire import dumps, respond, usage

__all__ = ["chat_completion"]


async def chat_completion(service: Service, request: ChatRequest, http: Request) -> Response:
    """Answer one chat request."""
    begun = time.perf_counter()
    service.check_model(request.model)
    prompt = await service.render(request.messages, request.chat_template_kwargs)
    plan = service.plan(request, prompt, request.limit, stop_in_reasoning=request.stop_in_reasoning)
    decode = service.engine.tokenizer.decode
    choices = [Thinking(index, plan, decode) for index in range(request.n or 1)]
    request_id: str = http.state.request_id
    writer = ChatWriter(service, request, plan, choices, f"chatcmpl-{request_id}")
    events = service.run(plan, choices, writer.id, begun)
    return await respond(http, events, writer, request.stream)


class ChatWriter:
    """Writes the chunks or the body of one chat response."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        plan: Plan,
        choices: Sequence[Thinking],
        identity: str,
    ) -> None:
        self.id = identity
        self._created = int(time.time())
        self._model = service.card.name
        self._choices = choices
        self._prompt_tokens = len(plan.prompt_ids)
        self._keys = service.settings.reasoning_field.keys
        self._show_reasoning = request.include_reasoning
        self._with_usage = request.include_usage
        self._head = (
            f'data: {{"id":{dumps(self.id)},"object":"chat.completion.chunk",'
            f'"created":{self._created},"model":{dumps(self._model)},"choices":['
        )
        self._tail = '],"usage":null}\n\n' if self._with_usage else "]}\n\n"
        self._begun: set[int] = set()
        self._thought_shown: set[int] = set()

    def chunks(self, choice: Choice, pieces: Sequence[Piece]) -> bytes:
        index = choice.index
        out: list[str] = []
        if index not in self._begun:
            self._begun.add(index)
            out.append(self._chunk(index, '"role":"assistant"'))
        for channel, text in pieces:
            if channel is Channel.ANSWER:
                self._close_empty_thought(choice, out)
                out.append(self._chunk(index, f'"content":{dumps(text)}'))
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
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._whole(choice, texts[choice.index]) for choice in self._choices],
            "usage": usage(self._prompt_tokens, self._choices),
        }

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
            "logprobs": None,
            "finish_reason": choice.finish.value,
            "reasoning_truncated": choice.truncated,
        }

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

    def _chunk(self, index: int, delta: str) -> str:
        return (
            f'{self._head}{{"index":{index},"delta":{{{delta}}},"logprobs":null,'
            f'"finish_reason":null}}{self._tail}'
        )

    def _final_chunk(self, choice: Choice) -> str:
        assert choice.finish is not None
        truncated = dumps(choice.status is SplitStatus.TRUNCATED)
        return (
            f'{self._head}{{"index":{choice.index},"delta":{{}},"logprobs":null,'
            f'"finish_reason":"{choice.finish.value}","reasoning_truncated":{truncated}}}'
            f"{self._tail}"
        )
