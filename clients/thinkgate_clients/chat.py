"""Examples:

thinkgate chat                                        talk to http://127.0.0.1:8000
thinkgate chat 7+8-6+3 9+9+9-1                        ask two questions and leave
thinkgate chat --url http://gpu-1:8000/v1 --model qwen --temperature 0.6

In a conversation the thought folds into one line when the answer starts, and the answer is rendered
as Markdown. Ctrl-C stops the present answer only, Ctrl-D leaves, /help lists the commands. Thoughts
are not sent back; answers are.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from thinkgate.checkpoint import write_atomic
from thinkgate.config import nearest
from thinkgate.console import console, printable
from thinkgate.errors import EndpointError, ThinkgateError
from thinkgate_clients.chat_display import Display, displaying
from thinkgate_clients.client import Client, Finished, Messages, Reply, key_from

__all__ = ["add_arguments", "ask_and_show", "run"]

EFFORTS = ("minimal", "low", "medium", "high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate chat`."""
    parser.add_argument("question", nargs="*", help="ask these and leave; default: a conversation")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="default: %(default)s")
    parser.add_argument("--model", help="default: the only one the server offers")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--temperature", type=float, help="default: the server's")
    parser.add_argument("--max-tokens", type=int, help="thinking and answer together")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--thinking-budget", type=int, help="tokens of the thought at most")
    parser.add_argument("--consensus", type=int, metavar="K", help="let K samples vote")
    parser.add_argument(
        "--api-key-env", metavar="VAR", help="environment variable with the API key to send"
    )


def run(args: argparse.Namespace) -> int:
    """Ask the questions given, or talk until the end of input."""
    sampling = {
        "temperature": args.temperature,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
        "thinking_budget": args.thinking_budget,
        "consensus": args.consensus,
    }
    key = key_from(args.api_key_env)
    with Client(args.url, args.model, api_key=key) as client:
        if args.question:
            _ask_each(client, args.question, _system(args.system), sampling)
        else:
            Conversation(client, args.system, sampling).run()
    return 0


def ask_and_show(
    base_url: str, model: str | None, questions: Iterable[str], **sampling: Any
) -> list[Reply]:
    """Ask each question on its own, streaming reasoning and answer to the console."""
    with Client(base_url, model) as client:
        return _ask_each(client, questions, [], sampling)


def show(display: Display, client: Client, prompt: Messages, **sampling: Any) -> Reply:
    """Stream one reply. Ctrl-C cancels it and is raised."""
    with closing(client.stream(prompt, **sampling)) as events:
        for event in events:
            display.show(event)
            if isinstance(event, Finished):
                return event.reply
    raise EndpointError(f"{client.base_url}: the stream ended without a result")


def _system(text: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}] if text else []


def _ask_each(
    client: Client,
    questions: Iterable[str],
    system: list[dict[str, str]],
    sampling: dict[str, Any],
) -> list[Reply]:
    replies: list[Reply] = []
    for question in questions:
        _say(f"> {question}", "cyan")
        messages = [*system, {"role": "user", "content": question}]
        try:
            replies.append(show(Display(console), client, messages, **sampling))
        except KeyboardInterrupt:
            console.print("\n[dim](stopped)[/]")
            raise
    return replies


