"""What a chat template can be told, and the refusal of everything else."""

from importlib.resources import files
from typing import Any

import pytest
from conftest import ADD
from fake_engine import HELLO, FakeEngine, ask, characters
from jinja2 import meta
from jinja2.exceptions import TemplateError
from serving import HERMES
from test_serve_history import Templated

from thinkgate.format import THINK
from thinkgate_serve.failures import ApiError
from thinkgate_serve.messages import Message, Tool
from thinkgate_serve.prompts import render
from thinkgate_serve.template_options import OURS, variables

READ = {
    "{{ x }}{{ y.z }}{{ range(3) }}{{ raise_exception('no') }}": {"x", "y"},
    "{% if x is defined and x is false %}{% endif %}": {"x"},
    "{% if not x is defined %}{% set x = false %}{% endif %}{{ x }}": {"x"},
    "{% set x = x if x is defined else y | default(1) %}{{ x }}": {"x", "y"},
    "{% set x = 1 %}{% set y = x %}{{ x ~ y }}": set(),
    "{% set x %}{{ y }}{% set z = 1 %}{% endset %}{{ x ~ z }}": {"y", "z"},
    "{% if a %}{% set x = 1 %}{% else %}{% set x = 2 %}{% endif %}{{ x }}": {"a"},
    "{% if a %}{% set x = 1 %}{% elif x %}{% else %}{% set x = 2 %}{% endif %}": {"a", "x"},
    "{% if a %}{% set x = 1 %}{% elif b %}{% set x = 2 %}{% endif %}{{ x }}": {"a", "b", "x"},
    "{% for m in ms if m.a ~ x %}{{ loop.index ~ m }}{% set y = 1 %}{% else %}{{ z }}{% endfor %}"
    "{{ y ~ m }}": {"ms", "x", "y", "z", "m"},
    "{% for m in ms %}{% if m %}{% break %}{% endif %}{% set x = m %}{{ x }}{% endfor %}": {"ms"},
    "{% macro f(a, b=x) %}{{ f(a) ~ b ~ y ~ caller() }}{% set z = 1 %}{% endmacro %}{{ f(1) ~ z }}":
        {"x", "y", "z"},
    "{% call(a) f(x) %}{{ a }}{% endcall %}": {"f", "x"},
    "{% set n = namespace(a=x) %}{% set n.b = y %}{{ n.b }}": {"x", "y"},
    "{% with a = x, x = 1 %}{{ a ~ x }}{% set b = 1 %}{% endwith %}{{ b }}": {"x", "b"},
    "{% filter replace(x, y) %}{% set a = 1 %}{% endfilter %}{{ a }}": {"x", "y", "a"},
    "{% generation %}{% set a = 1 %}{{ a ~ x }}{% endgeneration %}{{ a }}": {"x", "a"},
    "{% block t %}{% set a = 1 %}{% endblock %}{{ a }}": {"a"},
}  # fmt: skip


@pytest.mark.parametrize("template", READ)
def test_what_is_read_before_the_template_sets_it(template: str) -> None:
    assert variables(template) == READ[template]


