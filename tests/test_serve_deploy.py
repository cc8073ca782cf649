"""Hot deploys on the scripted engine: what clients see, and going back when something is wrong."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import HELLO, FakeEngine, characters

from thinkgate.checkpoint import META
from thinkgate.errors import CheckpointError, ConfigError, ServerError
from thinkgate_serve.app import create_app
from thinkgate_serve.auth import Keyring, add_key
from thinkgate_serve.card import Card
from thinkgate_serve.deploy import Placement, Source
from thinkgate_serve.engine import Tokenizer
from thinkgate_serve.messages import Tool
from thinkgate_serve.model import Deployment
from thinkgate_serve.service import Settings
from thinkgate_serve.tools import Reader, Verbatim

OLD = Card(name="m", source="old", digest="aa" * 32, decision=None)
RIGHT = "<think>why</think>42"


def recorded(folder: Path, gold: str = "42", count: int = 4) -> Path:
    """A checkpoint folder with records of problems it solved."""
    lines: list[str] = []
    for at in range(count):
        messages = [{"role": "user", "content": f"problem {at}"}]
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]
        record = {"problem_id": str(at), "prompt": f"problem {at}", "prompt_hash": digest}
        record |= {"gold": gold, "verdict": "correct", "status": "closed"}
        lines.append(json.dumps(record))
    evals = folder / META / "evals"
    evals.mkdir(parents=True)
    (evals / "suite.jsonl").write_text("\n".join(lines))
    return folder


class Parser:
    """A tool parser that fits the new model, or does not."""

    def __init__(self, bench: "Bench") -> None:
        self.bench = bench

    def check(self, tokenizer: Tokenizer) -> None:
        if tokenizer is self.bench.new.tokenizer and not self.bench.fits:
            raise ConfigError("it does not fit this model's tokenizer")

    def reader(self, tools: Sequence[Tool], tokenizer: Tokenizer) -> Reader:
        return Verbatim()


class Bench:
    """A server on scripted engines, and the checkpoints it can be told to deploy."""

    def __init__(self, tmp_path: Path, placement: Placement) -> None:
        self.folder = tmp_path
        self.old = FakeEngine(characters("<think>old</think>41"))
        self.new = FakeEngine(characters(RIGHT))
        self.engines = {"old": self.old}
        self.card = Card(
            name="m", source=str(recorded(tmp_path / "new")), digest="bb" * 32, decision=None
        )
        self.was = OLD
        """What verifying the old checkpoint again finds."""
        self.refusal: Exception | None = None
        self.version = 0
        self.fits = True
        source = Source(
            target="production", find=self.find, load=self.load, version=lambda: self.version,
            known=0, room_beside=lambda _: True, placement=placement, drain_seconds=5,
        )  # fmt: skip
        self.admin = add_key(tmp_path / "keys.yaml", "ops", admin=True)
        self.user = add_key(tmp_path / "keys.yaml", "user")
        keyring = Keyring.load(tmp_path / "keys.yaml", {})
        settings = Settings(keyring=keyring, tool_parser=Parser(self))
        self.app = create_app(Deployment(self.old, OLD), settings, source)
        self.service = self.app.state.service
        transport = httpx.ASGITransport(app=self.app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def find(self, target: str, lora: Mapping[str, str]) -> tuple[Card, Sequence[Card]]:
        if target == OLD.source:
            return self.was, ()
        if self.refusal is not None:
            raise self.refusal
        return self.card, ()

    def load(self, card: Card, adapters: Sequence[Card]) -> Deployment:
        engine = self.old if card is OLD else self.new
        if engine.failure is not None:
            raise engine.failure
        engine.dead = False
        return Deployment(engine, card)

    async def send(self, method: str, path: str, key: str | None = None, **body: Any) -> Any:
        headers = {"authorization": f"Bearer {key or self.admin}"}
        headers["content-type"] = "application/json"
        content = json.dumps(body) if body else None
        return await self.client.request(method, path, content=content, headers=headers)

    async def ask(self) -> tuple[int, str]:
        response = await self.send("POST", "/v1/chat/completions", messages=HELLO)
        return response.status_code, response.headers.get("x-thinkgate-model-digest", "")[:2]

    async def deploy(self) -> Any:
        """Deploy to the end; how it went."""
        assert (await self.send("POST", "/admin/deploy")).status_code == 202
        return await self.ended()

    async def ended(self, count: int = 1) -> Any:
        async with asyncio.timeout(20):
            while True:
                status = (await self.send("GET", "/admin/deploy")).json()
                if status["running"] is None and len(status["past"]) >= count:
                    return status["past"][0]
                await asyncio.sleep(0.01)


Test = Callable[[Bench], Awaitable[None]]


def run(tmp_path: Path, test: Test, placement: Placement = Placement.BESIDE) -> None:
    async def whole() -> None:
        bench = Bench(tmp_path, placement)
        async with bench.app.router.lifespan_context(bench.app):
            await test(bench)
        assert bench.service.deployment.in_flight == 0

    asyncio.run(whole())


@pytest.mark.parametrize("placement", [Placement.BESIDE, Placement.REPLACE, Placement.AUTO])
def test_no_request_fails_while_the_model_changes(tmp_path: Path, placement: Placement) -> None:
    async def test(bench: Bench) -> None:
        seen: list[tuple[int, str]] = []

        async def client() -> None:
            while len(seen) < 400:
                seen.append(await bench.ask())

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await asyncio.sleep(0.05)
        attempt = await bench.deploy()
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        seen.append(await bench.ask())
        assert (attempt["outcome"], attempt["digest"]) == ("deployed", "bb" * 32)
        assert attempt["canary"] == {"asked": 4, "right": 4, "closed": 4}
        assert {status for status, _ in seen} == {200}
        assert {digest for _, digest in seen} == {"aa", "bb"}
        assert seen[-1][1] == "bb"
        assert (bench.old.dead, bench.new.dead) == (True, False)
        metrics = (await bench.client.get("/metrics")).text
        assert 'thinkgate_deploys_total{outcome="deployed"} 1.0' in metrics
        assert f'thinkgate_model_info{{decision="ungated",digest="{"bb" * 32}"' in metrics
        assert f'thinkgate_model_info{{decision="ungated",digest="{"aa" * 32}"' not in metrics
        assert f'digest="{"aa" * 32}",model="m"}}' in metrics

    run(tmp_path, test, placement)


@pytest.mark.parametrize("placement", [Placement.BESIDE, Placement.REPLACE])
@pytest.mark.parametrize(
    ("spoil", "outcome", "why"),
    [
        ("weights", "canary_failed", "0 are right here"),
        ("format", "canary_failed", "0 have the recorded format"),
        ("load", "load_failed", "vLLM could not load it"),
        ("dies", "load_failed", "EngineDead"),
        ("hangs", "canary_failed", "no answer within 0.2 seconds"),
        ("tool parser", "load_failed", "does not fit"),
        ("tampered", "refused", "a file was changed"),
    ],
)
def test_what_is_wrong_leaves_the_old_one_serving(
    tmp_path: Path,
    placement: Placement,
    spoil: str,
    outcome: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thinkgate_serve.canary.PATIENCE_SECONDS", 0.2)

    async def test(bench: Bench) -> None:
        if spoil == "weights":
            bench.new.script = lambda *_: characters("<think>hm</think>43")
        elif spoil == "format":
            bench.new.script = lambda *_: characters("42")
        elif spoil == "load":
            bench.new.failure = ServerError("vLLM could not load it")
        elif spoil == "dies":
            bench.new.die = True
        elif spoil == "hangs":
            bench.new.hang = True
        elif spoil == "tool parser":
            bench.fits = False
        else:
            bench.refusal = CheckpointError("a file was changed")
        attempt = await bench.deploy()
        assert (attempt["outcome"], attempt["stage"]) == (outcome, None)
        assert why in attempt["why"]
        assert await bench.ask() == (200, "aa")
        assert not bench.service.dead
        if spoil not in ("load", "tampered"):
            assert bench.new.dead
        metrics = (await bench.client.get("/metrics")).text
        assert f'thinkgate_deploys_total{{outcome="{outcome}"}} 1.0' in metrics

    run(tmp_path, test, placement)


@pytest.mark.parametrize("placement", [Placement.BESIDE, Placement.REPLACE])
@pytest.mark.parametrize("dies", [False, True])
def test_without_records_it_must_say_something(
    tmp_path: Path, placement: Placement, dies: bool
) -> None:
    async def test(bench: Bench) -> None:
        bench.card = replace(bench.card, source=str(recorded(tmp_path / "unrecorded", count=0)))
        bench.new.die = dies
        attempt = await bench.deploy()
        assert attempt["outcome"] == ("load_failed" if dies else "deployed")
        assert len(bench.new.requests) == 1
        assert await bench.ask() == (200, "aa" if dies else "bb")

    run(tmp_path, test, placement)


def test_nothing_unproven_comes_back(tmp_path: Path) -> None:
    """The old checkpoint's files may have been changed since it was loaded."""

    async def test(bench: Bench) -> None:
        bench.was = replace(OLD, digest="cc" * 32)
        bench.new.failure = ServerError("vLLM could not load it")
        attempt = await bench.deploy()
        assert (attempt["outcome"], bench.service.dead) == ("load_failed", True)
        assert "no longer what was served" in attempt["why"]

    run(tmp_path, test, Placement.REPLACE)


