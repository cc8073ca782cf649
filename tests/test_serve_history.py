"""What the model sees of the thoughts of earlier turns, through several kinds of template."""

import json
from typing import Any

import pytest
from fake_engine import FakeEngine, ask, characters
from transformers import PreTrainedTokenizerFast

from thinkgate.format import Tags
from thinkgate_serve.failures import ApiError
from thinkgate_serve.messages import Message
from thinkgate_serve.prompts import render
from thinkgate_serve.protocol import History

TURNS = [
    Message(role="user", content="1+1"),
    Message(role="assistant", content="2", reasoning_content="one and one"),
    Message(role="user", content="and 2+2?"),
]
# As Qwen3's: the thought is shown of the last turn only, in its own field or in the content.
LAST_ONLY = (
    "{%- for m in messages -%}{%- set content = m.content -%}{%- set thought = '' -%}"
    "{%- if m.role == 'assistant' -%}"
    "{%- if m.reasoning_content is defined -%}{%- set thought = m.reasoning_content -%}"
    "{%- elif '</think>' in content -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    "{{- '[assistant]' -}}{%- if loop.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}"
    "{%- endif -%}{{- content -}}"
    "{%- else -%}{{- '[' + m.role + ']' + content -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[assistant]' -}}{%- endif -%}"
)
# As DeepSeek-R1's: cut out of the content, and the prompt opens the thought.
OPENS = (
    "{%- for m in messages -%}{{- '[' + m.role + ']' + m.content.split('</think>')[-1] -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '[assistant]<think>\\n' -}}{%- endif -%}"
)
SHOWS_ALL = (
    "{%- for m in messages -%}{{- '[' + m.role + ']' -}}{%- if m.reasoning_content -%}"
    "{{- '<think>' + m.reasoning_content + '</think>' -}}{%- endif -%}{{- m.content -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '[assistant]' -}}{%- endif -%}"
)
FORGETS = "{{- messages[-1].content -}}"


class Templated:
    """A tokenizer that only has a template."""

    def __init__(self, template: str | dict[str, str]) -> None:
        from tokenizers import Tokenizer, models

        real: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        self.chat_template = real.chat_template = template
        self.apply_chat_template = real.apply_chat_template
        self.get_chat_template = real.get_chat_template


def shown(template: str, history: History, turns: list[Message] = TURNS) -> str:
    tokenizer: Any = Templated(template)
    text, _ = render(tokenizer, Tags("<think>", "</think>"), turns, {}, (), history)
    return text


SPACED = "<think>\none and one\n</think>\n\n"
CASES = [
    (LAST_ONLY, History.TEMPLATE, ""),
    (LAST_ONLY, History.KEEP, SPACED),
    (LAST_ONLY, History.STRIP, ""),
    (OPENS, History.TEMPLATE, ""),
    (OPENS, History.KEEP, SPACED),
    (SHOWS_ALL, History.TEMPLATE, "<think>one and one</think>"),
    (SHOWS_ALL, History.KEEP, "<think>one and one</think>"),
    (SHOWS_ALL, History.STRIP, ""),
]


@pytest.mark.parametrize(("template", "history", "thought"), CASES)
def test_thoughts_are_shown_as_asked(template: str, history: History, thought: str) -> None:
    end = "[assistant]<think>\n" if template is OPENS else "[assistant]"
    expected = f"[user]1+1[assistant]{thought}2[user]and 2+2?{end}"
    assert shown(template, history) == expected
    # The same thought written into the content, as the model did.
    raw = [TURNS[0], Message(role="assistant", content="<think>one and one</think>2"), TURNS[2]]
    if history is not History.TEMPLATE:
        assert shown(template, history, raw) == expected


def test_a_turn_that_is_left_out_cannot_keep_its_thought() -> None:
    with pytest.raises(ApiError, match="leaves out turns"):
        shown(FORGETS, History.KEEP)
    assert shown(FORGETS, History.STRIP) == "and 2+2?"


def test_it_is_a_field_of_requests() -> None:
    engine = FakeEngine(characters("x"))
    turns = [message.model_dump(exclude_none=True) for message in TURNS]
    for history, thought in ((None, ""), ("keep", "<think>one and one</think>"), ("strip", "")):
        body = {"messages": turns} | ({"reasoning_history": history} if history else {})
        assert ask(engine, content=json.dumps(body).encode()).status_code == 200
        prompt = engine.requests[-1][0]
        assert prompt == f"[user]1+1[assistant]{thought}2[user]and 2+2?[assistant]"