FOLDER = files("trl") / "chat_templates"
SHIPPED = {
    name.removesuffix(".jinja"): (FOLDER / name).read_text("utf-8")
    for name in sorted(entry.name for entry in FOLDER.iterdir())
    if name.endswith(".jinja")
}
OPTIONS = {
    "deepseek_r1_distill": set(),
    "gemma4": {"enable_thinking"},
    "gptoss": {"builtin_tools", "model_identity", "reasoning_effort"},
    "nemotron_3_nano": {"enable_thinking", "truncate_history_thinking"},
    "qwen2_5": set(),
    "qwen3": {"enable_thinking"},
    "qwen3_6": {"add_vision_id", "enable_thinking", "preserve_thinking"},
    "qwen3_training": {"enable_thinking"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_models_in_use(name: str) -> None:
    assert variables(SHIPPED[name]) - OURS == OPTIONS[name]


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "7+8"},
    {"role": "assistant", "content": "15", "reasoning_content": "seven and eight"},
    {"role": "user", "content": "and 1?"},
]
CALLED = [
    TURNS[1],
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "call00001",
        "function": {"name": "add", "arguments": {"a": 7, "b": 8}}}]},
    {"role": "tool", "content": "15", "tool_call_id": "call00001", "name": "add"},
]  # fmt: skip
TOOL = {"type": "function", "function": ADD["function"] | {"description": "a + b"}}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_said_not_to_be_read_changes_no_prompt(name: str) -> None:
    """Asked of Jinja, which calls more undeclared, and of transformers, which renders it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(SHIPPED[name]).environment
    undeclared = meta.find_undeclared_variables(environment.parse(SHIPPED[name]))
    read = variables(SHIPPED[name])
    assert read <= undeclared and "messages" in read
    tokenizer = Templated(SHIPPED[name])
    rendered = 0
    for turns, tools in ((TURNS, [TOOL]), (TURNS[1:], None), (CALLED, [TOOL])):
        try:
            prompt = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        except (TemplateError, TypeError):
            continue  # it takes no system message, no tools, or no plain text
        rendered += 1
        for local in undeclared - read:
            said = {local: "nonsense"}
            assert prompt == tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, **said
            )
    assert rendered or undeclared == read


SWITCHED = "{{ messages[0].content }}{{ 'quietly' if enable_thinking is false }}"
NAMED = {"default": "{{ messages[0].content }}{{ x }}", "tool_use": "{{ tools }}{{ y }}"}
USER = [Message(role="user", content="hi")]


def shown(template: Any, options: dict[str, Any], **how: Any) -> str:
    tokenizer: Any = Templated(template)
    return render(tokenizer, THINK, USER, options, **how)[0]


def refusal(template: Any, options: dict[str, Any], **how: Any) -> str:
    with pytest.raises(ApiError) as refused:
        shown(template, options, **how)
    assert (refused.value.status, refused.value.param) == (400, "chat_template_kwargs")
    return refused.value.message


def test_an_option_the_template_does_not_read_is_refused_with_what_to_use() -> None:
    assert shown(SWITCHED, {"enable_thinking": False}) == "hiquietly"
    assert "did you mean 'enable_thinking'?" in refusal(SWITCHED, {"enable_thinkin": False})
    assert "did you mean 'enable_thinking'?" in refusal(SWITCHED, {"thinking": False})
    assert "'effort'; known: enable_thinking" in refusal(SWITCHED, {"effort": 1})
    for switch in ("enable_thinking", "thinking"):
        assert "thinking_budget or reasoning_effort" in refusal(NAMED["default"], {switch: True})
    assert refusal("{{ messages }}", {"x": 1}).endswith("it has no options")
    assert "y" * 101 not in refusal(SWITCHED, {"y" * 2**20: 1})
    for ours in ("messages", "bos_token", "padding"):
        assert f"may not set '{ours}'" in refusal("{{ messages ~ bos_token }}", {ours: 1})


def test_of_named_templates_the_one_in_use_is_asked() -> None:
    tools = [Tool.model_validate(ADD)]
    assert shown(NAMED, {"x": "!"}) == "hi!"
    assert shown(NAMED, {"y": "!"}, tools=tools).endswith("!")
    assert refusal(NAMED, {"y": 1}).endswith("known: x")
    assert refusal(NAMED, {"x": 1}, tools=tools).endswith("known: y")
    with pytest.raises(ApiError, match="refuses these messages"):
        shown({"other": "{{ messages }}"}, {"x": 1})
    with pytest.raises(ApiError, match="refuses these messages"):
        shown("{% if %}", {"x": 1})


def test_a_tokenizer_without_a_template_is_told_everything() -> None:
    """vLLM's own for DeepSeek V3.2 and others, which write prompts in Python."""

    class InPython:
        def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> str:
            return f"{conversation[0]['content']}{kwargs.get('thinking')}"

    tokenizer: Any = InPython()
    assert render(tokenizer, THINK, USER, {"thinking": 1})[0] == "hi1"


def test_effort_none_turns_a_switch_off_where_there_is_one() -> None:
    assert shown(SWITCHED, {}, thinking=False) == "hiquietly"
    assert shown(SWITCHED, {"enable_thinking": True}, thinking=False) == "hi"
    assert shown(NAMED, {}, thinking=False) == "hi"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [ADD], "stream": True}),
        ("/v1/responses", {"input": "hi"}),
        ("/tokenize", {"messages": HELLO}),
    ],
)
def test_every_endpoint_with_a_template_refuses(path: str, asked: dict[str, Any]) -> None:
    engine = FakeEngine(characters("42"))
    for options, words in (
        ({"enable_thinkin": False}, "did you mean 'enable_thinking'?"),
        ({"tokenize": True}, "may not set 'tokenize'"),
    ):
        body = {"chat_template_kwargs": options} | asked
        response = ask(engine, path, settings=HERMES, **body)
        error = response.json()["error"]
        assert response.status_code == 400 and not engine.requests
        assert error["param"] == "chat_template_kwargs" and words in error["message"]
    good = {"chat_template_kwargs": {"enable_thinking": False}} | asked
    assert ask(engine, path, settings=HERMES, **good).status_code == 200
    engine.tokenizer.chat_template = "{{ messages ~ tools }}"
    bare = ask(engine, path, settings=HERMES, **good).json()["error"]["message"]
    effort = "reasoning.effort" if path == "/v1/responses" else "reasoning_effort"
    assert f"use thinking_budget or {effort}" in bare
