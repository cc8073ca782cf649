"""The OpenAPI document says what comes back: no field more, and none less."""

import json
from typing import Any

import pytest
from conftest import ADD, ADD_CALL
from fake_engine import HELLO, FakeEngine, ask, characters
from serving import HERMES

from thinkgate_serve import shapes
from thinkgate_serve.engine import Delta, Finish, TokenLogprob

LIKELY = [
    Delta(char, [ord(char)], None, [TokenLogprob(1, char, -1.0, (TokenLogprob(1, char, -1.0),))])
    for char in "<think>a</think>42"
]
EVERYTHING: dict[str, Any] = {
    "messages": HELLO, "logprobs": True, "top_logprobs": 1, "logprobs_in_reasoning": True,
}  # fmt: skip
CHAT, TEXT, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODIES: dict[str, tuple[str, Any, dict[str, Any], type[shapes.Shape]]] = {
    "chat": (CHAT, LIKELY, EVERYTHING, shapes.ChatCompletion),
    "consensus": (CHAT, "7", {"messages": HELLO, "consensus": 2}, shapes.ChatCompletion),
    "calls": (CHAT, ADD_CALL, {"messages": HELLO, "tools": [ADD]}, shapes.ChatCompletion),
    "refused": (CHAT, "", {"messages": []}, shapes.ErrorBody),
    "text": (TEXT, LIKELY, {"prompt": "q", "logprobs": 1}, shapes.Completion),
    "response": (RESPONSE, f"<think>a</think>b{ADD_CALL}",
                 {"input": "q", "tools": [{"type": "function", **ADD["function"]}]},
                 shapes.ResponseObject),
    "tokenize": ("/tokenize", "", {"prompt": "q", "return_token_strs": True}, shapes.Tokenized),
    "detokenize": ("/detokenize", "", {"tokens": [65]}, shapes.Detokenized),
}  # fmt: skip


def engine(said: Any) -> FakeEngine:
    if isinstance(said, str):
        return FakeEngine(characters(said) if said else [])
    return FakeEngine([*said[:-1], said[-1]._replace(finish=Finish.STOP)])


@pytest.mark.parametrize("case", BODIES)
def test_bodies_are_of_their_shape(case: str) -> None:
    path, said, body, shape = BODIES[case]
    reply = ask(engine(said), path, settings=HERMES, **body)
    shape.model_validate_json(reply.text)


@pytest.mark.parametrize("case", ["chat", "consensus", "calls", "text"])
def test_events_are_of_their_shape(case: str) -> None:
    path, said, body, shape = BODIES[case]
    shape = shapes.ChatCompletionChunk if path == CHAT else shape
    options = {"stream": True, "stream_options": {"include_usage": True}}
    text = ask(engine(said), path, settings=HERMES, **body, **options).text
    events = [line[6:] for line in text.split("\n") if line[6:7] == "{"]
    assert len(events) > 2
    for event in events:
        shape.model_validate_json(event)


def test_models_are_of_their_shape() -> None:
    shapes.Models.model_validate_json(ask(engine(""), "/v1/models", method="GET").text)
    shapes.ServedModel.model_validate_json(ask(engine(""), "/v1/models/m", method="GET").text)


def test_the_document_names_them() -> None:
    document = json.loads(ask(engine(""), "/openapi.json", method="GET").text)
    for path in (CHAT, TEXT, RESPONSE, "/tokenize", "/detokenize"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "4XX", "5XX"}, path
        assert "$ref" in responses["200"]["content"]["application/json"]["schema"]
        error = responses["4XX"]["content"]["application/json"]["schema"]["$ref"]
        assert error.endswith("/ErrorBody")
    assert "text/event-stream" in document["paths"][CHAT]["post"]["responses"]["200"]["content"]
