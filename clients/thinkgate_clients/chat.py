"""Examples:

thinkgate chat                                        talk to http://127.0.0.1:8000
thinkgate chat 7+8-6+3 9+9+9-1                        ask two questions and leave
thinkgate chat --url http://gpu-1:8000/v1 --model qwen --temperature 0.6

Reasoning is dim, the answer bold. In a conversation Ctrl-C stops the present answer only, Ctrl-D
leaves, /clear forgets the conversation. Thoughts are not sent back; answers are.
"""

import argparse
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from rich.console import Console

from thinkgate.console import console, printable
from thinkgate.errors import EndpointError
from thinkgate.format import SplitStatus
from thinkgate_clients.client import (
    AnswerText,
    Client,
    Finished,
    Messages,
    ReasoningText,
    Reply,
    RequestFailed,
    key_from,
)

__all__ = ["add_arguments", "ask_and_show", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate chat`."""
    parser.add_argument("question", nargs="*", help="ask these and leave; default: a conversation")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="default: %(default)s")
    parser.add_argument("--model", help="default: the only one the server offers")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--temperature", type=float, help="default: the server's")
    parser.add_argument("--max-tokens", type=int, help="default: the server's")
    parser.add_argument("--seed", type=int, help="default: none")
    parser.add_argument(
        "--api-key-env", metavar="VAR", help="environment variable with the key; default: no key"
    )


def run(args: argparse.Namespace) -> int:
    """Ask the questions given, or hold a conversation."""
    sampling = {
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
    }
    system = [{"role": "system", "content": args.system}] if args.system else []
    key = key_from(args.api_key_env)
    with Client(args.url, args.model, api_key=key) as client:
        if args.question:
            _ask_each(client, args.question, system, sampling)
        else:
            _converse(client, system, sampling)
    return 0


def ask_and_show(
    base_url: str, model: str | None, questions: Iterable[str], **sampling: Any
) -> list[Reply]:
    """Ask each question on its own, streaming reasoning and answer to the console."""
    with Client(base_url, model) as client:
        return _ask_each(client, questions, [], sampling)


def show(out: Console, client: Client, prompt: Messages, **sampling: Any) -> Reply:
    """Stream one reply to `out`: reasoning dim, answer bold. Ctrl-C cancels it and is raised."""
    last: type[object] | None = None
    with closing(client.stream(prompt, **sampling)) as events:
        try:
            for event in events:
                if isinstance(event, Finished):
                    out.print()
                    _remark(out, event.reply)
                    return event.reply
                if last is ReasoningText and isinstance(event, AnswerText):
                    out.print()
                last = type(event)
                style = "dim" if last is ReasoningText else "bold"
                text = printable(event.text)
                out.print(text, style=style, end="", markup=False, emoji=False, soft_wrap=True)
        except KeyboardInterrupt:
            out.print("\n[dim](stopped)[/]")
            raise
    raise EndpointError(f"{client.base_url}: the stream ended without a result")


def _remark(out: Console, reply: Reply) -> None:
    """A line on what cannot be seen from the text."""
    if reply.status is SplitStatus.TRUNCATED:
        out.print("[yellow](the thought was cut off: no answer; raise --max-tokens)[/]")
    elif reply.finish_reason == "length":
        out.print("[yellow](the answer was cut off; raise --max-tokens)[/]")


def _ask_each(
    client: Client,
    questions: Iterable[str],
    system: list[dict[str, str]],
    sampling: dict[str, Any],
) -> list[Reply]:
    replies: list[Reply] = []
    for question in questions:
        console.print(f"> {question}", style="cyan", markup=False, emoji=False)
        messages = [*system, {"role": "user", "content": question}]
        replies.append(show(console, client, messages, **sampling))
    return replies


def _converse(client: Client, system: list[dict[str, str]], sampling: dict[str, Any]) -> None:
    """Read, ask, show, until the end of input. A failed request does not end the conversation."""
    import readline  # noqa: F401  gives input() line editing and history

    console.print(
        printable(f"{client.model()} at {client.base_url}; Ctrl-C stops, Ctrl-D leaves"),
        style="dim",
        markup=False,
    )
    turns: list[dict[str, str]] = []
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n[dim]Ctrl-D leaves[/]")
            continue
        if question == "/clear":
            turns = []
        elif question:
            turns = _turn(client, system, turns, question, sampling)


def _turn(
    client: Client,
    system: list[dict[str, str]],
    turns: list[dict[str, str]],
    question: str,
    sampling: dict[str, Any],
) -> list[dict[str, str]]:
    """The conversation after one more question; as before when it got no answer."""
    asked = [*turns, {"role": "user", "content": question}]
    try:
        reply = show(console, client, [*system, *asked], **sampling)
    except KeyboardInterrupt:
        return turns
    except RequestFailed as error:
        console.print(printable(str(error)), style="red", markup=False)
        return turns
    if reply.answer is None:
        return turns
    return [*asked, {"role": "assistant", "content": reply.answer}]
