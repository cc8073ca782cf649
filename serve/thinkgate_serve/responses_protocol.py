"""What `POST /v1/responses` takes: OpenAI's other way to say what a chat request says.

Owns its wire models and their translation into a `ChatRequest`, the one form in which the rest of
the server knows a conversation. Nothing is stored: a request brings all earlier items along.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

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

__all__ = ["LOGPROBS", "OUR_NAMES", "ResponsesRequest", "in_our_words"]

LOGPROBS = "message.output_text.logprobs"


class InputPart(Wire):
    """A piece of text, of a message or of a function's result."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "prompt_cache_breakpoint": (),
    }

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

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ()}

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[InputPart]


class ThoughtPart(Wire):
    """A piece of an earlier thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class InputReasoning(Item):
    """An earlier thought, of the items up to the next turn."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"encrypted_content": ()}

    type: Literal["reasoning"]
    summary: Many[ThoughtPart] = Field(default_factory=list)
    """Read where there is no content."""
    content: Many[ThoughtPart] | None = None


class InputFunctionCall(Item, FunctionCall):
    """A call the model made."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"namespace": (), "caller": ()}

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]


class InputFunctionOutput(Item):
    """What a called function gave."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": ()}

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

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
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

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

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

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "generate_summary": ("auto",),
        "context": ("auto",),
        "mode": ("standard",),
    }

    effort: Effort | None = None
    """A thinking budget as a share of the tokens that may be generated."""
    summary: Literal["auto"] | None = None
    """Accepted; thoughts come whole, so they need no summary."""


class ResponsesRequest(Conversing):
    """`POST /v1/responses`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "stream_options": ({}, {"include_obfuscation": False}),
        "truncation": ("disabled",),
    }
    instead: ClassVar[dict[str, str]] = {
        "previous_response_id": "nothing is stored; send the earlier items in 'input'",
        "conversation": "nothing is stored; send the earlier items in 'input'",
        "store": "nothing is stored; send false, or leave it out",
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
    include: Many[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default_factory=list, max_length=8
    )
    """More to send: the answer's logprobs. Thoughts are sent in the open, never encrypted."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many likely tokens to list in each place; needs the logprobs to be included."""
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Sent back as it is."""
    prompt_cache_key: str | None = None
    """Accepted for compatibility; what prompts share is found without it."""
    safety_identifier: str | None = None
    """Accepted for compatibility; nothing is stored by it."""

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
            "logprobs": LOGPROBS in self.include,
            "top_logprobs": self.top_logprobs,
        }
        try:
            return ChatRequest.model_validate(fields)
        except ValidationError as error:
            errors = [one | {"loc": ("body", *one["loc"])} for one in error.errors()]
            raise in_our_words(invalid_request(errors)) from error

    def _format(self) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, SchemaFormat):
            schema = JsonSchema.model_validate(wanted.model_dump(exclude={"type"}, by_alias=True))
            return JsonSchemaFormat(type="json_schema", json_schema=schema)
        return wanted


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


OUR_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}


def in_our_words(error: ApiError) -> ApiError:
    """An error about a chat request, naming the parameters this endpoint has."""
    if error.param is None or error.param.split(".")[0].split("[")[0] == "messages":
        param = "input" if error.param else None
    else:
        param = OUR_NAMES.get(error.param, error.param)
    said = "|".join(set(OUR_NAMES) - {"messages", "logprobs"})
    message = re.sub(rf"\b({said})\b", lambda found: OUR_NAMES[found[1]], error.message)
    message = message.replace("'messages'", "'input'")
    return ApiError(error.status, message, param=param, code=error.code)
