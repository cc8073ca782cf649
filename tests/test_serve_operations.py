"""Keys, limits, queue, time limit, draining, logs and CORS of the whole application."""

import asyncio
import io
import json
import signal
import socket
import threading
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import CARD, HELLO, FakeEngine, ask, characters
from serving import Running, client, eventually, running

from thinkgate.cli import main
from thinkgate.errors import ConfigError
from thinkgate_serve import middleware
from thinkgate_serve.app import create_app
from thinkgate_serve.auth import ApiKey, Keyring, add_key, digest, read_keys
from thinkgate_serve.command import add_arguments
from thinkgate_serve.limits import Admission, Limiter, Reason, Refusal
from thinkgate_serve.logs import LogFormat, RequestLog
from thinkgate_serve.model import Deployment
from thinkgate_serve.options import ServeConfig, load_options
from thinkgate_serve.service import Settings

ASKED = {"messages": HELLO}
SECRET = "tg-a-secret-that-is-long-enough"


def key(name: str = "alice", **limits: int) -> ApiKey:
    return ApiKey(name=name, sha256=digest(SECRET), **limits)


def bearer(secret: str = SECRET) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


# Keys


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(""), {"authorization": f"Basic {SECRET}"}, bearer("ü" * 9)],
)
def test_without_a_right_key_nothing_is_answered(headers: dict[str, str]) -> None:
    engine = FakeEngine(characters("x"))
    settings = Settings(keyring=Keyring([key()]))
    raw: Any = {name: value.encode() for name, value in headers.items()}
    for path in ("/v1/chat/completions", "/tokenize", "/v1/nothing"):
        response = ask(engine, path, settings=settings, headers=raw, messages=HELLO)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert SECRET not in response.text
    assert ask(engine, "/v1/models", settings=settings, method="GET").status_code == 401
    assert engine.requests == []


def test_the_right_key_and_the_open_paths() -> None:
    engine = FakeEngine(characters("x"))
    settings = Settings(keyring=Keyring([key("bob"), ApiKey(name="c", sha256=digest("other"))]))
    for secret in (SECRET, "other"):
        headers = bearer(secret)
        assert ask(engine, settings=settings, headers=headers, messages=HELLO).status_code == 200
    for path in ("/health", "/ready", "/metrics", "/version", "/docs"):
        assert ask(engine, path, settings=settings, method="GET").status_code == 200
    document = ask(engine, "/openapi.json", settings=settings, method="GET").json()
    assert document["components"]["securitySchemes"] == {
        "HTTPBearer": {"type": "http", "scheme": "bearer"}
    }
    assert "securitySchemes" not in ask(engine, "/openapi.json", method="GET").text


