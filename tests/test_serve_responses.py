"""`/v1/responses`, read by the openai SDK's own client and types: scripted, and on real vLLM."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any, Literal

import httpx
import openai
import pytest
from conftest import ADD, LESSONS
from fake_engine import CARD, HELLO, FakeEngine, ask, characters, pieces
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from serving import HERMES, client, without_spaces

from thinkgate.format import SplitStatus, split
from thinkgate_clients.local import LocalServer
from thinkgate_serve.app import create_app
from thinkgate_serve.engine import Delta, Finish, Sampling, TokenLogprob
from thinkgate_serve.model import Deployment

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 7}}</tool_call>'
TOOL = {"type": "function", **ADD["function"]}


def respond(said: str | Iterable[Delta] | FakeEngine, **body: Any) -> Response:
    """A whole response, checked strictly against OpenAI's own type."""
    engine = said if isinstance(said, FakeEngine) else scripted(said)
    settings = body.pop("settings", None)
    asked = {"input": "hi"} | body
    reply = ask(engine, "/v1/responses", settings=settings, **asked)
    assert reply.status_code == 200, reply.text
    assert engine.running == 0
    return Response.model_validate_json(reply.text)


def scripted(said: str | Iterable[Delta]) -> FakeEngine:
    """It goes on where the prompt ends, as it does for an answer of a given shape."""

    def rest(prompt: str, _: Sampling) -> Iterable[Delta]:
        if not isinstance(said, str):
            return said
        begun = next(at for at in range(len(said), -1, -1) if prompt.endswith(said[:at]))
        return characters(said[begun:])

    return FakeEngine(rest)


def events(said: str | Iterable[Delta] | FakeEngine, **body: Any) -> list[Any]:
    """The events of a streamed response, each checked against OpenAI's own type."""
    engine = said if isinstance(said, FakeEngine) else scripted(said)
    settings = body.pop("settings", None)
    asked = {"input": "hi", "stream": True} | body
    reply = ask(engine, "/v1/responses", settings=settings, **asked)
    assert reply.status_code == 200, reply.text
    found: list[Any] = []
    for block in reply.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = EVENT.validate_json(data.removeprefix("data: "))
        assert name == f"event: {event.type}"
        found.append(event)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    return found


def told(response: Response) -> list[tuple[str, str, str | None]]:
    """Kind, text and status of each item."""
    items: list[tuple[str, str, str | None]] = []
    for item in response.output:
        if item.type == "function_call":
            items.append((item.type, item.arguments, item.status))
        else:
            assert item.type in ("reasoning", "message") and item.content is not None
            (part,) = item.content
            items.append((item.type, getattr(part, "text", ""), item.status))
    return items


