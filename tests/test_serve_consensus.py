"""Self-consistency against a scripted engine: who wins, what is reported, what is aborted."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from fake_engine import CARD, HELLO, FakeEngine, ask, characters
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import client, eventually, running

from thinkgate_serve import consensus
from thinkgate_serve.app import create_app
from thinkgate_serve.engine import Delta, Finish, Sampling
from thinkgate_serve.model import Deployment

SEED = 100
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def voters(*replies: str | Iterable[Delta]) -> FakeEngine:
    """An engine whose sample i says `replies[i]`."""

    def script(_: str, sampling: Sampling) -> Iterable[Delta]:
        reply = replies[(sampling.seed or SEED) - SEED]
        return characters(reply) if isinstance(reply, str) else reply

    return FakeEngine(script)


def on_and_on() -> Iterable[Delta]:
    yield from (delta._replace(finish=None) for delta in characters("<think>"))
    yield from itertools.repeat(Delta("x", [ord("x")]))


def elect(engine: FakeEngine, k: int, **body: Any) -> dict[str, Any]:
    response = ask(engine, messages=HELLO, consensus=k, seed=SEED, **body)
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    assert engine.running == 0
    return response.json()


def thinking(answer: str, thought: str = "") -> str:
    return f"<think>{thought or answer}</think>{answer}"


def test_equivalent_answers_vote_together() -> None:
    replies = [thinking(a) for a in ("3", "The answer is 0.5.", "4", r"\boxed{\frac12}", "1/2")]
    body = elect(voters(*replies), 5)
    (choice,) = body["choices"]
    assert choice["index"] == 0
    assert choice["message"]["content"] == "The answer is 0.5."
    assert choice["message"]["reasoning_content"] == "The answer is 0.5."
    assert choice["finish_reason"] == "stop"
    first, *others = body["consensus"]["votes"]
    assert first == {"answer": "0.5", "count": 3, "indices": [1, 3, 4]}
    assert {(vote["answer"], vote["count"]) for vote in others} == {("3", 1), ("4", 1)}
    assert body["consensus"]["agreement"] == 3 / 5
    assert (body["consensus"]["samples"], body["consensus"]["finished"]) == (5, 5)
    assert body["usage"]["completion_tokens"] == sum(map(len, replies))


def test_of_equals_the_first_sample_wins() -> None:
    body = elect(voters(thinking("7", "a long thought"), thinking("8")), 2)
    assert body["choices"][0]["message"]["content"] == "7"
    assert body["consensus"]["agreement"] == 0.5


def test_samples_that_cannot_change_the_result_are_aborted() -> None:
    engine = voters(*[thinking("42")] * 3, on_and_on(), on_and_on())
    body = elect(engine, 5)
    assert body["choices"][0]["message"]["content"] == "42"
    assert (body["consensus"]["samples"], body["consensus"]["finished"]) == (5, 3)
    assert body["consensus"]["agreement"] == 1
    # What the aborted ones had generated is counted, all of it thought.
    details = body["usage"]["completion_tokens_details"]
    voted = 3 * len(thinking("42"))
    assert body["usage"]["completion_tokens"] > voted
    assert details["reasoning_tokens"] == body["usage"]["completion_tokens"] - 3 * len("42")


def test_a_majority_that_could_be_caught_up_with_waits() -> None:
    slow = thinking("7", "x" * 200)
    body = elect(voters(thinking("42"), thinking("42"), slow, slow, slow), 5)
    assert body["choices"][0]["message"]["content"] == "7"
    assert body["consensus"]["finished"] == 5


def test_what_has_no_answer_does_not_vote() -> None:
    cut = characters("<think>42", Finish.LENGTH)
    body = elect(voters(cut, cut, "I cannot say.", thinking("7", "x" * 50)), 4)
    assert body["choices"][0]["message"]["content"] == "7"
    assert body["consensus"]["votes"] == [{"answer": "7", "count": 1, "indices": [3]}]
    assert body["consensus"]["agreement"] == 1 / 4


def test_when_nobody_votes_an_answer_comes_back_all_the_same() -> None:
    cut = characters("<think>42", Finish.LENGTH)
    body = elect(voters(cut, "I cannot say."), 2)
    assert body["choices"][0]["message"]["content"] == "I cannot say."
    assert (body["consensus"]["votes"], body["consensus"]["agreement"]) == ([], 0)
    body = elect(voters(cut, cut), 2)
    assert body["choices"][0]["message"]["content"] is None
    assert body["choices"][0]["reasoning_truncated"] is True


def test_streaming_sends_the_winning_trace() -> None:
    engine = voters(thinking("8"), thinking("1/2", "a"), thinking("0.5", "b"))
    response = ask(
        engine, messages=HELLO, consensus=3, seed=SEED, stream=True, logprobs=False,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *events, done = response.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    *deltas, last, usage = chunks
    assert deltas[0]["choices"][0]["delta"] == {"role": "assistant"}
    text = [chunk["choices"][0]["delta"] for chunk in deltas]
    assert "".join(delta.get("reasoning_content", "") for delta in text) == "a"
    assert "".join(delta.get("content", "") for delta in text) == "1/2"
    assert {chunk["choices"][0]["index"] for chunk in deltas} == {0}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["consensus"]["votes"][0] == {"answer": "1/2", "count": 2, "indices": [1, 2]}
    assert usage["usage"]["completion_tokens"] == sum(
        len(thinking(*parts)) for parts in (("8",), ("1/2", "a"), ("0.5", "b"))
    )


def test_a_waiting_stream_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "SIGN_OF_LIFE_SECONDS", 0)
    engine = voters(thinking("42", "one"), thinking("42", "two"))
    response = ask(engine, messages=HELLO, consensus=2, seed=SEED, stream=True)
    assert response.text.startswith(": nothing to show yet\n\n")
    with running(engine) as server:
        stream = client(server).chat.completions.create(
            model="m", messages=HELLO, seed=SEED, stream=True, extra_body={"consensus": 2}
        )  # type: ignore[arg-type]
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "42"
    assert chunks[-1].consensus["agreement"] == 1  # type: ignore[attr-defined]


def test_a_budget_bounds_each_thought() -> None:
    def script(prompt: str, _: Sampling) -> Iterable[Delta]:
        return characters("42" if "</think>" in prompt else "<think>on and on and on")

    response = ask(FakeEngine(script), messages=HELLO, consensus=3, thinking_budget=9)
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "42"
    assert body["choices"][0]["reasoning_truncated"] is True
    assert body["consensus"]["votes"][0]["count"] >= 2


def test_a_reader_who_leaves_ends_the_election() -> None:
    engine = voters(*[on_and_on()] * 4)
    with running(engine) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/chat/completions",
                json={"messages": HELLO, "consensus": 4, "seed": SEED},
                timeout=0.5,
            )
        assert eventually(lambda: engine.running == 0)


def test_comparing_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> bool:
        time.sleep(0.5)
        return False

    monkeypatch.setattr(consensus, "equivalent", slow)

    async def both() -> tuple[float, httpx.Response]:
        app = create_app(Deployment(voters(thinking("1"), thinking("2")), CARD))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            body = {"messages": HELLO, "consensus": 2, "seed": SEED}
            election = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            slowest = 0.0
            while not election.done():
                begun = time.perf_counter()
                await http.get("/health")
                slowest = max(slowest, time.perf_counter() - begun)
                await asyncio.sleep(0.01)
            return slowest, election.result()

    slowest, response = asyncio.run(both())
    assert response.json()["consensus"]["agreement"] == 0.5
    assert slowest < 0.4


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"consensus": 0}, "consensus", "greater than or equal to 1"),
        ({"consensus": 65}, "consensus", "less than or equal to 64"),
        ({"consensus": 2, "n": 2}, "n", "consensus returns one choice"),
        (
            {"consensus": 2, "response_format": {"type": "json_object"}},
            "response_format",
            "reads no JSON",
        ),
        ({"consensus": 2, "tools": [TOOL]}, "tools", "votes on final answers, not on calls"),
        ({"consensus": 2, "temperature": 0}, "temperature", "all samples are the same"),
    ],
)
def test_what_makes_no_sense_is_refused(body: dict[str, Any], param: str, words: str) -> None:
    engine = voters("x")
    response = ask(engine, messages=HELLO, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and words in error["message"]
    assert engine.requests == []


def test_one_sample_is_a_consensus_of_one() -> None:
    body = elect(voters(thinking("42")), 1, temperature=0)
    assert body["consensus"] == {
        "votes": [{"answer": "42", "count": 1, "indices": [0]}],
        "agreement": 1.0,
        "samples": 1,
        "finished": 1,
    }