def test_keys_are_made_listed_removed_and_nowhere_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.yaml"
    assert main(["api-keys", "add", "a", "--file", str(file), "--concurrency", "3"]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret not in file.read_text() and digest(secret) in file.read_text()
    found = Keyring.load(file, {}).find(f"Bearer {secret}")
    assert found is not None and (found.name, found.concurrency) == ("a", 3)
    assert main(["api-keys", "add", "a", "--file", str(file)]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["api-keys", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out == "a  concurrency=3\n"
    assert main(["api-keys", "remove", "b", "--file", str(file)]) == 2
    assert main(["api-keys", "remove", "a", "--file", str(file)]) == 0
    assert read_keys(file) == ()
    assert main(["api-keys", "add", "bad name", "--file", str(file)]) == 2


def test_bad_keys_are_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("keys:\n  - {name: a, sha256: secret}\n")
    with pytest.raises(ConfigError, match="not a SHA-256"):
        Keyring.load(file, {})
    file.write_text("keys: []\n")
    with pytest.raises(ConfigError, match="no keys"):
        Keyring.load(file, {})
    with pytest.raises(ConfigError, match="THINKGATE_API_KEY has 3"):
        Keyring.load(None, {"THINKGATE_API_KEY": "abc"})
    found = Keyring.load(None, {"THINKGATE_API_KEY": SECRET}).find(f"Bearer {SECRET}")
    assert found is not None and not found.admin
    add_key(file := tmp_path / "more.yaml", "env")
    with pytest.raises(ValueError, match="two keys are named 'env'"):
        Keyring.load(file, {"THINKGATE_API_KEY": SECRET})


# Limits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_of_requests() -> None:
    clock = Clock()
    limiter, alice = Limiter(10, clock), key(requests_per_minute=2)
    for _ in range(2):
        taken = limiter.admit(alice)
        assert isinstance(taken, Admission)
        limiter.release(taken)
        limiter.release(taken)  # twice is once
    refused = limiter.admit(alice)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.reason, refused.retry_after) == (429, Reason.REQUEST_RATE, 30)
    clock.now = 30
    assert isinstance(limiter.admit(alice), Admission)
    assert isinstance(limiter.admit(key("bob", requests_per_minute=1)), Admission)
    assert limiter.in_flight == 2


def test_tokens_are_paid_for_afterwards() -> None:
    clock = Clock()
    limiter, alice = Limiter(10, clock), key(tokens_per_minute=60)
    taken = limiter.admit(alice)
    assert isinstance(taken, Admission)
    limiter.used(taken, 100)
    refused = limiter.admit(alice)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.retry_after) == (Reason.TOKEN_RATE, 41)
    clock.now = 41
    assert isinstance(limiter.admit(alice), Admission)


def test_the_queue_is_what_has_no_token_yet() -> None:
    limiter = Limiter(1)
    first = limiter.admit(None)
    assert isinstance(first, Admission)
    full = limiter.admit(None)
    assert isinstance(full, Refusal) and (full.status, full.reason) == (503, Reason.QUEUE)
    limiter.started(first)
    assert isinstance(limiter.admit(None), Admission)


def test_refusals_look_as_openai_words_them() -> None:
    engine = FakeEngine(characters("x"))
    settings = Settings(keyring=Keyring([key(requests_per_minute=1)]))

    async def twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=create_app(Deployment(engine, CARD), settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            body = {"messages": HELLO}
            path = "/v1/chat/completions"
            return [await http.post(path, json=body, headers=bearer()) for _ in range(2)]

    good, limited = asyncio.run(twice())
    assert good.headers["x-ratelimit-limit-requests"] == "1"
    assert good.headers["x-ratelimit-remaining-requests"] == "0"
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) in (59, 60)
    assert limited.json()["error"]["code"] == "rate_limit_exceeded"
    assert limited.headers["x-request-id"]


def test_one_at_a_time_and_a_full_queue() -> None:
    for settings, error in (
        (Settings(keyring=Keyring([key(concurrency=1)])), openai.RateLimitError),
        (Settings(keyring=Keyring([key()]), max_queue=1), openai.InternalServerError),
    ):
        engine = FakeEngine([])
        engine.hang = True
        with running(engine, settings) as server:
            waiting = threading.Thread(target=_post, args=(server,))
            waiting.start()
            assert eventually(lambda engine=engine: engine.running == 1)
            with pytest.raises(error) as raised:
                _ask(server)
            assert raised.value.response.headers["retry-after"] == "1"
            metrics = httpx.get(server.url.replace("/v1", "/metrics")).text
            assert "thinkgate_waiting_requests 1.0" in metrics
            assert "thinkgate_requests_refused_total{reason=" in metrics
            engine.hang = False
            waiting.join()


def _ask(server: Running) -> Any:
    return client(server, SECRET).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]


def _post(server: Running) -> None:
    httpx.post(
        f"{server.url}/chat/completions", json={"messages": HELLO}, headers=bearer(), timeout=60
    )


# Time


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(stream: bool) -> None:
    engine = FakeEngine(characters("<think>on"))
    engine.hang = True
    response = ask(engine, settings=Settings(request_timeout=0.2), messages=HELLO, stream=stream)
    if stream:
        error = json.loads(response.text.split("data: ")[-1])["error"]
        assert response.status_code == 200 and "[DONE]" not in response.text
    else:
        error = response.json()["error"]
        assert response.status_code == 504
        assert response.headers["x-should-retry"] == "false"
    assert error["code"] == "timeout"
    assert engine.running == 0


def test_a_stream_without_a_first_token_times_out_with_a_status() -> None:
    engine = FakeEngine([])
    engine.hang = True
    with running(engine, Settings(request_timeout=0.1)) as server:
        response = httpx.post(f"{server.url}/chat/completions", json=ASKED | {"stream": True})
        assert response.status_code == 504
        metrics = httpx.get(f"{server.url.removesuffix('/v1')}/metrics").text
    assert "thinkgate_request_timeouts_total 1.0" in metrics


