"""Calls of the client's functions, found in answers.

Owns what a tool choice means: which functions the model is shown, the shape a forced call must
have, and reading calls out of an answer as it arrives. It sees answers only, so a thought never
calls anything. How models write calls of their own accord is a `ToolParser`'s business.
"""

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from thinkgate_serve.engine import BoundCalls, Constraint, Tokenizer
from thinkgate_serve.failures import ApiError
from thinkgate_serve.messages import NamedTool, Tool
from thinkgate_serve.protocol import ChatRequest
from thinkgate_serve.schemas import placed

__all__ = ["Call", "CallDelta", "Reader", "Said", "ToolParser", "ToolUse", "Verbatim", "gather"]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A call begins, when it has a name, or its arguments go on."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


Said = str | CallDelta


@dataclass(slots=True)
class Call:
    """One call, as far as it was made."""

    id: str
    name: str
    arguments: str


class Reader:
    """What one answer says: text, or calls."""

    keeps_special = False
    """Whether calls are written with special tokens, whose text must then be kept."""

    def __init__(self) -> None:
        self.called = False
        """Whether a call has begun."""

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        """What `text`, whose tokens are `ids`, settles."""
        raise NotImplementedError

    def close(self) -> Sequence[Said]:
        """What was held back; the answer ends here."""
        return ()

    def whole(self, text: str) -> Sequence[Said]:
        """All that an answer says which did not arrive in pieces."""
        return [*self.feed(text, ()), *self.close()]

    def _begin(
        self, index: int, name: str, arguments: str = "", given_id: str | None = None
    ) -> CallDelta:
        self.called = True
        return CallDelta(index, arguments, name, given_id or f"call_{uuid.uuid4().hex[:24]}")


class Verbatim(Reader):
    """An answer that is text."""

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        return (text,) if text else ()


class NamedCall(Reader):
    """An answer that is the arguments of one function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        if not text:
            return ()
        return (CallDelta(0, text) if self.called else self._begin(0, self._name, text),)


# Grammars write a schema's properties in its order, so the name always comes first.
CALL_HEAD = re.compile(r'[\s,\[]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*')
CALL_TAIL = re.compile(r"\s*\}")


class CallArray(Reader):
    """An answer of the shape `[{"name": …, "parameters": {…}}, …]`."""

    def __init__(self) -> None:
        super().__init__()
        self._held = ""
        self._index = -1
        self._depth = 0
        self._quoted = self._escaped = self._inside = False

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        self._held += text
        said: list[Said] = []
        while self._held:
            if self._inside:
                end = self._end_of_arguments()
                said.append(CallDelta(self._index, self._held[:end]))
                self._held = self._held[end:]
                continue
            tail = CALL_TAIL.match(self._held) if self._index >= 0 else None
            head = CALL_HEAD.match(self._held, tail.end() if tail else 0)
            if head is None:
                break
            self._index += 1
            self._inside = True
            self._held = self._held[head.end() :]
            said.append(self._begin(self._index, json.loads(head[1])))
        return said

    def _end_of_arguments(self) -> int:
        """How much of what is held belongs to the arguments; leaves them when they are complete."""
        for at, char in enumerate(self._held, 1):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._inside = False
                    return at
        return len(self._held)


class OneCall(Reader):
    """Another reader, of whose calls only the first is passed on."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.keeps_special = reader.keeps_special
        self._reader = reader

    def feed(self, text: str, ids: Sequence[int]) -> Sequence[Said]:
        return self._first(self._reader.feed(text, ids))

    def close(self) -> Sequence[Said]:
        return self._first(self._reader.close())

    def whole(self, text: str) -> Sequence[Said]:
        return self._first(self._reader.whole(text))

    def _first(self, said: Iterable[Said]) -> Sequence[Said]:
        kept = [one for one in said if isinstance(one, str) or one.index == 0]
        self.called = self._reader.called
        return kept


def gather(said: Iterable[Said]) -> tuple[str, list[Call]]:
    """The text and the calls of an answer."""
    text: list[str] = []
    calls: list[Call] = []
    for one in said:
        if isinstance(one, str):
            text.append(one)
        elif one.name is not None:
            calls.append(Call(one.id or "", one.name, one.arguments))
        else:
            calls[one.index].arguments += one.arguments
    return "".join(text), calls


