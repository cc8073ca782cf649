"""What is refused, how, and what the server says about itself."""

import time
from typing import Any

import pytest
from fake_engine import CONTEXT, HELLO, FakeEngine, ask, characters

from thinkgate_serve.service import Settings

CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


def tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


# change to a good request → (param, part of the message)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "typo": ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
    "a name that is no word": ({"x-temperature": 1}, "x-temperature", "unknown parameter"),
    "a name of a megabyte": ({"x" * 2**20: 1}, "x" * 100, "unknown parameter"),
    "number as text": ({"temperature": "1"}, "temperature", "valid number"),
    "too hot": ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
    "n zero": ({"n": 0}, "n", "greater than or equal to 1"),
    "n huge": ({"n": 1000}, "n", "less than or equal to 128"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "float tokens": ({"max_tokens": 2.5}, "max_tokens", "integer"),
    "top_p zero": ({"top_p": 0}, "top_p", "greater than 0"),
    "bool": ({"top_k": True}, "top_k", "integer"),
    "empty stop": ({"stop": [""]}, "stop", "must not be empty"),
    "many stops": ({"stop": ["x"] * 33}, "stop", "33 stop strings, 32 at most"),
    "stop type": ({"stop": 5}, "stop", "valid"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "messages missing": ({"messages": ...}, "messages", "missing required parameter"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'system'"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0]", "needs content"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
        "messages[0].content[0].type",
        "'text'",
    ),
    "half a tool call": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
        "messages[0].tool_calls[0].function",
        "missing required parameter",
    ),
    "arguments that are no JSON": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
                    ],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
    "arguments that are a list": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "f", "arguments": "[]"},
                        }
                    ],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
        "must be a JSON object",
    ),
    "result of no call": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0]",
        "needs the tool_call_id",
    ),
    "users call nothing": (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        "messages[0]",
        "makes no tool calls",
    ),
    "a user's name": (
        {"messages": [{"role": "user", "content": "x", "name": "y"}]},
        "messages[0].name",
        "write it into the content",
    ),
    "a field of responses": ({"max_output_tokens": 5}, "max_output_tokens", "unknown parameter"),
    "half a tool": (
        {"tools": [{"type": "function"}]},
        "tools[0].function",
        "missing required parameter",
    ),
    "another kind of tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
    "a function's name": (
        {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
        "tools[0].function.name",
        "match pattern",
    ),
    "one name twice": ({"tools": [TOOL, TOOL]}, "tools", "two functions are called 'add'"),
    "choice without tools": ({"tool_choice": "required"}, "tool_choice", "no tools"),
    "choice of another": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "'sub' is none of the tools",
    ),
    "choice unknown": ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice", "'required'"),
    "no parser": ({"tools": [TOOL]}, "tool_choice", "without --tool-parser"),
    "tools and a shape": (
        {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
        "response_format",
        "cannot both",
    ),
    "tool schema": (
        {
            "tools": [tool({"properties": {"x": {"type": "robot"}}})],
            "tool_choice": "required",
        },
        "tools",
        "'robot'",
    ),
    "arguments that are a text": (
        {"tools": [tool({"type": "string"})], "tool_choice": "required"},
        "tools[0].function.parameters",
        "arguments are an object",
    ),
    "definitions that are none": (
        {"tools": [tool({"$defs": []})], "tool_choice": "required"},
        "tools",
        "the schema cannot be used: at '/$defs/f/$defs' [] is not of type 'object'",
    ),
    "a deep tool": (
        {"tools": [tool({"items": nested(100)})], "tool_choice": "none"},
        "tools[0].function.parameters",
        "nested too deeply",
    ),
    "a deep option": (
        {"chat_template_kwargs": {"x": nested(100)}},
        "chat_template_kwargs",
        "nested too deeply",
    ),
    "no number": ({"chat_template_kwargs": {"x": float("nan")}}, "chat_template_kwargs", "NaN"),
    "infinite": ({"temperature": float("inf")}, "temperature", "Infinity"),
    "huge top_k": ({"top_k": 2**64}, "top_k", "less than"),
    "history": ({"reasoning_history": "some"}, "reasoning_history", "'template'"),
    "reasoning logprobs alone": (
        {"logprobs_in_reasoning": True},
        "logprobs_in_reasoning",
        "needs logprobs",
    ),
    "top without logprobs": ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    "many logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "equal to 20"),
    "no schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format",
        "no 'schema'",
    ),
    "a schema that is none": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": [], "strict": True},
            }
        },
        "response_format.json_schema.schema",
        "valid dictionary",
    ),
    "another shape": ({"response_format": {"type": "yaml"}}, "response_format", "'json_schema'"),
    "no shape": ({"response_format": {}}, "response_format", "'json_schema'"),
    "bad schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "robot"}},
            }
        },
        "response_format",
        "'robot'",
    ),
    "deep schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": nested(300)},
            }
        },
        "response_format.json_schema.schema",
        "nested too deeply",
    ),
    "schema beyond the engine": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"refuse": True}},
            }
        },
        "response_format",
        "beyond the engine",
    ),
    "effort": ({"reasoning_effort": "huge"}, "reasoning_effort", "'none'"),
    "budget below zero": ({"thinking_budget": -1}, "thinking_budget", "equal to 0"),
    "two budgets": (
        {"thinking_budget": 1, "reasoning_effort": "low"},
        "reasoning_effort",
        "either it or thinking_budget",
    ),
    "stream options": (
        {"stream_options": {"include_usage": True}},
        "stream_options",
        "only allowed when",
    ),
    "two limits": (
        {"max_tokens": 5, "max_completion_tokens": 6},
        "max_completion_tokens",
        "max_tokens is 5; give one",
    ),
    "bias key": ({"logit_bias": {"x": 1}}, "logit_bias", "'x' is not a token id"),
    "bias range": ({"logit_bias": {"5": 101}}, "logit_bias", "less than or equal to 100"),
    "bias token": ({"logit_bias": {"99999999": 1}}, "logit_bias", "the vocabulary has"),
    "long bias key": ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "is not a token id"),
    "min tokens": ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "more than the 5 tokens"),
    "template kwargs": (
        {"chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs",
        "may not set 'tokenize'",
    ),
    "template refuses": (
        {"messages": [{"role": "developer", "content": "x"}]},
        "messages",
        "no developers here",
    ),
    "too long": ({"max_tokens": CONTEXT}, "max_tokens", f"the context of {CONTEXT}"),
    "too long by its new name": (
        {"max_completion_tokens": CONTEXT},
        "max_completion_tokens",
        f"the context of {CONTEXT}",
    ),
    "a prompt too long": (
        {"messages": [{"role": "user", "content": "x" * CONTEXT}]},
        "messages",
        f"the context {CONTEXT}",
    ),
    "surrogate": (
        {"messages": [{"role": "user", "content": "\ud800"}]},
        "messages",
        "lone surrogate",
    ),
    "surrogate in a name": ({"\ud800": 1}, "?", "lone surrogate"),
    "surrogate as a token": ({"logit_bias": {"\ud800": 1}}, "logit_bias", "lone surrogate"),
    "surrogate in earlier arguments": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "1", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
                    ],
                }
            ]
        },
        "messages",
        "lone surrogate",
    ),
}


NONSENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("/v1/chat/completions", {"messages": [1] * 300_000}),
    "messages, good ones": ("/v1/chat/completions", {"messages": HELLO * 50_000}),
    "content": ("/v1/chat/completions", {"messages": [{"role": "user", "content": [1] * 300_000}]}),
    "stop": ("/v1/chat/completions", {"messages": HELLO, "stop": [1] * 300_000}),
    "bias": ("/v1/chat/completions",
             {"messages": HELLO, "logit_bias": {str(token): "x" for token in range(200_000)}}),
    "keys": ("/v1/chat/completions",
             {"messages": HELLO} | {f"x{number}": 1 for number in range(200_000)}),
    "prompt": ("/v1/completions", {"prompt": [1, "a"] * 150_000}),
    "prompts": ("/v1/completions", {"prompt": [[1]] * 150_000}),
    "tokens": ("/detokenize", {"tokens": ["a"] * 300_000}),
    "input": ("/v1/responses", {"input": [1] * 300_000}),
    "include": ("/v1/responses", {"input": "x", "include": [1] * 300_000}),
    "tools": ("/v1/chat/completions", {"messages": HELLO, "tools": [1] * 300_000}),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_megabytes_of_nonsense_are_refused_at_the_first_mistake(case: str) -> None:
    """One error for each of a million items once took a minute, in which nobody was answered."""
    path, body = NONSENSE[case]
    began = time.process_time()
    response = ask(FakeEngine([]), path, **body)
    assert response.status_code == 400 and len(response.text) < 1000
    assert time.process_time() - began < 3


@pytest.mark.parametrize("depth", [101, 300, 700, *range(900, 1000, 9), 100_000])
def test_no_depth_is_a_server_error(depth: int) -> None:
    """What one reader of JSON takes, the next one may not, and the next not write again."""
    deep = b"[" * depth + b"]" * depth
    tools = b'[{"type":"function","name":"f","parameters":{"x":%b}}]' % deep
    for path, body in (
        ("/v1/chat/completions", b'{"messages": %b}' % deep),
        ("/v1/responses", b'{"input": "x", "tool_choice": "none", "tools": %b}' % tools),
    ):
        response = ask(FakeEngine(characters("x")), path, content=body)
        assert response.status_code == 400
        assert len(response.text) < 1000


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_parameter_named(case: str) -> None:
    change, param, words = REFUSED[case]
    body = {"messages": HELLO} | change
    engine = FakeEngine(characters("x"))
    response = ask(engine, **{key: value for key, value in body.items() if value is not ...})
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"] in (param, f"{param}.5")
    assert error["type"] == "invalid_request_error"
    assert engine.requests == []


