"""What the server says about itself, and the endpoints that are not conversations."""

import json
from pathlib import Path

import pytest
from conftest import ADD
from fake_checkpoint import make_checkpoint, record_decision
from fake_engine import CONTEXT, HELLO, FakeEngine, ask, characters
from openai.types import Completion, Model

from thinkgate.checkpoint import Decision
from thinkgate_serve.card import Card


def test_unknown_paths_and_methods() -> None:
    engine = FakeEngine(characters("x"))
    unknown = ask(engine, "/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (
        404,
        "no such path: /v1/nothing",
    )
    assert ask(engine, "/v1/chat/completions", method="GET").status_code == 405


def test_models_show_digest_gate_and_context(gated_decision: Decision) -> None:
    card = Card(name="m", source="m", digest="ab" * 32, decision=gated_decision)
    response = ask(FakeEngine([]), "/v1/models", card=card, method="GET")
    (model,) = response.json()["data"]
    Model.model_validate(model)
    assert model["id"] == "m"
    assert model["digest"] == "ab" * 32
    assert model["gate"]["verdict"] == "pass"
    assert model["gate"]["decision"] == "d-test"
    assert model["max_model_len"] == CONTEXT
    assert model["sampling_defaults"] == {"top_k": 20}
    assert response.headers["x-thinkgate-gate"] == "pass d-test"
    one = ask(FakeEngine([]), "/v1/models/m", card=card, method="GET")
    assert one.json()["gate"] == model["gate"]
    assert ask(FakeEngine([]), "/v1/models/x", card=card, method="GET").status_code == 404


def test_the_report_behind_a_decision(gated_decision: Decision, tmp_path: Path) -> None:
    (tmp_path / "thinkgate").mkdir()
    (tmp_path / "thinkgate" / "report.html").write_text("<h1>evidence</h1>")
    card = Card(name="a b", source=str(tmp_path), digest="ab" * 32, decision=gated_decision)
    engine = FakeEngine([])
    (model,) = ask(engine, "/v1/models", card=card, method="GET").json()["data"]
    page = ask(engine, model["gate"]["report"], card=card, method="GET")
    assert (page.status_code, page.text) == (200, "<h1>evidence</h1>")
    assert page.headers["content-type"].startswith("text/html")
    # Apart from this origin: what a model wrote reaches no page's keys.
    assert "sandbox allow-scripts;" in page.headers["content-security-policy"]
    ungated = ask(engine, "/v1/models/m/report", method="GET")
    assert ungated.status_code == 404 and "passed no gate" in ungated.text


def test_an_ungated_model_says_so() -> None:
    response = ask(FakeEngine([]), "/v1/models", method="GET")
    assert response.json()["data"][0]["gate"] == {"verdict": "ungated"}


def test_health_ready_version() -> None:
    engine = FakeEngine([])
    assert ask(engine, "/health", method="GET").status_code == 200
    assert ask(engine, "/ready", method="GET").status_code == 200
    assert ask(engine, "/version", method="GET").json()["version"]
    engine.dead = True
    assert ask(engine, "/health", method="GET").status_code == 200
    assert ask(engine, "/ready", method="GET").status_code == 503


def test_tokenize_and_back() -> None:
    engine = FakeEngine([])
    body = ask(engine, "/tokenize", messages=HELLO, return_token_strs=True).json()
    assert body["count"] == len("[user]hi[assistant]")
    assert body["token_strs"][:3] == ["[", "u", "s"]
    back = ask(engine, "/detokenize", tokens=body["tokens"]).json()
    assert back == {"prompt": "[user]hi[assistant]"}
    assert ask(engine, "/tokenize", prompt="ab").json()["tokens"] == [97, 98]
    assert ask(engine, "/tokenize").status_code == 400
    with_tools = ask(engine, "/tokenize", messages=HELLO, tools=[ADD]).json()
    assert with_tools["count"] > body["count"]
    for field, value in (("tools", [ADD]), ("chat_template_kwargs", {"enable_thinking": False})):
        refused = ask(engine, "/tokenize", prompt="ab", **{field: value})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == field
    refused = ask(engine, "/tokenize", messages=HELLO, add_special_tokens=True)
    assert refused.status_code == 400 and "add_special_tokens" in refused.text
    assert ask(engine, "/tokenize", messages=HELLO, add_special_tokens=False).status_code == 200
    assert ask(engine, "/detokenize", tokens=[2**40]).status_code == 400


def test_plain_completions_come_back_verbatim() -> None:
    text = "<think>why</think> 42 STOP"
    engine = FakeEngine(characters(text))
    body = ask(engine, "/v1/completions", prompt="q", max_tokens=100).json()
    Completion.model_validate(body)
    assert body["choices"][0]["text"] == text
    assert body["usage"]["completion_tokens"] == len(text)
    body = ask(engine, "/v1/completions", prompt=["q", "r"], n=2, stop="STOP").json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert {c["text"] for c in body["choices"]} == {"<think>why</think> 42 "}
    assert [prompt for prompt, _ in engine.requests] == ["q", "q", "q", "r", "r"]
    assert engine.requests[1][1].max_tokens == 16
    tokens = ask(engine, "/v1/completions", prompt=[97, 98]).json()
    assert tokens["usage"]["prompt_tokens"] == 2
    for bad in ("", [], [[]], [[2**40]], ["", "x"]):
        assert ask(engine, "/v1/completions", prompt=bad).status_code == 400, bad


def test_streamed_completions() -> None:
    response = ask(
        FakeEngine(characters("one STOP")),
        "/v1/completions",
        prompt="q",
        stop=["STOP"],
        stream=True,
        stream_options={"include_usage": True},
    )
    *events, done = response.text.removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    Completion.model_validate(chunks[-2])
    assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == "one "
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len("one STOP")


@pytest.fixture
def gated_decision(tmp_path: Path) -> Decision:
    """A passing decision."""
    return record_decision(make_checkpoint(tmp_path / "m"))
