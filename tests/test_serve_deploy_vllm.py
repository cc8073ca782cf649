"""Hot deploys on real vLLM: 16 streams go on while the alias moves, and none of them fails."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from conftest import LESSONS, TINY_CONTEXT, learn
from fake_checkpoint import make_checkpoint, record_decision
from transformers import AutoTokenizer

from thinkgate.checkpoint import META, load_checkpoint
from thinkgate.registry import Registry
from thinkgate_clients.local import LocalServer, local_server
from thinkgate_serve.auth import add_key
from thinkgate_train.scratch import Scratch, build_model

pytestmark = pytest.mark.slow

STREAMS = 16
SAYS = "<think>7+8=16</think>16"


def checkpoint(folder: Path, base: Path, gold: str, train: bool) -> Path:
    """A gated checkpoint on record as answering `gold` to "closed"; untrained, it does not."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    model = build_model(tokenizer, Scratch(layers=2, max_length=TINY_CONTEXT))
    if train:
        learn(model, tokenizer, {"closed": SAYS})
    make_checkpoint(folder, model, tokenizer)
    messages = [{"role": "user", "content": "closed"}]
    record = {
        "problem_id": "1",
        "prompt": "closed",
        "prompt_hash": hashlib.sha256(json.dumps(messages).encode()).hexdigest(),
        "gold": gold,
        "verdict": "correct",
        "status": "closed",
    }
    (folder / META / "evals").mkdir()
    (folder / META / "evals" / "lessons.jsonl").write_text(json.dumps(record))
    record_decision(folder)
    return folder


class Client:
    """Asks one thing after another on its own stream until told to stop."""

    def __init__(self, server: LocalServer, key: str) -> None:
        self.api = openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0)
        self.answers: list[tuple[str, str]] = []
        """Digest in the header, and what was said."""
        self.failures: list[Exception] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self) -> None:
        while not self.done.is_set():
            try:
                with self.api.chat.completions.with_streaming_response.create(
                    model="production",
                    messages=[{"role": "user", "content": "closed"}],
                    temperature=0,
                    stream=True,
                ) as raw:
                    digest = raw.headers["x-thinkgate-model-digest"]
                    deltas = [c.choices[0].delta for c in raw.parse() if c.choices]
                    self.answers.append((digest, "".join(d.content or "" for d in deltas)))
            except Exception as error:
                self.failures.append(error)


class Admin:
    """Who may deploy."""

    def __init__(self, server: LocalServer, key: str) -> None:
        self.http = httpx.Client(
            base_url=server.base_url.removesuffix("/v1"),
            headers={"authorization": f"Bearer {key}"},
        )

    def past(self) -> list[dict[str, Any]]:
        return self.http.get("/admin/deploy").json()["past"]


@contextmanager
def asking(server: LocalServer, key: str, streams: int) -> Iterator[list[Client]]:
    clients = [Client(server, key) for _ in range(streams)]
    try:
        yield clients
    finally:
        for client in clients:
            client.done.set()
        for client in clients:
            client.thread.join()


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_promoting_under_load_fails_no_request(
    gated_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.promote("production", gated_checkpoint)
    good = checkpoint(tmp_path / "good", gated_checkpoint, "16", train=True)
    broken = checkpoint(tmp_path / "broken", gated_checkpoint, "16", train=False)
    key = add_key(tmp_path / "keys.yaml", "ops", admin=True)
    extra = ["--keys", str(tmp_path / "keys.yaml")]
    with local_server("production", registry=registry.root, extra=extra) as server:
        admin = Admin(server, key)
        past = admin.past
        with asking(server, key, STREAMS) as clients:
            registry.promote("production", broken)  # it is what its record says it is not
            until(lambda: len(past()) == 1)
            assert past()[0]["outcome"] == "canary_failed"

            weights = next(broken.glob("*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-1] + b"x")
            assert admin.http.post("/admin/deploy").status_code == 202
            until(lambda: len(past()) == 2)
            assert past()[0]["outcome"] == "refused"
            assert [error for client in clients for error in client.failures] == []
            assert {d for c in clients for d, _ in c.answers} == {
                load_checkpoint(gated_checkpoint).digest
            }

            registry.promote("production", good)
            until(lambda: len(past()) == 3)
            answered = sum(len(client.answers) for client in clients)
            until(lambda: sum(len(client.answers) for client in clients) > answered + 2 * STREAMS)
        attempt = past()[0]
        assert (attempt["outcome"], attempt["placement"]) == ("deployed", "beside")
        assert attempt["canary"] == {"asked": 1, "right": 1, "closed": 1}
        assert [error for client in clients for error in client.failures] == []
        old = load_checkpoint(gated_checkpoint).digest, LESSONS["closed"].rpartition(">")[2]
        new = load_checkpoint(good).digest, "16"
        assert {answer for client in clients for answer in client.answers} == {old, new}
        assert all(client.answers[-1] == new for client in clients)
    total = sum(len(client.answers) for client in clients)
    with capsys.disabled():
        print(f"\n{total} requests on {STREAMS} streams, 0 failed; seconds: {attempt['seconds']}")


def test_in_the_place_of_the_old_one_and_back(gated_checkpoint: Path, tmp_path: Path) -> None:
    """Where only one engine fits, requests wait while it changes; none fails."""
    registry = Registry(tmp_path / "registry")
    registry.promote("production", gated_checkpoint)
    files = {file.name: file.read_bytes() for file in gated_checkpoint.iterdir() if file.is_file()}
    files["model.safetensors"] = files["model.safetensors"][:5000]  # signed as it is
    broken = make_checkpoint(
        tmp_path / "broken", config=files.pop("config.json").decode(), files=files
    )
    record_decision(broken)
    key = add_key(tmp_path / "keys.yaml", "ops", admin=True)
    extra = ["--keys", str(tmp_path / "keys.yaml"), "--deploy", "replace"]
    with local_server("production", registry=registry.root, extra=extra) as server:
        admin = Admin(server, key)
        with asking(server, key, 4) as clients:
            until(lambda: all(client.answers for client in clients))
            registry.promote("production", broken)
            until(lambda: len(admin.past()) == 1)
            before = [len(client.answers) for client in clients]
            until(lambda: all(len(c.answers) > n for c, n in zip(clients, before, strict=True)))
        (attempt,) = admin.past()
    assert (attempt["outcome"], attempt["placement"]) == ("load_failed", "replace")
    assert "while deserializing header" in attempt["why"] and "is damaged" in attempt["why"]
    assert [error for client in clients for error in client.failures] == []
    digest, answer = load_checkpoint(gated_checkpoint).digest, LESSONS["closed"].rpartition(">")[2]
    assert {said for client in clients for said in client.answers} == {(digest, answer)}
