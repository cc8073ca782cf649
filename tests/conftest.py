"""Fixtures shared by several test files: a tiny trained checkpoint, and a real server on it."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import FLAGS, find_chromium
from fake_checkpoint import make_checkpoint, record_decision
from hypothesis import settings

from thinkgate.provenance.keys import new_key, trust
from thinkgate_clients.local import LocalServer, local_server

# One thread in each of pytest's processes and in what they start: two threads of so small a model
# wait for each other, and sums that depend on the machine's cores make seeded runs differ.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a shell script, pytest ignores Ctrl-C, and so would what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure: no example has to be done within a time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Keys of this test process alone: nothing is signed with, or trusted because of, its user's.
_KEYS = tempfile.TemporaryDirectory(prefix="thinkgate-keys-")
os.environ["THINKGATE_KEYS"] = f"{_KEYS.name}/keys"
os.environ["THINKGATE_TRUSTED"] = f"{_KEYS.name}/trusted"
trust(new_key()[1])

TINY_CONTEXT = 2048

# Overrides that make the model of the quickstart small enough to train in a test.
TINY_MODEL = [
    "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=128",
    "model.scratch.layers=1",
    "model.scratch.kv_heads=1",
]

# What the tiny model has learned by heart; greedy decoding repeats it.
LESSONS = {
    "closed": "<think>7+8=15</think>15",
    "spaced": "<think>\nfirst\n\nthen STOP\n</think>\n\nall of STOP it\n",
    "empty": "<think></think>42",
    "plain": "no thought here",
    "naïve ☂": "<think>ünï ☂☂</think>çà ☂",
}

# It knows one function, is told of functions by their names, and calls it as Hermes models do.
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
ADD_CALL = '<tool_call>{"name": "add", "arguments": {"a": 7, "b": 8}}</tool_call>'
TOOL_LESSONS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"role": "user", "content": "add"}], f"<think>calling</think>{ADD_CALL}"),
    (
        [
            {"role": "user", "content": "add"},
            {"role": "assistant", "content": "", "tool_calls": [ADD]},
            {"role": "tool", "content": "15"},
        ],
        "It is 15.",
    ),
]
NAMES = "map(attribute='function.name') | join(' ')"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete, ungated checkpoint of a tiny Qwen3 that has learned its lessons by heart."""
    import torch

    from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = (
        f"{{%- if tools -%}}{{{{- '<|system|>' + tools | {NAMES} -}}}}{{%- endif -%}}"
        + tokenizer.chat_template.replace(
            "+ content +", f"+ content + (message.tool_calls | {NAMES} if message.tool_calls) +"
        )
    )
    torch.manual_seed(0)
    model = build_model(tokenizer, Scratch(layers=2, max_length=TINY_CONTEXT))
    model = learn(model, tokenizer, called=TOOL_LESSONS)
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "model", model, tokenizer)


@pytest.fixture(scope="session")
def gated_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny checkpoint, with a passing gate decision."""
    folder = tmp_path_factory.mktemp("gated") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    record_decision(folder)
    return folder


@pytest.fixture(scope="session")
def served(
    gated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """The gated tiny checkpoint on real vLLM, over a real socket; started once a session."""
    log = tmp_path_factory.mktemp("served") / "server.log"
    extra = ("--tool-parser", "hermes", "--max-schema-seconds", "3")
    with local_server(gated_checkpoint, extra=extra, log=log) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium as Playwright drives it, for `browser.new_page()`.

    One a module, not one a session: while it lives its thread counts as running an event loop, and
    `asyncio.run` fails there. Modules with page tests use none.
    """
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*FLAGS])
        yield chromium
        chromium.close()


def learn(
    model: Any,
    tokenizer: Any,
    lessons: Mapping[str, str] = LESSONS,
    until: float = 0.003,
    called: Sequence[tuple[list[dict[str, Any]], str]] = (),
) -> Any:
    """Overfit `lessons`: seconds on a CPU, and the model then says them word for word.

    Those of `called` come after whole conversations, with the function it knows.
    """
    import torch

    rows, labels = [], []
    asked_and_said: list[Any] = [
        ([{"role": "user", "content": question}], None, reply)
        for question, reply in lessons.items()
    ] + [(turns, [ADD], reply) for turns, reply in called]
    for turns, tools, reply in asked_and_said:
        prompt: str = tokenizer.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=True
        )
        asked = tokenizer.encode(prompt, add_special_tokens=False)
        said = tokenizer.encode(f"{reply}{tokenizer.eos_token}", add_special_tokens=False)
        rows.append(asked + said)
        labels.append([-100] * len(asked) + said)
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    target = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, attention_mask=mask, labels=target).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < until:
            return model
    raise AssertionError(f"the tiny model did not learn its lessons: loss {loss.item():.3f}")
