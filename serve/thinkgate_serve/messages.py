"""What a conversation is made of: turns, the tools a model may call, and the calls it made.

Owns their wire models, and `Wire`, what all models of request bodies have in common. It does not
know the requests they come in.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from thinkgate_serve.elsewhere import Absent

__all__ = [
    "MAX_KEYS",
    "MAX_MESSAGES",
    "Body",
    "FunctionDefinition",
    "JsonObject",
    "Many",
    "Message",
    "NamedTool",
    "Refused",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "Unsupported",
    "Wire",
    "tag_of",
]


MAX_DEPTH = 100
"""Of objects within objects, where a client may nest what it likes."""
MAX_MESSAGES = 10_000
MAX_KEYS = 1024
"""Of one object, and tokens with a bias."""

T = TypeVar("T")

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first bad item: to report each of a million takes gigabytes."""


def _is_shallow(value: Any, depth: int = MAX_DEPTH) -> Any:
    if depth == 0:
        raise ValueError(f"nested too deeply, {MAX_DEPTH} levels at most")
    children = value.values() if isinstance(value, dict) else value
    for child in children:
        if isinstance(child, dict | list):
            _is_shallow(child, depth - 1)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_is_shallow)]
"""Whatever the client puts into it."""


def tag_of(item: Any) -> str:
    """Which of a union's models `item` is, by its type; in brackets, because Pydantic puts tags
    into the locations of errors, where they are no field's name."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind}>"


class Wire(BaseModel):
    """Base of request bodies: unknown fields are errors, and "1" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    unsupported: ClassVar[dict[str, Absent]] = {}
    """Fields that others have here; a subclass lacks what its bases do."""
    unread: ClassVar[frozenset[str]] = frozenset()
    """What clients' own helpers add to what came from here, before it is sent back."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        tables = [vars(base).get("unsupported", {}) for base in reversed(cls.__mro__)]
        lacking = {name: absent for table in tables for name, absent in table.items()}
        cls.unsupported = {k: v for k, v in lacking.items() if k not in cls.model_fields}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_KEYS:
            raise ValueError(f"an object with {len(data)} keys, {MAX_KEYS} at most")
        kept: dict[str, Any] = {}
        for key, value in data.items():
            absent = cls.unsupported.get(key)
            if absent is None and key not in cls.unread:
                kept[key] = value
            elif absent is not None and value is not None and value not in absent.neutral:
                raise Unsupported(key, absent.instead)
        return kept


class Body(Wire):
    """The outermost object of a request."""

    @model_validator(mode="before")
    @classmethod
    def _is_json_text(cls, data: Any) -> Any:
        """Python's JSON may hold lone surrogates and NaN, which could not be sent back."""
        if not isinstance(data, dict) or _unsendable(data) is None:
            return data
        key, reason = next((k, why) for k in data if (why := _unsendable({k: data[k]})))
        raise Refused(str(key), reason)


def _unsendable(value: Any) -> str | None:
    """Why `value` is no JSON in UTF-8; None when it is."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda _: None).encode()
    except UnicodeError:
        return "a lone surrogate, which is not text"
    except ValueError:
        return "JSON has no NaN and no Infinity"
    except RecursionError:
        return "nested too deeply"
    return None


class Refused(ValueError):
    """A field that cannot be as it is, though it fits its own type."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class Unsupported(Refused):
    """A field that others have and this server has not was set."""

    def __init__(self, field: str, instead: str | None = None) -> None:
        super().__init__(field, f"'{field}' is not supported by this server")
        self.instead = instead


class TextPart(Wire):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(Wire):
    """Which function the model called, and with what."""

    unread: ClassVar[frozenset[str]] = frozenset({"parsed_arguments"})

    name: str
    arguments: str
    """A JSON object, as text."""

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, arguments: str) -> str:
        try:
            parsed = json.loads(arguments or "{}")
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the arguments are not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise ValueError("the arguments must be a JSON object")
        return arguments or "{}"


class ToolCall(Wire):
    """A call the model made in an earlier turn."""

    unread: ClassVar[frozenset[str]] = frozenset({"index"})

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates expect it: the arguments are an object, not its text."""
        function = {
            "name": self.function.name,
            "arguments": json.loads(self.function.arguments),
        }
        return {"id": self.id, "type": self.type, "function": function}


class Message(Wire):
    """One turn of a conversation."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "type": Absent("text"),  # lm-eval writes it
        "refusal": Absent(),
        "audio": Absent(),
        "annotations": Absent([]),
        "function_call": Absent(),
        "reasoning_details": Absent([]),
        "prefix": Absent(False, instead="turns are not gone on with; /v1/completions does that"),
    }
    unread: ClassVar[frozenset[str]] = frozenset({"parsed"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[TextPart] | None = None
    reasoning_content: str | None = None
    """An earlier turn's thought; whether the model sees it is the chat template's decision, or
    `reasoning_history`'s."""
    reasoning: str | None = None
    """The same under vLLM's name."""
    tool_calls: Many[ToolCall] | None = None
    """Of an assistant: the functions it called."""
    tool_call_id: str | None = None
    """Of a tool: the call this is the result of."""
    name: str | None = None
    """Of a tool: the function that gave this result."""

    @model_validator(mode="after")
    def _fits_its_role(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs the tool_call_id of the call it answers")
        if self.role != "tool":
            if self.name is not None:
                raise Unsupported("name", f"of a {self.role}; write it into the content")
            if self.tool_call_id is not None:
                raise Unsupported("tool_call_id", "it belongs to a tool's message")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"a {self.role} message makes no tool calls")
        return self

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thought(self) -> str | None:
        """An earlier turn's thought under either name."""
        return self.reasoning_content if self.reasoning_content is not None else self.reasoning

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates expect it."""
        turn: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.thought is not None:
            turn |= {"reasoning_content": self.thought, "reasoning": self.thought}
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.role == "tool":
            turn["tool_call_id"] = self.tool_call_id
            turn |= {"name": self.name} if self.name else {}
        return turn


class FunctionDefinition(Wire):
    """A function the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = None
    """JSON schema of its arguments, an object; none is a function without arguments."""
    strict: bool | None = None
    """Hold the arguments to the schema. A forced call always is; left out, `/v1/responses` does so
    where it can."""

    @field_validator("parameters")
    @classmethod
    def _describe_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters and parameters.get("type", "object") != "object":
            raise ValueError("arguments are an object, so their schema's type is 'object'")
        return parameters


class Tool(Wire):
    """Something the model may call: a function."""

    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """As models know functions from training; to be strict is asked of us, not of them."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class ToolName(Wire):
    """A function, by name."""

    name: str


class NamedTool(Wire):
    """The one function that must be called."""

    type: Literal["function"]
    function: ToolName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
