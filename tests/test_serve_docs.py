"""docs/api.md: its JSON is taken by the wire models, and it names every field and endpoint."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, ask, characters

from thinkgate_serve.messages import Message, Wire
from thinkgate_serve.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from thinkgate_serve.responses_protocol import ResponsesRequest
from thinkgate_serve.shapes import ErrorBody

TEXT = Path(__file__).parent.parent.joinpath("docs", "api.md").read_text(encoding="utf-8")
MODELS: dict[str, Any] = {
    "chat": ChatRequest,
    "responses": ResponsesRequest,
    "completions": CompletionRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
    "error": ErrorBody,
}
EXAMPLES = re.findall(r"```json (\w+)\n(.*?)```", TEXT, re.DOTALL)
CURLS = re.findall(r"-d '(\{.*?\})'", TEXT)


def test_there_is_an_example_of_each() -> None:
    assert {kind for kind, _ in EXAMPLES} == set(MODELS)
    assert len(CURLS) == 1


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
def test_examples_are_taken(kind: str, example: str) -> None:
    MODELS[kind].model_validate(json.loads(example))


@pytest.mark.parametrize("body", CURLS)
def test_what_curl_sends_is_answered(body: str) -> None:
    assert ask(FakeEngine(characters("24")), content=body.encode()).status_code == 200


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}.*?(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[0]


SHARED = ["Fields of all three", "Fields of conversations"]
PLACES: dict[type[Wire], list[str]] = {
    ChatRequest: [*SHARED, "`POST /v1/chat/completions`"],
    Message: ["`POST /v1/chat/completions`"],
    ResponsesRequest: [*SHARED, "`POST /v1/responses`"],
    CompletionRequest: ["Fields of all three", "`POST /v1/completions`"],
    TokenizeRequest: ["`POST /tokenize`"],
    DetokenizeRequest: ["`POST /tokenize`"],
}


@pytest.mark.parametrize("model", PLACES)
def test_every_field_is_described(model: type[Wire]) -> None:
    text = "".join(map(section, PLACES[model]))
    missing = [name for name in model.model_fields if f"`{name}`" not in text]
    assert not missing


def test_every_endpoint_is_named() -> None:
    document = json.loads(ask(FakeEngine([]), "/openapi.json", method="GET").text)
    for path in document["paths"]:
        if not path.startswith("/v1/traces"):  # those are the page's
            assert path.split("/{")[0] in TEXT, path
