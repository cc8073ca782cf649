"""What `POST /v1/responses` takes: OpenAI's other way to say what a chat request says.

Owns its wire models and their translation into a `ChatRequest`, the one form in which the rest of
the server knows a conversation. Nothing is stored: a request brings all earlier items along.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from thinkgate_serve.elsewhere import CONVERSATION_ELSEWHERE, Absent
from thinkgate_serve.failures import ApiError, invalid_request
from thinkgate_serve.messages import (
    MAX_MESSAGES,
    FunctionCall,
    FunctionDefinition,
    Many,
    Message,
    NamedTool,
    Tool,
    ToolCall,
    ToolName,
    Wire,
    tag_of,
)
from thinkgate_serve.protocol import (
    FORMATS,
    MAX_LOGPROBS,
    ChatRequest,
    Conversing,
    Effort,
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    Sample,
    TextFormat,
)

__all__ = ["OUR_NAMES", "ResponsesRequest", "in_our_words"]

LOGPROBS = "message.output_text.logprobs"

EARLIER = "nothing is stored; send the earlier items in 'input'"
NO_LOGPROBS = f"it needs include to hold '{LOGPROBS}'"

OUR_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""Of what a chat request says."""


def _renamed(words: str) -> str:
    """Words about a chat request, about one of ours."""
    said = "|".join(set(OUR_NAMES) - {"messages", "logprobs"})
    words = re.sub(rf"\b({said})\b", lambda found: OUR_NAMES[found[1]], words)
    words = words.replace("it needs logprobs to be true", NO_LOGPROBS)
    return words.replace("'messages'", "'input'")


class InputPart(Wire):
    """A piece of text, of a message or of a function's result."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "annotations": Absent([]),
        "prompt_cache_breakpoint": Absent(),
    }
    unread: ClassVar[frozenset[str]] = frozenset({"parsed"})

    type: Literal["input_text", "output_text"]
    text: str
    logprobs: Many[Any] | None = None
    """As they came back; not read."""


class Item(Wire):
    """What all items have, as it came back from this server; not read."""

    id: str | None = None
    status: str | None = None


class InputMessage(Item):
    """One turn."""

    unsupported: ClassVar[dict[str, Absent]] = {"phase": Absent()}

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[InputPart]


class ThoughtPart(Wire):
    """A piece of an earlier thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(Item):
    """An earlier thought, of the items up to the next turn."""

    unsupported: ClassVar[dict[str, Absent]] = {"encrypted_content": Absent()}

    type: Literal["reasoning"]
    summary: Many[ThoughtPart] = Field(default_factory=list)
    """Read where there is no content."""
    content: Many[ThoughtPart] | None = None


class InputFunctionCall(Item, FunctionCall):
    """A call the model made."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "namespace": Absent(),
        "caller": Absent(),
        "async": Absent(False),
        "async_": Absent(False),  # so the SDK calls it in Python
    }

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]


class InputFunctionOutput(Item):
    """What a called function gave."""

    unsupported: ClassVar[dict[str, Absent]] = {"caller": Absent()}

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: str | Many[InputPart]


def _kind(item: Any) -> str:
    return tag_of({"type": "message", **item} if isinstance(item, dict) else item)


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputReasoning, Tag("<reasoning>")]
    | Annotated[InputFunctionCall, Tag("<function_call>")]
    | Annotated[InputFunctionOutput, Tag("<function_call_output>")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="an item is of type 'message', 'reasoning', 'function_call' or "
        "'function_call_output'",
    ),
]


class FunctionTool(FunctionDefinition):
    """A function the model may call."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "allowed_callers": Absent(["direct"]),
        "async": Absent(False),
        "defer_loading": Absent(False),
        "output_schema": Absent(),
        "function": Absent(instead="name and parameters stand beside 'type'"),
    }

    type: Literal["function"]

    def as_chat(self) -> Tool:
        """The same, nested."""
        fields = self.model_dump(exclude={"type"})
        return Tool(type="function", function=FunctionDefinition(**fields))


class NamedFunction(ToolName):
    """The one function that must be called."""

    type: Literal["function"]


class SchemaFormat(JsonSchema):
    """An answer that fits a JSON schema."""

    type: Literal["json_schema"]


class TextOptions(Wire):
    """How the answer is written."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "verbosity": Absent("medium", instead="say in instructions how long the answer is to be")
    }

    format: (
        Annotated[
            Annotated[TextFormat, Tag("<text>")]
            | Annotated[JsonObjectFormat, Tag("<json_object>")]
            | Annotated[SchemaFormat, Tag("<json_schema>")],
            FORMATS,
        ]
        | None
    ) = None
    """The shape of the answer; the thought is free."""


class ReasoningOptions(Wire):
    """How the model thinks."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "generate_summary": Absent("auto"),
        "context": Absent("auto"),
        "mode": Absent("standard"),
    }

    effort: Effort | None = None
    """A thinking budget as a share of the tokens that may be generated."""
    summary: Literal["auto"] | None = None
    """Accepted; thoughts come whole, so they need no summary."""