DONE, CUT = "completed", "incomplete"
CASES: dict[str, tuple[str, Finish, list[tuple[str, str, str]]]] = {
    "closed": ("<think>why</think>42", Finish.STOP,
               [("reasoning", "why", DONE), ("message", "42", DONE)]),
    "spaced": ("<think>\nwhy\n</think>\n\n42\n", Finish.STOP,
               [("reasoning", "why", DONE), ("message", "42\n", DONE)]),
    "empty thought": ("<think></think>42", Finish.STOP,
                      [("reasoning", "", DONE), ("message", "42", DONE)]),
    "untagged": ("just 42", Finish.STOP, [("message", "just 42", DONE)]),
    "answer cut": ("<think>a</think>b", Finish.LENGTH,
                   [("reasoning", "a", DONE), ("message", "b", CUT)]),
    "no answer": ("<think>a</think>", Finish.STOP,
                  [("reasoning", "a", DONE), ("message", "", DONE)]),
    "thought cut": ("<think>why not", Finish.LENGTH, [("reasoning", "why not", CUT)]),
    "model ends in thought": ("<think>why", Finish.STOP, [("reasoning", "why", CUT)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whole_and_streamed_tell_the_same(case: str) -> None:
    text, finish, items = CASES[case]
    response = respond(characters(text, finish))
    assert told(response) == items
    cut = any(status == CUT for _, _, status in items)
    assert response.status == (CUT if cut else DONE)
    assert (response.incomplete_details is not None) == cut
    if response.incomplete_details is not None:
        assert response.incomplete_details.reason == "max_output_tokens"
    truncated: Any = response
    assert truncated.reasoning_truncated == (cut and items[-1][0] == "reasoning")
    for at in range(1, len(text), 3):
        last = events(pieces(text, at, finish=finish))[-1]
        assert last.type == f"response.{response.status}"
        assert told(last.response) == items
        assert last.response.usage == response.usage


def test_usage_is_exact() -> None:
    usage = respond("<think>why</think>42").usage
    assert usage is not None
    assert usage.input_tokens == len("[user]hi[assistant]")
    assert usage.output_tokens_details.reasoning_tokens == len("<think>why</think>")
    assert usage.output_tokens == len("<think>why</think>42")
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_events_come_in_openais_order() -> None:
    names = [event.type.removeprefix("response.") for event in events("<think>a b</think>cd")]
    assert names == [
        "created", "in_progress",
        "output_item.added", "content_part.added",
        "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added",
        "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip


def test_deltas_add_up_to_what_is_done() -> None:
    found = events(f"<think>a\n\nb</think>see {CALL}", tools=[TOOL], settings=HERMES)
    for kind, text in (("reasoning_text", "a\n\nb"), ("output_text", "see "),
                       ("function_call_arguments", '{"a": 7}')):  # fmt: skip
        deltas = [e for e in found if e.type == f"response.{kind}.delta"]
        (done,) = [e for e in found if e.type == f"response.{kind}.done"]
        assert "".join(e.delta for e in deltas) == text
        assert getattr(done, "text", None) or done.arguments == text
        assert {e.item_id for e in deltas} == {done.item_id}
    added = [e.item.id for e in found if e.type == "response.output_item.added"]
    assert added == [item.id for item in found[-1].response.output]
    assert len(set(added)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_items(stream: bool) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "settings": HERMES}
    said = f"<think>{CALL}</think>{CALL}{CALL}"
    response = events(said, **asked)[-1].response if stream else respond(said, **asked)
    assert [item.type for item in response.output] == [
        "reasoning", "function_call", "function_call",
    ]  # fmt: skip
    first, second = response.output[1:]
    assert (first.name, json.loads(first.arguments)) == ("add", {"a": 7})
    assert first.call_id != second.call_id
    assert response.status == "completed"
    assert response.tools[0].name == "add"


def test_a_function_may_be_named() -> None:
    def script(_: str, sampling: Sampling) -> Iterable[Delta]:
        return characters("{}" if sampling.constraint else "<think>a</think>b")

    choice = {"type": "function", "name": "add"}
    response = respond(FakeEngine(script), tools=[TOOL], tool_choice=choice)
    assert told(response)[1] == ("function_call", "{}", "completed")


def test_items_become_the_turns_they_were() -> None:
    engine = scripted("x")
    respond(
        engine,
        instructions="be brief",
        input=[
            {"role": "user", "content": "7+8"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "status": None,
             "content": [{"type": "reasoning_text", "text": "so"}], "encrypted_content": None},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add",
             "arguments": '{"a": 7}', "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": "15"},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "15", "annotations": [], "logprobs": []}]},
            {"role": "user", "content": [{"type": "input_text", "text": "sure?"}]},
        ],
        reasoning_history="keep",
    )  # fmt: skip
    assert engine.requests[0][0] == (
        "[system]be brief[user]7+8[assistant]<think>so</think>"
        '[call]{"name": "add", "arguments": {"a": 7}}[tool]15[assistant]15[user]sure?[assistant]'
    )


def test_what_came_back_can_be_sent_back() -> None:
    response = respond(f"<think>a</think>see {CALL}", tools=[TOOL], settings=HERMES)
    output = [item.to_dict() for item in response.output]
    engine = scripted("x")
    respond(engine, input=[*HELLO, *output, {"role": "user", "content": "more"}])
    call = '[call]{"name": "add", "arguments": {"a": 7}}'
    assert engine.requests[0][0] == f"[user]hi[assistant]see {call}[user]more[assistant]"


def test_parameters_reach_the_engine_and_come_back() -> None:
    engine = scripted("<think>a</think>b")
    response = respond(
        engine, max_output_tokens=50, temperature=0.5, top_p=0.9, top_k=3, seed=7,
        metadata={"a": "b"}, reasoning={"effort": "high", "summary": "auto"}, user="u",
        store=False, truncation="disabled", include=["reasoning.encrypted_content"],
    )  # fmt: skip
    sampling = engine.requests[0][1]
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (50, 0.5, 0.9)
    assert (sampling.top_k, sampling.seed) == (3, 7)
    assert (response.temperature, response.top_p, response.max_output_tokens) == (0.5, 0.9, 50)
    assert response.metadata == {"a": "b"} and response.user == "u"
    assert response.reasoning is not None and response.reasoning.effort == "high"


