"""What a chat template can be told: the variables it reads.

Owns finding them, and refusing options that would do nothing. It renders nothing, and knows only
what the template says of itself: a variable that is read may still change no prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeVisitor

from thinkgate.config import nearest
from thinkgate_serve.elsewhere import THOUGHTS
from thinkgate_serve.engine import Tokenizer
from thinkgate_serve.failures import LONGEST_NAME, ApiError

__all__ = ["refuse_unread", "variables"]

OURS = frozenset(
    {
        # Arguments of `apply_chat_template`, and on the way to it.
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tags",
        "tokenize",
        "tokenizer",
        "tokenizer_kwargs",
        "tools",
        "truncation",
        # The tokenizer's, which it hands over itself.
        "bos_token",
        "cls_token",
        "eos_token",
        "mask_token",
        "pad_token",
        "sep_token",
        "unk_token",
    }
)
"""What templates may read and requests may not set."""

SWITCHES = {"enable_thinking", "thinking"}
"""What many templates call the choice of whether to think."""


def refuse_unread(
    options: Mapping[str, Any], tokenizer: Tokenizer, tools: Sequence[Any] | None
) -> None:
    """ApiError 400 for an option that the template of a conversation with `tools` does not read.

    Where there is no template, because vLLM writes the model's prompts in Python, all may be set.
    """
    if not options:
        return
    if ours := OURS.intersection(options):
        raise _refused(f"chat_template_kwargs may not set '{min(ours)}'")
    hugging_face: Any = tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return
    known = variables(hugging_face.get_chat_template(tools=tools or None)) - OURS
    for name in options:
        if name not in known:
            words = f"this model's chat template does not read '{name[:LONGEST_NAME]}'"
            raise _refused(f"{words}; {_instead(name[:LONGEST_NAME], known)}")


def _instead(name: str, known: frozenset[str]) -> str:
    hint = nearest(name, known)
    if name in SWITCHES and not hint.startswith("did"):
        return THOUGHTS
    return hint if known else "it has no options"


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="chat_template_kwargs", code="unknown_parameter")


@lru_cache(maxsize=64)
def variables(template: str) -> frozenset[str]:
    """Names that a chat template looks up and may not have set itself.

    `jinja2.meta` calls every name undeclared that one branch of an `if` sets: half of Qwen3's own
    locals. jinja2's TemplateSyntaxError when it is no template.
    """
    environment = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
    tree = environment.parse(template)
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}  # they call each other
    reader = _Reader({*environment.globals, *macros, "raise_exception", "strftime_now"})
    reader.visit(tree)
    return frozenset(reader.found)


class _Generation(Extension):
    """transformers' `{% generation %}`, which marks the assistant's text and changes nothing."""

    tags = {"generation"}  # noqa: RUF012 as in jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Reader(NodeVisitor):
    """Goes through a template in the order of its evaluation."""

    def __init__(self, known: Iterable[str]) -> None:
        self.found: set[str] = set()
        self._known = set(known)
        """What is surely set where it is now."""

    def visit_Name(self, node: nodes.Name) -> None:
        if node.ctx != "load":
            self._known.add(node.name)
        elif node.name not in self._known:
            self.found.add(node.name)

    def visit_Assign(self, node: nodes.Assign) -> None:
        self._visit(node.node, node.target)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        self._within([*node.body, node.filter])
        self._visit(node.target)

    def visit_If(self, node: nodes.If) -> None:
        ends: list[set[str]] = []
        for way in (node, *node.elif_):
            self._visit(way.test)
            ends.append(self._within(way.body))
        self._known = set.intersection(*ends, self._within(node.else_))

    def visit_For(self, node: nodes.For) -> None:
        self._visit(node.iter)
        self._within([node.target, node.test, *node.body], "loop")
        self._within(node.else_)

    def visit_Macro(self, node: nodes.Macro) -> None:
        self._visit(*node.defaults)
        self._within([*node.args, *node.body], "caller", "kwargs", "varargs")

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self._visit(node.call, *node.defaults)
        self._within([*node.args, *node.body])

    def visit_With(self, node: nodes.With) -> None:
        self._visit(*node.values)
        self._within([*node.targets, *node.body])

    def visit_Scope(self, node: nodes.Scope) -> None:
        self._within(node.body)

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> None:
        self._within([*node.body, node.filter])

    def visit_Block(self, node: nodes.Block) -> None:
        self._within(node.body)

    def _visit(self, *parts: nodes.Node | None) -> None:
        for part in parts:
            if part is not None:
                self.visit(part)

    def _within(self, parts: Iterable[nodes.Node | None], *names: str) -> set[str]:
        """Visit a scope with `names` of its own; what is set at its end, and then forgotten."""
        before, self._known = self._known, self._known | {*names}
        self._visit(*parts)
        end, self._known = self._known, before
        return end