class ToolParser(Protocol):
    """One model family's way of writing calls."""

    def check(self, tokenizer: Tokenizer) -> None:
        """ConfigError when it does not fit the model."""
        ...

    def reader(self, tools: Sequence[Tool], tokenizer: Tokenizer) -> Reader:
        """A reader of one answer."""
        ...

    def bound(self, tools: Sequence[Tool]) -> Mapping[str, Any] | None:
        """xgrammar's format of answers in which calls of the strict `tools` fit their schemas.

        None where no grammar knows all that the reader takes for a call.
        """
        ...


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What one request's tools come to."""

    shown: Sequence[Tool] = ()
    """Those the chat template is to show the model."""
    constraint: Constraint | BoundCalls | None = None
    """The shape of an answer that must be a call, or of the calls of one that may be any text."""
    make_reader: Callable[[], Reader] = Verbatim
    held: Collection[str] = ()
    """Functions whose calls fit their schemas."""

    @classmethod
    def of(
        cls,
        request: ChatRequest,
        parser: ToolParser | None,
        tokenizer: Tokenizer,
        loose: Collection[str] = (),
    ) -> "ToolUse":
        """ApiError 400 when calls cannot be made as asked.

        Functions in `loose` are strict only when they say so, whatever the request's default.
        """
        tools, choice = request.tools or [], request.tool_choice or "auto"
        if not tools or choice == "none":
            return cls()
        if request.response_format is not None and request.response_format.type != "text":
            raise ApiError(
                400,
                "an answer cannot both call tools and have the shape of response_format; "
                "set tool_choice to 'none', or leave response_format out",
                param="response_format",
            )
        if isinstance(choice, NamedTool):
            name = choice.function.name
            (tool,) = (tool for tool in tools if tool.function.name == name)
            return cls(tools, Constraint(_parameters(tool)), lambda: NamedCall(name), {name})
        one = request.parallel_tool_calls is False
        if choice == "required":
            names = [tool.function.name for tool in tools]
            return cls(tools, Constraint(_array_of_calls(tools, one)), CallArray, names)
        if parser is None:
            raise ApiError(
                400,
                "this server was started without --tool-parser, so it cannot find calls in what "
                "the model writes of its own accord; start it with one ('hermes', ...), or set "
                "tool_choice to 'required' or to a function",
                param="tool_choice",
            )

        def make_reader() -> Reader:
            reader = parser.reader(tools, tokenizer)
            return OneCall(reader) if one else reader

        calls = _strictly([_settled(tool, request, loose) for tool in tools], parser)
        asked = [tool.function.name for tool in tools if tool.function.strict]
        if calls is None and asked:
            raise _not_strictly(asked[0])
        return cls(tools, calls, make_reader, calls.arguments.keys() if calls else ())


def _settled(tool: Tool, request: ChatRequest, loose: Collection[str]) -> Tool:
    """The function with parameters, and strict or not."""
    function = tool.function
    strict = function.strict
    if strict is None:
        strict = request.strict_by_default and function.name not in loose
    settled = {"parameters": _parameters(tool), "strict": strict}
    return tool.model_copy(update={"function": function.model_copy(update=settled)})


def _strictly(tools: Sequence[Tool], parser: ToolParser) -> BoundCalls | None:
    """What holds calls of strict functions to their schemas; None without any, or when nothing
    can."""
    strict = {tool.function.name: _parameters(tool) for tool in tools if tool.function.strict}
    bound = parser.bound(tools) if strict else None
    return None if bound is None else BoundCalls(bound, strict)


def _not_strictly(name: str) -> ApiError:
    return ApiError(
        400,
        f"'{name}' is strict, and this server's tool parser reads calls that no grammar can hold "
        "to a schema; set tool_choice to 'required' or to a function, which holds every call to "
        "its schema, or set strict to false",
        param="tools",
    )


def _parameters(tool: Tool) -> dict[str, Any]:
    parameters = tool.function.parameters or {"properties": {}}
    if parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        return parameters  # beside these nothing else holds
    return {"type": "object", **parameters}


def _array_of_calls(tools: Sequence[Tool], one: bool) -> dict[str, Any]:
    """The schema of a list of calls, in which `$defs` has the parameters of each function."""
    shapes: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {}
    for tool in tools:
        name = tool.function.name
        place = f"#/$defs/{name}"
        parameters[name] = placed(_parameters(tool), place)
        shapes.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "parameters": {"$ref": place}},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": shapes}}
    return schema | ({"maxItems": 1} if one else {}) | {"$defs": parameters}