def test_waiting_for_a_new_model_has_its_limit_too(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.service.settings = replace(bench.service.settings, request_timeout=0.1)
        with bench.service.holding():
            assert (await bench.client.get("/ready")).status_code == 503
            response = await bench.send("POST", "/v1/chat/completions", messages=HELLO)
            assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert (await bench.client.get("/ready")).status_code == 200
        assert "thinkgate_request_timeouts_total 1.0" in (await bench.client.get("/metrics")).text

    run(tmp_path, test)


def test_a_server_on_its_way_out_deploys_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkgate_serve.deploy.WATCH_SECONDS", 0.01)

    async def test(bench: Bench) -> None:
        bench.service.limiter.leaving = True
        refused = await bench.send("POST", "/admin/deploy")
        assert refused.status_code == 409 and "shutting down" in refused.text
        bench.version = 1
        await asyncio.sleep(0.1)
        assert (await bench.send("GET", "/admin/deploy")).json()["past"] == []

    run(tmp_path, test)


def test_a_thought_begun_on_the_old_model_ends_on_it(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        bench.old.hang = True
        begun = asyncio.create_task(bench.ask())
        while not bench.old.running:
            await asyncio.sleep(0)
        await bench.send("POST", "/admin/deploy")
        async with asyncio.timeout(10):
            while bench.service.deployment.engine is bench.old:
                await asyncio.sleep(0.01)
        assert await bench.ask() == (200, "bb")
        assert (await bench.send("POST", "/admin/deploy")).status_code == 409  # it drains
        assert not begun.done()
        assert not bench.old.dead
        bench.old.hang = False
        assert await begun == (200, "aa")
        assert (await bench.ended())["outcome"] == "deployed"
        assert bench.old.dead

    run(tmp_path, test)


def test_an_alias_that_moves_is_followed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinkgate_serve.deploy.WATCH_SECONDS", 0.01)

    async def test(bench: Bench) -> None:
        await asyncio.sleep(0.1)
        assert (await bench.send("GET", "/admin/deploy")).json()["past"] == []
        bench.version = 1
        assert (await bench.ended())["outcome"] == "deployed"
        bench.version = 2  # promoted again, and it is what is served
        assert (await bench.ended(2))["outcome"] == "unchanged"
        bench.refusal = CheckpointError("tampered")
        bench.version = 3
        assert (await bench.ended(3))["outcome"] == "refused"
        await asyncio.sleep(0.1)
        assert len((await bench.send("GET", "/admin/deploy")).json()["past"]) == 3
        bench.refusal = None  # by hand it is tried again
        assert (await bench.send("POST", "/admin/deploy")).status_code == 202
        assert (await bench.ended(4))["outcome"] == "unchanged"

    run(tmp_path, test)


def test_deploying_takes_an_admin_key(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        for method in ("GET", "POST"):
            response = await bench.send(method, "/admin/deploy", bench.user)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "admin_key_required"
            assert (await bench.send(method, "/admin/deploy", "wrong")).status_code == 401
        for body, param in (({"goal": "x"}, "goal"), ({"target": "\ud800"}, "target")):
            wrong = await bench.send("POST", "/admin/deploy", **body)
            assert wrong.status_code == 400
            assert wrong.json()["error"]["param"] == param

    run(tmp_path, test)
