"""The application over a real socket: disconnects, draining, the death of the engine."""

import json
import socket
import threading

import httpx
import openai
import pytest
from fake_engine import HELLO, FakeEngine, characters
from serving import client, eventually, running

from thinkgate_serve.process import ENGINE_DIED


def test_the_openai_client_reads_reasoning_and_answer() -> None:
    with running(FakeEngine(characters("<think>wħy</think>42 ☂"))) as server:
        whole = client(server).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]
        message = whole.choices[0].message
        assert (message.reasoning_content, message.content) == ("wħy", "42 ☂")  # type: ignore[attr-defined]
        stream = client(server).chat.completions.create(model="m", messages=HELLO, stream=True)  # type: ignore[arg-type]
        deltas = [chunk.choices[0].delta for chunk in stream]
        assert "".join(getattr(d, "reasoning_content", "") for d in deltas) == "wħy"
        assert "".join(d.content or "" for d in deltas) == "42 ☂"
    assert server.exit_code == ENGINE_DIED


def test_a_stream_whose_reader_leaves_is_aborted() -> None:
    engine = FakeEngine(characters("<think>on and on"))
    engine.hang = True
    with running(engine) as server:
        stream = client(server).chat.completions.create(model="m", messages=HELLO, stream=True)  # type: ignore[arg-type]
        next(iter(stream))
        assert engine.running == 1
        stream.close()
        assert eventually(lambda: engine.running == 0)
        text = httpx.get(server.url.replace("/v1", "/metrics")).text
        assert "thinkgate_running_requests 0.0" in text
        assert 'thinkgate_tokens_total{channel="reasoning"}' in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_reader_leaves_before_the_first_word_is_aborted(stream: bool) -> None:
    engine = FakeEngine([])
    engine.hang = True
    with running(engine) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/chat/completions",
                json={"messages": HELLO, "n": 2, "stream": stream},
                timeout=1,
            )
        assert eventually(lambda: engine.running == 0)
        assert len(engine.requests) == 2
        assert eventually(
            lambda: 'status="499"} 1.0' in httpx.get(server.url.replace("/v1", "/metrics")).text
        )


def test_a_dying_engine_ends_streams_and_the_server() -> None:
    engine = FakeEngine(characters("<think>half"))
    engine.die = True
    with running(engine) as server:
        stream = client(server).chat.completions.create(model="m", messages=HELLO, stream=True)  # type: ignore[arg-type]
        with pytest.raises(openai.APIError, match="the engine has stopped"):
            list(stream)
    assert server.exit_code == ENGINE_DIED


def test_many_streams_at_once() -> None:
    with running(FakeEngine(characters("<think>why</think>42"))) as server:
        results: list[str] = []

        def one() -> None:
            reply = httpx.post(
                f"{server.url}/chat/completions",
                json={"messages": HELLO, "stream": True},
                timeout=60,
            )
            results.append(reply.text[-14:])

        threads = [threading.Thread(target=one) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == ["data: [DONE]\n\n"] * 50
        assert server.engine.running == 0


def test_metrics_count_by_channel() -> None:
    with running(FakeEngine(characters("<think>why</think>42"))) as server:
        client(server).chat.completions.create(model="m", messages=HELLO)  # type: ignore[arg-type]
        httpx.get(server.url + "/no/such/path")
        text = httpx.get(server.url.replace("/v1", "/metrics")).text
    reasoning = len("<think>why</think>")
    assert f'thinkgate_tokens_total{{channel="reasoning"}} {reasoning}.0' in text
    assert 'thinkgate_tokens_total{channel="answer"} 2.0' in text
    assert 'thinkgate_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'thinkgate_requests_total{path="other",status="404"} 1.0' in text
    assert "thinkgate_time_to_first_token_seconds_count 1.0" in text
    assert "thinkgate_time_to_first_answer_seconds_count 1.0" in text


def test_what_is_there_for_get_is_there_for_head() -> None:
    """Load balancers and monitors ask so; the connection goes on being used."""
    with running(FakeEngine(characters("x"))) as server, httpx.Client() as http:
        root = server.url.removesuffix("/v1")
        for path in ("/health", "/ready", "/v1/models", "/metrics", "/"):
            head, get = http.head(f"{root}{path}"), http.get(f"{root}{path}")
            assert (head.status_code, get.status_code, head.content) == (200, 200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
        assert http.head(f"{root}/v1/nothing").status_code == 404
        assert http.head(f"{server.url}/chat/completions").status_code == 405


def test_requests_sent_at_once_on_one_connection_are_answered_in_order() -> None:
    body = json.dumps({"messages": HELLO}).encode()
    asked = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"X-Request-Id: %d\r\nContent-Length: %d\r\n%b\r\n%b"
        % (number, len(body), b"Connection: close\r\n" if number == 3 else b"", body)
        for number in (1, 2, 3)
    ]
    with running(FakeEngine(characters("x"))) as server:
        address = server.url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
            connection.sendall(b"".join(asked))
            answered = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answered.count(b"HTTP/1.1 200") == 3
    order = [answered.index(b"x-request-id: %d" % number) for number in (1, 2, 3)]
    assert order == sorted(order)