def test_a_budget_closes_the_thought() -> None:
    def script(prompt: str, _: Sampling) -> Iterable[Delta]:
        return characters("42" if "</think>" in prompt else "<think>on and on and on")

    response: Any = respond(FakeEngine(script), thinking_budget=9)
    assert told(response) == [("reasoning", "on", "completed"), ("message", "42", "completed")]
    assert response.reasoning_truncated is True


def test_a_shape_binds_the_answer() -> None:
    def script(_: str, sampling: Sampling) -> Iterable[Delta]:
        return characters('{"n":1}' if sampling.constraint else "<think>a</think>b")

    shape = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    response = respond(FakeEngine(script), text={"format": shape})
    assert response.output_text == '{"n":1}'
    assert response.text is not None and response.text.format is not None
    assert response.text.format.to_dict() == shape


def test_logprobs_of_the_answer_when_included() -> None:
    def likely() -> list[Delta]:
        return [
            delta._replace(logprobs=[TokenLogprob(1, delta.text, -0.5)])
            for delta in characters("<think>a</think>bc", Finish.LENGTH)
        ]

    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    for response in (respond(likely(), **asked), events(likely(), **asked)[-1].response):
        entries = response.output[1].content[0].logprobs
        assert [entry.token for entry in entries] == ["b", "c"]
    deltas = [e for e in events(likely(), **asked) if e.type == "response.output_text.delta"]
    assert [e.logprobs[0].token for e in deltas] == ["b", "c"]


def test_reasoning_can_be_left_out_and_is_still_counted() -> None:
    for response in (
        respond("<think>why</think>42", include_reasoning=False),
        events("<think>why</think>42", include_reasoning=False)[-1].response,
    ):
        assert told(response) == [("message", "42", "completed")]
        assert response.usage.output_tokens_details.reasoning_tokens == len("<think>why</think>")


