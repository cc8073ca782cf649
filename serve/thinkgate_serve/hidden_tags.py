"""Tags within the strings of calls, kept from parsers that look for tags before they read JSON.

Owns where in an answer the strings of calls are. Such a parser ends `<tool_call>{"text":
"</tool_call>"}` within the string. JSON has another spelling for `<`, with which the same call
holds no tag; clients read the same arguments out of it.
"""

import re
from enum import Enum, auto

__all__ = ["HiddenTags"]

LESS_THAN = "\\u003c"
"""`<` in a JSON string."""
ESCAPES = frozenset('"\\/bfnrtu')
"""What may follow a backslash there."""
PARTS = re.compile(r'[^"\\<>\x00-\x1f]+|.', re.DOTALL)
"""Characters that change nothing together, the others one by one."""


class _In(Enum):
    TEXT = auto()
    CALL = auto()
    STRING = auto()
    ESCAPE = auto()
    BROKEN = auto()
    """A call with a string that no JSON has: left as it is, for the parser to judge."""


class HiddenTags:
    """Rewrites one answer as it arrives; the same for every way of cutting it.

    Nothing changes but `<` in strings between `begin`, where a call's JSON begins, and one of
    `ends`. All of these are of the shape `<…>`.
    """

    def __init__(self, begin: str, *ends: str) -> None:
        self._begin = begin
        self._ends = ends
        self._longest = max(map(len, (begin, *ends)))
        self._at = _In.TEXT
        self._tail = ""
        """The last characters outside strings, in which a tag may have begun."""

    def feed(self, text: str) -> str:
        return "".join(map(self._rewrite, PARTS.findall(text)))

    def _rewrite(self, part: str) -> str:
        match self._at:
            case _In.STRING if part == "<":
                return LESS_THAN
            case _In.STRING if part == "\\":
                self._at = _In.ESCAPE
            case _In.STRING if part == '"':
                self._at = _In.CALL
            case _In.STRING:
                self._at = _In.BROKEN if part < " " else _In.STRING
            case _In.ESCAPE:
                self._at = _In.STRING if part[0] in ESCAPES else _In.BROKEN
            case _In.CALL if part == '"':
                self._at, self._tail = _In.STRING, ""
            case _:
                self._look_for_tag(part)
        return part

    def _look_for_tag(self, part: str) -> None:
        self._tail = (self._tail + part)[-self._longest :]
        inside = self._at is not _In.TEXT
        if self._tail.endswith(self._ends if inside else self._begin):
            self._at, self._tail = (_In.TEXT if inside else _In.CALL), ""
