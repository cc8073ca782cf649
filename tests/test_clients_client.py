"""Whatever names a server uses for the thought, whole or streamed, the reply is the same."""

import asyncio
import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint

from thinkgate.cli import main
from thinkgate.errors import ConfigError, EndpointError
from thinkgate.format import SplitStatus
from thinkgate_clients.client import (
    AnswerText,
    AsyncClient,
    Client,
    Failure,
    Finished,
    ReasoningText,
    Reply,
    RequestFailed,
    Usage,
    key_from,
)

CLOSED, TRUNCATED, UNTAGGED = SplitStatus.CLOSED, SplitStatus.TRUNCATED, SplitStatus.UNTAGGED
NONE_COUNTED = {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
NOT_COUNTED = {"reasoning_tokens": 0}  # as vLLM says of a thought that the prompt has opened

SHAPES = {
    "both names": (Says("42", "six times seven"), ("six times seven", "42", CLOSED)),
    "deepseek": (Says("42", "six", names=["reasoning_content"]), ("six", "42", CLOSED)),
    "vllm": (Says("42", "six", names=["reasoning"]), ("six", "42", CLOSED)),
    "openrouter": (Says("42", "six", names=["reasoning_details"]), ("six", "42", CLOSED)),
    "raw tags": (Says("<think>\nsix</think>\n\n42"), ("six", "42", CLOSED)),
    "raw, no tag": (Says("42 <think>"), ("", "42 <think>", UNTAGGED)),
    "raw, cut": (Says("<think>six ti", finish="length"), ("six ti", None, TRUNCATED)),
    "empty thought": (Says("42", ""), ("", "42", CLOSED)),
    "empty answer": (Says("", "six"), ("six", "", CLOSED)),
    "answer starts with a tag": (Says("<think>42", ""), ("", "<think>42", CLOSED)),
    "cut, content null": (Says(None, "six ti", finish="length"), ("six ti", None, TRUNCATED)),
    "cut, said so": (
        Says(None, "six", finish="length", choice={"reasoning_truncated": True}),
        ("six", None, TRUNCATED),
    ),
    "answer cut": (Says("4", "six", finish="length"), ("six", "4", CLOSED)),
    "thought kept secret": (Says(None, finish="length"), ("", None, TRUNCATED)),
}


def streamed(client: Client, **sampling: Any) -> Reply:
    """The reply of a stream, after checking that its pieces add up to it."""
    *pieces, last = client.stream("q", **sampling)
    assert isinstance(last, Finished)
    reply = last.reply
    assert "".join(p.text for p in pieces if isinstance(p, ReasoningText)) == reply.reasoning
    assert "".join(p.text for p in pieces if isinstance(p, AnswerText)) == (reply.answer or "")
    counted = [piece for piece in pieces if isinstance(piece, Usage)]
    cost = Usage(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        reasoning_tokens=reply.reasoning_tokens,
    )
    assert counted == ([] if reply.completion_tokens is None else [cost])
    return reply


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_reads_the_same_whole_and_streamed(shape: str) -> None:
    said, expected = SHAPES[shape]
    with ScriptedEndpoint(lambda _: said) as endpoint, Client(endpoint.base_url) as client:
        for reply in (client.ask("q"), streamed(client)):
            assert (reply.reasoning, reply.answer, reply.status) == expected
            assert reply.finish_reason == said.finish


def test_a_prefilled_thought_is_closed_by_its_tag_alone() -> None:
    with (
        ScriptedEndpoint(lambda _: Says("six</think>42")) as endpoint,
        Client(endpoint.base_url, prefilled=True) as client,
    ):
        for reply in (client.ask("q"), streamed(client)):
            assert (reply.reasoning, reply.answer, reply.status) == ("six", "42", CLOSED)


def test_counts_and_origin_are_the_servers() -> None:
    headers = {"X-Thinkgate-Model-Digest": "ab" * 32, "x-request-id": "req-7"}
    with (
        ScriptedEndpoint(lambda _: Says("42", "six"), headers=headers) as endpoint,
        Client(endpoint.base_url) as client,
    ):
        for reply in (client.ask("q"), streamed(client)):
            assert (reply.reasoning_tokens, reply.answer_tokens) == (7, 3)
            assert (reply.model_digest, reply.request_id) == ("ab" * 32, "req-7")
            assert reply.latency_s > 0


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        (Says("42", "six", usage=NONE_COUNTED), (None, None, 5)),
        (Says("42", usage=NONE_COUNTED), (0, 5, 5)),
        (Says("42", "six", usage=NONE_COUNTED | {"reasoning_tokens": 3}), (3, 2, 5)),  # SGLang
        (Says("42", "six", usage=NONE_COUNTED | {"reasoning_tokens": 0}), (None, None, 5)),
        (
            Says("42", "six", usage=NONE_COUNTED | {"completion_tokens_details": NOT_COUNTED}),
            (None, None, 5),
        ),
        (Says("42", "six", usage=None), (None, None, None)),
    ],
)
def test_counts_that_are_not_reported_are_not_guessed(said: Says, counts: tuple[Any, ...]) -> None:
    with ScriptedEndpoint(lambda _: said) as endpoint, Client(endpoint.base_url) as client:
        for reply in (client.ask("q"), streamed(client)):
            found = (reply.reasoning_tokens, reply.answer_tokens, reply.completion_tokens)
            assert found == counts