# change to a good request → (param, part of the message)
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "stored": ({"store": True}, "store", "nothing is stored"),
    "previous": ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier"),
    "background": ({"background": True}, "background", "not supported"),
    "typo": ({"max_output_token": 5}, "max_output_token", "did you mean 'max_output_tokens'?"),
    "chat's name": ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
    "no input": ({"input": ...}, "input", "missing"),
    "empty input": ({"input": []}, "input", "at least 1"),
    "another item": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "of type"),
    "an image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
        "input_text",
    ),
    "another tool": (
        {"tools": [{"type": "web_search", "name": "x"}]},
        "tools[0].type",
        "'function'",
    ),
    "a tool of theirs": ({"tools": [{"type": "mcp"}]}, "tools[0].type", "'function'"),
    "chat's tool": ({"tools": [ADD]}, "tools[0].function", "stand beside 'type'"),
    "a guide": ({"guided_json": {}}, "guided_json", "use text.format"),
    "no parser": ({"tools": [TOOL]}, "tool_choice", "--tool-parser"),
    "named nothing": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "x"}},
        "tool_choice",
        "none of the tools",
    ),
    "effort": ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "'none'"),
    "summary": ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "'auto'"),
    "two budgets": (
        {"reasoning": {"effort": "low"}, "thinking_budget": 5},
        "reasoning.effort",
        "either",
    ),
    "too long": ({"max_output_tokens": 10**6}, "max_output_tokens", "the context"),
    "bad schema": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "robot"}}}},
        "text.format",
        "'robot'",
    ),
    "a schema that is none": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": []}}},
        "text.format.schema",
        "valid dictionary",
    ),
    "another shape": ({"text": {"format": {"type": "yaml"}}}, "text.format", "'json_schema'"),
    "top without": ({"top_logprobs": 2}, "top_logprobs", "needs include to hold"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity", "not supported"),
    "model": ({"model": "other"}, "model", "not served here"),
    "nothing but an empty thought": (
        {"input": [{"type": "reasoning", "summary": []}]},
        "input",
        "'input': list should have at least 1",
    ),
    "a long input": ({"input": "x" * 5000}, "input", "the context"),
    "metadata that is no text": ({"metadata": {"a": "\ud800"}}, "metadata", "lone surrogate"),
    "a user that is no text": ({"user": "\ud800"}, "user", "lone surrogate"),
    "a tool that is no text": (
        {"tools": [TOOL | {"description": "\ud800"}], "tool_choice": "none"},
        "tools",
        "lone surrogate",
    ),
    "a tool that is no number": (
        {"tools": [TOOL | {"parameters": {"default": float("nan")}}], "tool_choice": "none"},
        "tools",
        "NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_with_the_parameter_named(case: str, stream: bool) -> None:
    change, param, words = REFUSED[case]
    body = {"input": "hi", "stream": stream} | change
    reply = ask(scripted("x"), "/v1/responses", **{k: v for k, v in body.items() if v is not ...})
    assert reply.status_code in (400, 404)
    error = reply.json()["error"]
    assert words in error["message"]
    assert error["param"] == param


def test_an_engine_that_dies_in_a_stream_fails_the_response() -> None:
    engine = scripted("<think>half")
    engine.die = True
    last = events(engine)[-1]
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error.code == "server_error"


def test_the_async_client_reads_it_all() -> None:
    async def use() -> None:
        app = create_app(Deployment(scripted("<think>why</think>42"), CARD))
        transport = httpx.ASGITransport(app=app)
        async with (
            httpx.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(base_url="http://t/v1", api_key="none", http_client=http) as client,
        ):
            whole = await client.responses.create(model="m", input="hi")
            assert whole.output_text == "42"
            stream = await client.responses.create(model="m", input="hi", stream=True)
            kinds = [event.type async for event in stream]
            assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
            async with client.responses.stream(model="m", input="hi") as manager:
                async for _ in manager:
                    pass
                final = await manager.get_final_response()
            assert told(final) == told(whole)

    asyncio.run(use())


# On real vLLM


@pytest.mark.slow
@pytest.mark.parametrize("lesson", LESSONS)
def test_real_responses_split_as_the_text_does(served: LocalServer, lesson: str) -> None:
    expected = split(LESSONS[lesson])
    items: list[tuple[str, str | None, str]] = [("message", expected.answer, "completed")]
    if expected.status is not SplitStatus.UNTAGGED:
        items.insert(0, ("reasoning", expected.reasoning, "completed"))
    asked: dict[str, Any] = {"model": served.model, "input": lesson, "temperature": 0}
    response = client(served).responses.create(**asked)
    assert told(response) == items
    with client(served).responses.stream(**asked) as stream:
        for _ in stream:
            pass
        final: Any = stream.get_final_response()
    assert told(final) == items and final.usage == response.usage


@pytest.mark.slow
def test_a_real_thought_cut_short_is_incomplete(served: LocalServer) -> None:
    response = client(served).responses.create(
        model=served.model, input="closed", temperature=0, max_output_tokens=4
    )
    assert told(response) == [("reasoning", "7+8", "incomplete")]
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 4


@pytest.mark.slow
def test_a_real_call_and_its_result(served: LocalServer) -> None:
    say: Callable[..., Any] = client(served).responses.create
    asked: dict[str, Any] = {"model": served.model, "tools": [TOOL], "temperature": 0}
    first = say(input="add", **asked)
    assert first.tools[0].strict is True
    call = first.output[1]
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"a": 7, "b": 8})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "15"}
    with client(served).responses.stream(input="add", **asked) as stream:
        final: Any = stream.get_final_response()
    for output in (first.output, final.output):
        for items in (output, [i.to_dict() for i in output], [i.model_dump() for i in output]):
            history = [{"role": "user", "content": "add"}, *items, result]
            assert say(input=history, **asked).output_text == "It is 15."


class Pick(BaseModel):
    """A shape for an answer."""

    n: Literal[7, 8]


@pytest.mark.slow
def test_a_real_answer_is_parsed_into_its_shape(served: LocalServer) -> None:
    response = client(served).responses.parse(
        model=served.model, input="empty", temperature=0, text_format=Pick,
        extra_body={"logit_bias": without_spaces(served)}, max_output_tokens=100,
    )  # fmt: skip
    assert told(response)[0] == ("reasoning", "", "completed")
    assert response.output_parsed is not None
    assert response.output_parsed.n in (7, 8)