def test_a_refused_stream_gets_a_status_too() -> None:
    response = ask(FakeEngine([]), messages=HELLO, stream=True, max_tokens=CONTEXT)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


# What other servers take, with a value that asks for something → what to use here
ELSEWHERE: dict[str, tuple[Any, str]] = {
    "guided_json": ({"type": "object"}, "use response_format"),
    "guided_choice": (["a", "b"], "'enum'"),
    "structured_outputs": ({"regex": "a+"}, "use response_format"),
    "stop_token_ids": ([5], "use stop"),
    "skip_special_tokens": (False, "left out"),
    "priority": (5, "in the order they come"),
    "add_generation_prompt": (False, "not supported"),
    "continue_final_message": (True, "/v1/completions"),
    "separate_reasoning": (False, "always apart"),
    "thinking": ({"type": "disabled"}, "use thinking_budget or reasoning_effort"),
    "thinking_token_budget": (10, "use thinking_budget"),
    "enable_thinking": (False, "use chat_template_kwargs"),
    "reasoning": ({"effort": "low"}, "use reasoning_effort"),
    "request_id": ("x", "X-Request-Id"),
    "functions": ([TOOL], "use tools"),
    "metadata": ({"a": "b"}, "nothing is stored"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_field_of_another_server_is_named_with_what_to_use_here(name: str) -> None:
    value, words = ELSEWHERE[name]
    response = ask(FakeEngine(characters("x")), messages=HELLO, **{name: value})
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "unsupported_parameter"
    assert error["param"] == name and words in error["message"]


def test_what_asks_another_server_for_nothing_asks_this_one_for_nothing() -> None:
    asked: dict[str, Any] = {
        "skip_special_tokens": True, "spaces_between_special_tokens": True, "stop_token_ids": [],
        "include_stop_str_in_output": False, "priority": 0, "add_generation_prompt": True,
        "continue_final_message": False, "add_special_tokens": False, "separate_reasoning": True,
        "stream_reasoning": True, "use_beam_search": False, "length_penalty": 1.0, "bad_words": [],
        "guided_json": None, "prompt_logprobs": None, "echo": False, "parallel_tool_calls": None,
        "prompt_cache_key": "k", "safety_identifier": "s",
    }  # fmt: skip
    engine = FakeEngine(characters("x"))
    assert ask(engine, messages=HELLO, **asked).status_code == 200
    response = ask(engine, "/v1/completions", prompt="x", add_special_tokens=True, priority=0)
    assert response.status_code == 200


def test_no_field_is_offered_in_place_of_itself() -> None:
    for body in ({"max_output_tokens": 5}, {"json_schema": {}}):
        response = ask(FakeEngine([]), messages=HELLO, **body)
        assert "did you mean" not in response.json()["error"]["message"]


def test_neutral_values_of_unsupported_fields_pass() -> None:
    response = ask(
        FakeEngine(characters("x")),
        messages=HELLO,
        tools=None,
        tool_choice="none",
        parallel_tool_calls=True,
        logprobs=False,
        response_format={"type": "text"},
        n=1,
        user="someone",
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "the request has no body"),
        (b"{", 400, "not valid JSON"),
        (b'{"messages": "\xff"}', 400, "not valid UTF-8"),
        (b"[]", 400, "must be a JSON object"),
        (b"x" * 2000, 413, "larger than 1000 bytes"),
    ],
)
def test_bodies_that_are_no_requests(content: bytes, status: int, words: str) -> None:
    settings = Settings(max_body_bytes=1000)
    response = ask(FakeEngine(characters("x")), settings=settings, content=content)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]


def test_a_form_is_told_to_be_json() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    response = ask(FakeEngine([]), content=b'{"messages": []}', headers=form)
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


def test_a_prompt_longer_than_the_context() -> None:
    response = ask(
        FakeEngine(characters("x")), messages=[{"role": "user", "content": "x" * CONTEXT}]
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_name_that_is_no_text_is_refused_all_the_same() -> None:
    response = ask(FakeEngine(characters("x")), messages=HELLO, model="\ud800")
    assert response.status_code == 400 and response.json()["error"]["param"] == "model"


def test_another_model_is_not_found() -> None:
    response = ask(FakeEngine(characters("x")), messages=HELLO, model="other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "this server has 'm'" in response.json()["error"]["message"]
    assert ask(FakeEngine(characters("x")), messages=HELLO, model="m").status_code == 200
