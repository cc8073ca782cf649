"""`thinkgate chat` as a user sees it: on a terminal, and with questions on the command line."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.cli import main
from thinkgate_clients.chat import ask_and_show

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def script(body: dict[str, Any]) -> Says | Fails:
    match prompt_of(body):
        case "slow":
            return Says("never seen", "thinking " * 200, pause=0.05)
        case "cut":
            return Says(None, "so long", finish="length")
        case "broken":
            return Fails(400, {"message": "bad luck"})
        case question:
            return Says(f"answer to {question}", f"thought about {question}")


def test_questions_are_asked_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedEndpoint(script) as endpoint:
        assert main(["chat", "--url", endpoint.base_url, "--temperature", "0", "1+1", "2+2"]) == 0
        sent = endpoint.requests
    shown = capsys.readouterr().out
    assert shown.index("> 1+1") < shown.index("thought about 1+1") < shown.index("answer to 1+1")
    assert shown.index("answer to 1+1") < shown.index("> 2+2") < shown.index("answer to 2+2")
    assert [(r["temperature"], len(r["messages"])) for r in sent] == [(0.0, 1), (0.0, 1)]


def test_ask_and_show_returns_what_it_showed(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedEndpoint(script) as endpoint:
        replies = ask_and_show(endpoint.base_url, "scripted", ["1+1", "cut"], temperature=0.0)
    assert [reply.answer for reply in replies] == ["answer to 1+1", None]
    assert "the thought was cut off" in capsys.readouterr().out


def test_a_models_escape_sequences_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[red]42[/red]\r\x9b1m"
    with ScriptedEndpoint(lambda _: Says(evil, evil)) as endpoint:
        ask_and_show(endpoint.base_url, None, ["q"])
    shown = capsys.readouterr().out
    assert "[red]42[/red]" in shown
    assert not set(shown) & {"\x07", "\r", "\x9b"} and "\x1b[2J" not in shown


def test_no_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "http://127.0.0.1:9/v1", "--model", "m", "1+1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is the server running?" in error


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, file: int, process: subprocess.Popen[bytes]) -> None:
        self.file, self.process = file, process
        self.seen = ""

    def wait_for(self, text: str) -> str:
        """Everything shown up to and with `text`, which must come; later waits start after it."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.file], [], [], 0.1)[0]:
                self.seen += ESCAPES.sub("", os.read(self.file, 4096).decode())
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def type(self, line: str) -> None:
        os.write(self.file, line.encode())


@contextmanager
def chatting(url: str, term: str = "dumb") -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "thinkgate", "chat", "--url", url],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": term, "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_ctrl_c_stops_the_answer_and_not_the_conversation() -> None:
    with ScriptedEndpoint(script) as endpoint, chatting(endpoint.base_url) as chat:
        chat.wait_for("> ")
        chat.type("slow\n")
        chat.wait_for("thinking thinking")
        os.kill(chat.process.pid, signal.SIGINT)
        assert "never seen" not in chat.wait_for("(stopped)")
        chat.wait_for("> ")
        chat.type("broken\n")
        chat.wait_for("bad luck")
        chat.type("1+1\n")
        chat.wait_for("answer to 1+1")
        chat.type("and?\n")
        chat.wait_for("answer to and?")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.process.wait(20) == 0
        roles = [[m["role"] for m in r["messages"]] for r in endpoint.requests]
        contents = [m["content"] for m in endpoint.requests[-1]["messages"]]
    assert roles == [["user"], ["user"], ["user"], ["user", "assistant", "user"]]
    # What was stopped or failed is forgotten, and the thought is not sent back.
    assert contents == ["1+1", "answer to 1+1", "and?"]


MARKDOWN = "# Result\n\nIt is **15**.\n\n```\na\n\nb\n```\n\n- one\n- two"


def test_on_a_terminal_the_thought_folds_and_the_answer_is_markdown(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Says:
        first = not body.keys() & {"reasoning_effort", "thinking_budget"}
        return Says(MARKDOWN, "carrying the one " * (20 if first else 1), pause=0.02)

    with ScriptedEndpoint(script) as endpoint, chatting(endpoint.base_url, "xterm") as chat:
        chat.wait_for("> ")
        chat.type("7+8\n")
        assert "carrying" in chat.wait_for("(/thought shows it)")
        answer = chat.wait_for("7 thinking tokens, 3 answer tokens")
        # While it streams, a frame may end in the middle of an emphasis: the last one counts.
        last = answer[answer.rindex("It is 15.") :]
        assert "• one" in last and "**" not in last
        chat.type("/thought\n")
        chat.wait_for("carrying the one")
        for command, reply in {
            "/think off": "thinking: off",
            "/retry": "3 answer tokens",
            "/budget 50": "thinking budget: 50",
            "/system be brief": "system prompt: be brief",
            "/retry ": "3 answer tokens",
            "/budget x": "give tokens",
            "/sav": "did you mean '/save'",
            f"/save {tmp_path / 'talk.json'}": "3 messages in",
            "/clear": "forgotten",
            "/retry  ": "nothing was asked yet",
            "/help": "/consensus",
        }.items():
            chat.type(command + "\n")
            chat.wait_for(reply)
        first, second, third = endpoint.requests
    assert "reasoning_effort" not in first
    assert (second["reasoning_effort"], len(second["messages"])) == ("none", 1)
    assert (third["thinking_budget"], "reasoning_effort" in third) == (50, False)
    assert [m["role"] for m in third["messages"]] == ["system", "user"]
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [m["content"] for m in saved] == ["be brief", "7+8", MARKDOWN]