def test_parameters_the_sdk_does_not_know_reach_the_server() -> None:
    with (
        ScriptedEndpoint(lambda _: Says("42")) as endpoint,
        Client(endpoint.base_url) as client,
    ):
        client.ask("q", temperature=0.5, thinking_budget=9, seed=3, top_p=None)
        sent = endpoint.requests[0]
    assert (sent["temperature"], sent["thinking_budget"], sent["seed"]) == (0.5, 9, 3)
    assert "top_p" not in sent
    assert sent["messages"] == [{"role": "user", "content": "q"}]


def test_a_whole_and_a_streamed_request_are_the_same() -> None:
    asked = {"extra_body": {"top_k": 5, "cat": 1}, "min_p": 0.1, "seed": None, "timeout": 9.0}
    more = {"extra_headers": {"x-request-id": "mine"}}
    with ScriptedEndpoint(lambda _: Says("42")) as endpoint, Client(endpoint.base_url) as client:
        client.ask("q", temperature=0, **asked, **more)
        streamed(client, temperature=0, **asked, **more)
    whole, pieces = endpoint.requests
    headers = whole.pop("_headers"), pieces.pop("_headers")
    assert [sent["x-request-id"] for sent in headers] == ["mine"] * 2
    assert {k: v for k, v in pieces.items() if not k.startswith("stream")} == whole
    assert set(whole) == {"model", "messages", "temperature", "top_k", "cat", "min_p"}


def test_the_only_model_is_found_and_several_are_named() -> None:
    two = ({"id": "small"}, {"id": "large", "digest": "cd"})
    with ScriptedEndpoint(lambda _: Says("42"), models=two) as endpoint:
        with (
            Client(endpoint.base_url) as client,
            pytest.raises(EndpointError, match="small, large"),
        ):
            client.ask("q")
        with Client(endpoint.base_url, "large") as client:
            client.ask("q")
            assert [model.digest for model in client.models()] == [None, "cd"]
        assert endpoint.requests[0]["model"] == "large"


@pytest.mark.parametrize(
    ("fails", "failure", "tries", "words"),
    [
        (Fails(401, {"message": "no such key"}), Failure.REFUSED, 1, "no such key"),
        (Fails(404, {"message": "no model x"}), Failure.REFUSED, 1, "no model x"),
        (Fails(400, {"message": "too long", "code": "c"}), Failure.REJECTED, 1, "too long"),
        (Fails(429), Failure.FAILING, 2, "429"),
        (Fails(500), Failure.FAILING, 2, "out of paper"),
        (Fails(200, body="<html>login</html>"), Failure.FAILING, 1, "not a chat completion"),
        (Fails(hang=30), Failure.FAILING, 2, "in time"),
    ],
)
def test_failures_are_told_apart_and_retried_where_that_may_help(
    fails: Fails, failure: Failure, tries: int, words: str
) -> None:
    with (
        ScriptedEndpoint(lambda _: fails) as endpoint,
        Client(endpoint.base_url, "m", max_retries=1, timeout=1.0) as client,
    ):
        with pytest.raises(RequestFailed, match=words) as caught:
            client.ask("q")
        assert "\n" not in str(caught.value) and endpoint.base_url in str(caught.value)
        assert caught.value.failure is failure
        assert caught.value.code == fails.error.get("code")
        assert len(endpoint.requests) == tries


GOOD: dict[str, Any] = {
    "id": "x",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "5"}}],
}


@pytest.mark.parametrize(
    "choices",
    [
        "abc",
        7,
        [5],
        [{"finish_reason": "stop", "message": None}],
        [{"finish_reason": "stop", "message": "5"}],
        [{"finish_reason": "stop", "message": {"content": 5}}],
        [{"finish_reason": "stop", "message": {"content": [{"type": "text", "text": "5"}]}}],
        [{"finish_reason": "stop", "message": {"content": "", "reasoning_content": 5}}],
        [{"finish_reason": 5, "message": {"content": "5"}}],
    ],
)
def test_a_response_of_another_shape_is_a_failed_request(choices: object) -> None:
    fails = Fails(200, body=json.dumps(GOOD | {"choices": choices}))
    with (
        ScriptedEndpoint(lambda _: fails) as endpoint,
        Client(endpoint.base_url, "m", max_retries=0) as client,
        pytest.raises(RequestFailed) as caught,
    ):
        client.ask("q")
    assert caught.value.failure is Failure.FAILING