# Draining


def test_sigterm_finishes_what_runs_and_takes_nothing_new() -> None:
    engine = FakeEngine(characters("<think>why</think>42"))
    engine.hang = True
    with running(engine) as server:
        streams = [
            client(server).chat.completions.create(model="m", messages=HELLO, stream=True)  # type: ignore[arg-type]
            for _ in range(20)
        ]
        assert server.door is not None
        server.door.handle_exit(signal.SIGTERM, None)
        root = server.url.removesuffix("/v1")
        assert httpx.get(f"{root}/ready").status_code == 503
        assert httpx.get(f"{root}/health").status_code == 200
        refused = httpx.post(f"{server.url}/chat/completions", json={"messages": HELLO})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "draining"
        engine.hang = False
        for stream in streams:
            chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "42"
            assert chunks[-1].choices[0].finish_reason
        assert eventually(lambda: server.exit_code == 0)
    assert server.exit_code == 0


def test_during_the_drain_delay_requests_are_still_taken() -> None:
    engine = FakeEngine(characters("<think>why</think>42"))
    with running(engine, drain_delay=1) as server:
        assert server.door is not None
        server.door.handle_exit(signal.SIGTERM, None)
        assert httpx.get(f"{server.url.removesuffix('/v1')}/ready").status_code == 503
        assert httpx.post(f"{server.url}/chat/completions", json=ASKED).status_code == 200
        assert server.exit_code is None
        assert eventually(lambda: server.exit_code == 0)


# Streams under load


def test_two_hundred_streams_and_a_reader_who_does_not_read() -> None:
    long = "<think>" + "x" * 40 + "</think>" + "y" * 20
    engine = FakeEngine(lambda prompt, _: characters(long * 20000 if "slow" in prompt else long))
    with running(engine) as server:
        slow = {"messages": [{"role": "user", "content": "slow"}], "stream": True}
        with httpx.stream("POST", f"{server.url}/chat/completions", json=slow, timeout=60):
            assert eventually(lambda: engine.produced > 1000)
            before = -1
            while engine.produced != before:  # until it stalls: nothing piles up in memory
                before = engine.produced
                time.sleep(0.2)
            assert engine.produced < len(long) * 20000 / 2

            async def many() -> list[str]:
                limits = httpx.Limits(max_connections=200)
                async with httpx.AsyncClient(limits=limits, timeout=100) as http:
                    body = {"messages": HELLO, "stream": True}
                    url = f"{server.url}/chat/completions"
                    replies = await asyncio.gather(*(http.post(url, json=body) for _ in range(200)))
                    return [reply.text[-14:] for reply in replies]

            assert asyncio.run(many()) == ["data: [DONE]\n\n"] * 200
        assert eventually(lambda: engine.running == 0)


def test_ten_megabytes_are_refused() -> None:
    with running(FakeEngine([])) as server:
        response = httpx.post(f"{server.url}/chat/completions", content=b" " * 10_000_000)
        assert response.status_code == 413


def test_a_body_that_never_comes_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 1.5)
    with running(FakeEngine(characters("x")), Settings(max_queue=1)) as server:
        where = httpx.URL(server.url)
        with socket.create_connection((where.host, where.port or 0), timeout=10) as slow:
            slow.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
            )
            assert eventually(lambda: httpx.post(server.url + "/completions").status_code == 503)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert httpx.post(f"{server.url}/chat/completions", json=ASKED).status_code == 200


# Logs and CORS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device always full")
def test_a_full_disk_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(characters("42"))

    async def twice() -> list[str]:
        app = create_app(Deployment(engine, CARD), Settings(log_format=LogFormat.TEXT))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            for _ in range(2):
                reply = await http.post("/v1/chat/completions", json=ASKED)
                assert reply.status_code == 200
            return (await http.get("/metrics")).text.splitlines()

    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        lines = asyncio.run(twice())
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert "thinkgate_log_lines_lost_total 2.0" in lines