class Conversation:
    """Questions, answers and slash commands, until the end of input."""

    def __init__(self, client: Client, system: str | None, sampling: dict[str, Any]) -> None:
        self._client = client
        self._system = system
        self._sampling = sampling
        self._turns: list[dict[str, str]] = []
        self._asked: str | None = None
        """The last question, answered or not."""
        self._thought: str | None = None
        self.out: Console = console

    def run(self) -> None:
        """Read, ask, show. What fails does not end the conversation."""
        import readline  # noqa: F401  gives input() line editing and history

        where = f"{self._client.model()} at {self._client.base_url}"
        _say(f"{where}; Ctrl-C stops, Ctrl-D leaves, /help", "dim")
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                self.out.print()
                return
            except KeyboardInterrupt:
                self.out.print("\n[dim]Ctrl-D leaves[/]")
                continue
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._ask(line)
            except ThinkgateError as error:
                _say(str(error), "red")

    def _command(self, line: str) -> None:
        name, _, words = line.partition(" ")
        found = COMMANDS.get(name)
        if found is None:
            _say(f"{name}: no such command; {nearest(name, COMMANDS)}; /help lists them", "red")
        else:
            found[0](self, words.strip())

    def _ask(self, question: str) -> None:
        """One more question; without an answer the conversation is as before."""
        self._asked = question
        asked = [*self._turns, {"role": "user", "content": question}]
        try:
            with displaying(self.out) as display:
                reply = show(
                    display, self._client, [*_system(self._system), *asked], **self._sampling
                )
        except KeyboardInterrupt:
            self.out.print("\n[dim](stopped)[/]")
            return
        self._thought = reply.reasoning
        if reply.answer is not None:
            self._turns = [*asked, {"role": "assistant", "content": reply.answer}]

    def _think(self, words: str) -> None:
        if words not in ("on", "off", *EFFORTS):
            _say(f"/think {words or '…'}: say on, off, {', '.join(EFFORTS)}", "red")
            return
        self._sampling["thinking_budget"] = None
        self._sampling["reasoning_effort"] = {"on": None, "off": "none"}.get(words, words)
        _say(f"thinking: {words}", "dim")

    def _budget(self, words: str) -> None:
        if words != "off" and not words.isdigit():
            _say(f"/budget {words or '…'}: give tokens, such as /budget 500, or off", "red")
            return
        self._sampling["reasoning_effort"] = None
        self._sampling["thinking_budget"] = None if words == "off" else int(words)
        _say(f"thinking budget: {words}", "dim")

    def _consensus(self, words: str) -> None:
        if words != "off" and not words.isdigit():
            _say(f"/consensus {words or '…'}: give samples, such as /consensus 5, or off", "red")
            return
        self._sampling["consensus"] = None if words == "off" else int(words)
        _say(f"consensus: {words}", "dim")

    def _set_system(self, words: str) -> None:
        if words:
            self._system = None if words == "off" else words
        _say(f"system prompt: {self._system or 'none'}", "dim")

    def _retry(self, _: str) -> None:
        if self._asked is None:
            _say("nothing was asked yet", "red")
            return
        if self._turns and self._turns[-2]["content"] == self._asked:
            self._turns = self._turns[:-2]
        _say(f"> {self._asked}", "cyan")
        self._ask(self._asked)

    def _show_thought(self, _: str) -> None:
        _say(self._thought or "no thought", "dim")

    def _save(self, words: str) -> None:
        if not words:
            _say("/save: give a file, such as /save talk.json", "red")
            return
        messages = [*_system(self._system), *self._turns]
        try:
            write_atomic(
                Path(words), json.dumps({"messages": messages}, indent=2, ensure_ascii=False)
            )
        except OSError as error:
            _say(f"/save {words}: {error.strerror}", "red")
            return
        _say(f"{len(messages)} messages in {words}", "dim")

    def _clear(self, _: str) -> None:
        self._turns, self._asked, self._thought = [], None, None
        _say("forgotten", "dim")

    def _help(self, _: str) -> None:
        for name, (_function, words) in COMMANDS.items():
            _say(f"  {name:<11} {words}", "dim")


Command = Callable[[Conversation, str], None]
COMMANDS: dict[str, tuple[Command, str]] = {
    "/think": (Conversation._think, "off, on, or an effort: minimal, low, medium, high"),
    "/budget": (Conversation._budget, "tokens of the thought at most, or off"),
    "/consensus": (Conversation._consensus, "how many samples vote on the answer, or off"),
    "/system": (Conversation._set_system, "the system prompt, or off"),
    "/retry": (Conversation._retry, "ask the last question again"),
    "/thought": (Conversation._show_thought, "the last thought, in full"),
    "/save": (Conversation._save, "write the conversation to a JSON file"),
    "/clear": (Conversation._clear, "forget the conversation"),
    "/help": (Conversation._help, "this list"),
}


def _say(text: str, style: str) -> None:
    console.print(printable(text), style=style, markup=False, emoji=False)