@pytest.mark.parametrize(
    "usage",
    [5, {}, {"completion_tokens": "x"}, {"completion_tokens": -4}, {"completion_tokens": 1.5}],
)
def test_counts_that_are_none_are_not_taken(usage: object) -> None:
    fails = Fails(200, body=json.dumps(GOOD | {"usage": usage}))
    with (
        ScriptedEndpoint(lambda _: fails) as endpoint,
        Client(endpoint.base_url, "m", max_retries=0) as client,
    ):
        reply = client.ask("q")
    assert (reply.answer, reply.completion_tokens, reply.answer_tokens) == ("5", None, None)


def test_escapes_in_a_servers_words_do_not_reach_the_terminal() -> None:
    with (
        ScriptedEndpoint(lambda _: Fails(401, {"message": "\x1b[2Jno\x07"})) as endpoint,
        Client(endpoint.base_url, "m") as client,
        pytest.raises(RequestFailed, match=r": \[2Jno$"),
    ):
        client.ask("q")


def test_a_server_that_recovers_is_asked_again() -> None:
    script = iter([Fails(503), Fails(429), Says("42")])
    with (
        ScriptedEndpoint(lambda _: next(script)) as endpoint,
        Client(endpoint.base_url, "m", max_retries=2) as client,
    ):
        assert client.ask("q").answer == "42"


def test_nobody_there() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with Client(url, "m", max_retries=0) as client:
            for ask in (lambda: client.ask("q"), lambda: list(client.stream("q")), client.models):
                with pytest.raises(RequestFailed, match="is the server running") as caught:
                    ask()
                assert caught.value.failure is Failure.UNREACHABLE


def test_a_stream_that_breaks_off_is_no_answer() -> None:
    with (
        ScriptedEndpoint(lambda _: Says("42", "six", breaks_off=True)) as endpoint,
        Client(endpoint.base_url, "m") as client,
        pytest.raises(RequestFailed, match="ended before"),
    ):
        list(client.stream("q"))


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://[::1",
        "http://h:99999",
        "http://h:x/v1",
        "http://a b/v1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(EndpointError, match="is not a web address"):
        Client(url)


def test_v1_is_added_where_there_is_no_path() -> None:
    assert Client("http://host:1/").base_url == "http://host:1/v1"
    assert Client("http://host:1/api/v3/").base_url == "http://host:1/api/v3"


def test_a_key_is_sent_only_when_its_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-another-service")
    with ScriptedEndpoint(lambda _: Says("42")) as endpoint:
        for variable in (None, "OPENAI_API_KEY"):
            with Client(endpoint.base_url, "m", api_key=key_from(variable)) as client:
                client.ask("q")
        sent = [request["_headers"]["authorization"] for request in endpoint.requests]
    assert sent == ["Bearer none", "Bearer secret-of-another-service"]
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        key_from("NO_SUCH_KEY")


def test_the_readme_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parent.parent / "clients" / "README.md").read_text()
    commands = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with ScriptedEndpoint(lambda _: Says("42", "six")) as endpoint:
        exec(code.replace("http://127.0.0.1:8000/v1", endpoint.base_url), {})
        assert capsys.readouterr().out == "six 42 closed 7\nsix42stop 3\n"
        monkeypatch.chdir(tmp_path)
        Path("questions.jsonl").write_text('{"prompt": "6*7"}\n', encoding="utf-8")
        there = [line.replace("http://127.0.0.1:8000/v1", endpoint.base_url) for line in commands]
        # The first waits for a person, the last for a served alias: tests of their own.
        _, asking, batching, _ = there
        assert main(shlex.split(asking)[1:]) == 0
        assert [r["temperature"] for r in endpoint.requests[2:]] == [0.0, 0.0]
        assert main(shlex.split(batching)[1:]) == 0
        [result] = map(json.loads, Path("answers.jsonl").read_text("utf-8").splitlines())
        assert "42" in json.dumps(result)


def test_async_client_asks_and_streams_the_same() -> None:
    async def scenario(url: str) -> tuple[Reply, Reply]:
        async with AsyncClient(url) as client:
            asked = await client.ask("q")
            events = [event async for event in client.stream("q")]
            with pytest.raises(RequestFailed):
                await AsyncClient(url, "m", max_retries=0).ask("fail")
        assert isinstance(events[-1], Finished)
        return asked, events[-1].reply

    def script(body: dict[str, Any]) -> Says | Fails:
        return Fails() if body["messages"][0]["content"] == "fail" else Says("42", "six")

    with ScriptedEndpoint(script) as endpoint:
        for reply in asyncio.run(scenario(endpoint.base_url)):
            assert (reply.reasoning, reply.answer, reply.status) == ("six", "42", CLOSED)
