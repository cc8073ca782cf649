"""A server for tests, scripted or real, and how they ask it.

The scripted one is the whole application on a real socket, over a `FakeEngine`; the real one is
conftest's `served`.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai
from fake_engine import CARD, FakeEngine

from thinkgate_clients.local import LocalServer
from thinkgate_serve.app import create_app
from thinkgate_serve.card import Card
from thinkgate_serve.model import Deployment
from thinkgate_serve.process import Server, bind, make_server, serve
from thinkgate_serve.service import Settings
from thinkgate_serve.vllm_tools import VLLMToolParser

HERMES = Settings(tool_parser=VLLMToolParser("hermes"))


@dataclass
class Running:
    url: str
    engine: FakeEngine
    exit_code: int | None = None
    door: Server | None = None


@contextmanager
def running(
    engine: FakeEngine,
    settings: Settings | None = None,
    drain_delay: int = 0,
    card: Card = CARD,
) -> Iterator[Running]:
    """The server in a thread; it ends when its engine is dead."""
    sock = bind("127.0.0.1", 0)
    up = threading.Event()
    server = Running(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", engine)

    def work() -> None:
        app = create_app(Deployment(engine, card), settings)
        listening = make_server(app, announce=up.set, drain_seconds=5, drain_delay=drain_delay)
        server.door = listening
        server.exit_code = serve(listening, sock)

    thread = threading.Thread(target=work)
    thread.start()
    assert up.wait(10)
    try:
        yield server
    finally:
        engine.hang = False
        engine.dead = True
        thread.join(20)
        assert not thread.is_alive()


def client(server: Running | LocalServer, key: str = "none") -> openai.OpenAI:
    url = server.url if isinstance(server, Running) else server.base_url
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def root(server: LocalServer) -> str:
    """Where the paths that are not OpenAI's begin."""
    return server.base_url.removesuffix("/v1")


def without_spaces(server: LocalServer) -> dict[str, int]:
    """A bias: JSON allows any number of spaces, and a tiny model knows no end."""
    tokens = httpx.post(f"{root(server)}/tokenize", json={"prompt": " \n\t\r"}).json()["tokens"]
    return {str(token): -100 for token in tokens}