def test_one_line_per_request_without_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    secret_words = [{"role": "user", "content": "private words"}]
    for shown in (False, True):
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        settings = Settings(log_format=LogFormat.JSON, log_prompts=shown, keyring=Keyring([key()]))
        engine = FakeEngine(characters("<think>why</think>42"))
        ask(engine, settings=settings, headers=bearer(), messages=secret_words)
        ask(engine, "/health", settings=settings, method="GET")
        (line,) = out.getvalue().splitlines()
        entry = json.loads(line)
        assert (entry["key"], entry["status"], entry["finish"]) == ("alice", 200, ["stop"])
        assert (entry["reasoning_tokens"], entry["answer_tokens"]) == (18, 2)
        assert entry["ttft"] <= entry["seconds"]
        assert ("private words" in line) is shown


def test_no_client_can_forge_a_line() -> None:
    from thinkgate_serve.logs import Exchange

    out = io.StringIO()
    RequestLog(LogFormat.TEXT, out).write(Exchange("id", "GET", "/a\n2026 POST /v1 200 \x1b[1m"))
    assert len(out.getvalue().splitlines()) == 1 and "\x1b" not in out.getvalue()


def test_cors_is_off_until_asked_for() -> None:
    engine = FakeEngine(characters("x"))
    origin = {"origin": "https://app.example"}
    assert "access-control-allow-origin" not in ask(engine, headers=origin, messages=HELLO).headers
    settings = Settings(cors_origins=("https://app.example",))
    response = ask(engine, settings=settings, headers=origin, messages=HELLO)
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    other = ask(engine, settings=settings, headers={"origin": "https://x.example"}, messages=HELLO)
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a/b", ""])
def test_an_origin_no_browser_would_send_is_a_mistake(origin: str) -> None:
    with pytest.raises(ConfigError, match="not a web origin"):
        options("x", "--cors-origin", origin).settings()
    options("x", "--cors-origin", "https://app.example:8443", "--cors-origin", "*").settings()


# The command line


def test_choices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert options("x", "--log-format", "json").log_format is LogFormat.JSON
    for option in ("--log-format", "--deploy", "--reasoning-field"):
        with pytest.raises(SystemExit):
            options("x", option, "sideways")
        assert "invalid choice: 'sideways' (choose from '" in capsys.readouterr().err


def options(*words: str) -> ServeConfig:
    parser = ArgumentParser()
    add_arguments(parser)
    return load_options(parser.parse_intermixed_args(list(words)))


def test_options_win_over_words_and_words_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("target: a\nport: 1\nmax_queue: 1\ndrain: 1\nengine: {dtype: half, seed: 1}\n")
    found = options("--config", str(file), "max_queue=2", "drain=2", "engine.seed=2", "--drain=3")
    assert (found.target, found.port, found.max_queue, found.drain) == ("a", 1, 2, 3)
    assert found.engine == {"dtype": "half", "seed": 2}
    assert options("b", "--config", str(file), "--engine.seed", "5").engine["seed"] == 5
    file.write_text("target: a\nmax_que: 1\n")
    with pytest.raises(ConfigError, match="unknown key 'max_que'; did you mean 'max_queue'"):
        options("--config", str(file))
    with pytest.raises(ConfigError, match="what to serve"):
        options()
    with pytest.raises(ConfigError, match="one TARGET at a time"):
        options("a", "b")


def test_the_environment_sets_engines_that_nothing_else_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("target: a\nengine: {seed: 1}\n")
    monkeypatch.setenv("THINKGATE_ENGINE", "gpu_memory_utilization=0.4 seed=9 dtype=half")
    found = options("--config", str(file), "--engine.dtype", "float16").engine
    assert found == {"gpu_memory_utilization": 0.4, "seed": 1, "dtype": "float16"}
    monkeypatch.setenv("THINKGATE_ENGINE", "seed")
    with pytest.raises(ConfigError, match="THINKGATE_ENGINE: override 'seed': write it as key=va"):
        options("a")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_no_open_door_by_mistake(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINKGATE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no API keys"):
        options("x", "--host", host).settings()
    assert not options("x", "--host", host, "--no-keys").settings().keyring
    monkeypatch.setenv("THINKGATE_API_KEY", SECRET)
    assert options("x", "--host", host).settings().keyring
    with pytest.raises(ConfigError, match="--no-keys contradicts"):
        options("x", "--no-keys").settings()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_at_home_no_key_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THINKGATE_API_KEY", raising=False)
    assert not options("x", "--host", host).settings().keyring