class ResponsesRequest(Conversing):
    """`POST /v1/responses`."""

    unsupported: ClassVar[dict[str, Absent]] = {
        **{
            name: Absent(*absent.neutral, instead=absent.instead and _renamed(absent.instead))
            for name, absent in CONVERSATION_ELSEWHERE.items()
        },
        **{name: Absent(instead=f"use {ours}") for name, ours in OUR_NAMES.items()},
        "max_completion_tokens": Absent(instead="use max_output_tokens"),
        "n": Absent(1, instead="one response answers a request"),
        "background": Absent(False),
        "context_management": Absent([]),
        "conversation": Absent(instead=EARLIER),
        "max_tool_calls": Absent(instead="parallel_tool_calls false allows one"),
        "previous_response_id": Absent(instead=EARLIER),
        "prompt": Absent(),
        "stream_options": Absent({}, {"include_obfuscation": False}),
        "truncation": Absent("disabled", instead="a prompt that does not fit is an error"),
    }
    input: str | Annotated[Many[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    """A user's message, or all items of the conversation."""
    instructions: str | None = None
    """A system message before all others."""
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """Reasoning counts."""
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: Many[FunctionTool] | None = None
    """Functions the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    """Whether it must call one, and which; with tools the default is `auto`."""
    include: (
        Annotated[
            Many[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            Field(max_length=8),
        ]
        | None
    ) = None
    """More to send: the answer's logprobs. Thoughts are sent in the open, never encrypted."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many likely tokens to list in each place; needs the logprobs to be included."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Sent back as it is."""

    @property
    def with_logprobs(self) -> bool:
        """Whether the answer's are asked for."""
        return LOGPROBS in (self.include or ())

    def as_chat(self) -> ChatRequest:
        """The same request in chat's words; ApiError 400 for values that contradict each other."""
        shared = set(Sample.model_fields) | set(Conversing.model_fields)
        fields: dict[str, Any] = {name: getattr(self, name) for name in shared}
        choice = self.tool_choice
        if isinstance(choice, NamedFunction):
            choice = NamedTool(type="function", function=ToolName(name=choice.name))
        fields |= {
            "messages": _messages(self.instructions, self.input),
            "max_tokens": self.max_output_tokens,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": self._format(),
            "tools": None if self.tools is None else [tool.as_chat() for tool in self.tools],
            "tool_choice": choice,
            "logprobs": self.with_logprobs,
            "top_logprobs": self.top_logprobs,
        }
        try:
            return Translated.model_validate(fields)
        except ValidationError as error:
            errors = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
            raise in_our_words(invalid_request(errors)) from error

    def _format(self) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, SchemaFormat):
            schema = JsonSchema.model_validate(wanted.model_dump(exclude={"type"}, by_alias=True))
            return JsonSchemaFormat(type="json_schema", json_schema=schema)
        return wanted


class Translated(ChatRequest):
    """A response's request in chat's words."""

    strict_by_default: ClassVar[bool] = True


def _messages(instructions: str | None, given: str | Sequence[Any]) -> list[Message]:
    """Items as turns: thoughts and calls belong to the assistant's turn around them."""
    messages = [Message(role="system", content=instructions)] if instructions else []
    if isinstance(given, str):
        return [*messages, Message(role="user", content=given)]
    thought: str | None = None
    for item in given:
        last = messages[-1] if messages else None
        if isinstance(item, InputReasoning):
            thought = "".join(part.text for part in item.content or item.summary) or None
        elif isinstance(item, InputMessage):
            turn = Message(role=item.role, content=_text(item.content))
            if item.role == "assistant":
                turn.reasoning_content, thought = thought, None
            messages.append(turn)
        elif isinstance(item, InputFunctionCall):
            function = FunctionCall(name=item.name, arguments=item.arguments)
            if last is None or last.role != "assistant" or thought is not None:
                last = Message(role="assistant", reasoning_content=thought)
                messages.append(last)
                thought = None
            last.tool_calls = [
                *(last.tool_calls or []),
                ToolCall(id=item.call_id, function=function),
            ]
        else:
            content = _text(item.output)
            messages.append(Message(role="tool", tool_call_id=item.call_id, content=content))
    if thought is not None:
        messages.append(Message(role="assistant", reasoning_content=thought))
    return messages


def _text(content: str | Sequence[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def in_our_words(error: ApiError) -> ApiError:
    """An error about a chat request, naming the parameters this endpoint has."""
    if error.param is None or error.param.split(".")[0].split("[")[0] == "messages":
        param = "input" if error.param else None
    else:
        param = OUR_NAMES.get(error.param, error.param)
    return ApiError(error.status, _renamed(error.message), param=param, code=error.code)
