"""From a conversation to the text the model goes on from.

Owns the use of the chat template: which turns, thoughts and tools it is given, and whether it left
the thought open. It does not tokenize, and knows nothing of requests.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from thinkgate.errors import ConfigError
from thinkgate.format import SplitStatus, Tags, render_prompt, split
from thinkgate_serve.engine import Tokenizer
from thinkgate_serve.failures import ApiError
from thinkgate_serve.messages import Message, Tool
from thinkgate_serve.protocol import History
from thinkgate_serve.template_options import refuse_unread

__all__ = ["render"]


def render(
    tokenizer: Tokenizer,
    tags: Tags,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any],
    tools: Sequence[Tool] = (),
    history: History = History.TEMPLATE,
    thinking: bool = True,
) -> tuple[str, bool]:
    """The prompt, and whether it ends inside an open thought.

    Without `thinking` a template that has a switch for the thought turns it off, unless
    `template_kwargs` say otherwise. ApiError 400 when the template refuses the messages, does not
    read one of `template_kwargs`, or would show the model no tools.
    """
    from jinja2.exceptions import TemplateError

    kwargs = dict(template_kwargs)
    if not thinking:
        kwargs.setdefault("enable_thinking", False)
    thoughts: dict[str, str] = {}
    plain: str | None = None
    if history is History.TEMPLATE:
        turns = [message.for_template() for message in messages]
    else:
        turns = [_without_thought(message, tags, history, thoughts) for message in messages]
    try:
        refuse_unread(template_kwargs, tokenizer, tools)
        if tools:
            plain, _ = render_prompt(tokenizer, turns, tags, **kwargs)
            kwargs["tools"] = [tool.for_template() for tool in tools]
        text, prefilled = render_prompt(tokenizer, turns, tags, **kwargs)
        if text == plain:
            raise _no_tools()
        if thoughts:
            text = _put_back(text, thoughts, _style(tokenizer, tags))
    except (TemplateError, ConfigError, ValueError, TypeError) as error:
        raise ApiError(
            400, f"the chat template refuses these messages: {error}", param="messages"
        ) from error
    return text, prefilled


def _no_tools() -> ApiError:
    return ApiError(
        400,
        "this model's chat template shows the model no tools, so it could not know them; leave "
        "'tools' out, or serve a model whose template has them",
        param="tools",
    )


def _without_thought(
    message: Message, tags: Tags, history: History, thoughts: dict[str, str]
) -> dict[str, Any]:
    """The turn without its thought; to keep it, a mark stands where it was.

    Most templates cut thoughts out of earlier turns wherever they find them, so a thought that is
    to stay must not be seen until the template is done.
    """
    turn = message.for_template()
    if message.role != "assistant":
        return turn
    turn.pop("reasoning_content", None)
    turn.pop("reasoning", None)
    thought = message.thought
    if thought is None:
        parts = split(message.text, tags=tags)
        if parts.status is not SplitStatus.UNTAGGED:
            thought, turn["content"] = parts.reasoning, parts.answer or ""
    if thought is not None and history is History.KEEP:
        mark = f"[{uuid.uuid4().hex}]"
        thoughts[mark] = thought
        turn["content"] = mark + turn["content"]
    return turn


def _put_back(text: str, thoughts: Mapping[str, str], style: tuple[str, str]) -> str:
    opening, closing = style
    for mark, thought in thoughts.items():
        if mark not in text:
            raise ApiError(
                400,
                "this model's chat template leaves out turns whose thoughts reasoning_history "
                "'keep' is to show; use 'template' or 'strip'",
                param="reasoning_history",
            )
        text = text.replace(mark, f"{opening}{thought}{closing}")
    return text


def _style(tokenizer: Tokenizer, tags: Tags) -> tuple[str, str]:
    """How this template writes a thought where it shows one: the tags with their line breaks."""
    asked = {"role": "user", "content": "1+1?"}
    said = {"role": "assistant", "content": "ANSWER", "reasoning_content": "THOUGHT"}
    shown: str = tokenizer.apply_chat_template([asked, said], tokenize=False)
    before, found, after = shown.partition("THOUGHT")
    opened, closed = before.rfind(tags.open), after.find("ANSWER")
    if found and opened >= 0 and closed >= 0 and tags.close in after[:closed]:
        return before[opened:], after[:closed]
    prompt, prefilled = render_prompt(tokenizer, [asked], tags)
    if prefilled and prompt.endswith("\n"):
        return f"{tags.open}\n", f"\n{tags.close}\n\n"
    return tags.open, tags.close
