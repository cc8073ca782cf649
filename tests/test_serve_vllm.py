"""The whole server on real vLLM, over a real socket, asked by the real openai client.

One server is shared by all tests that leave it running. The model knows `LESSONS` by heart.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import LESSONS, TINY_CONTEXT
from serving import client, eventually, root

from thinkgate.checkpoint import load_checkpoint
from thinkgate.format import SplitStatus, split
from thinkgate_clients.local import LocalServer, local_server

pytestmark = pytest.mark.slow

ENDLESS: dict[str, Any] = {"ignore_eos": True, "max_tokens": TINY_CONTEXT - 50}
"""A request that runs for seconds."""


def asked(question: str) -> Any:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0}


def running(server: LocalServer) -> float:
    text = httpx.get(f"{root(server)}/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("thinkgate_running_requests ")]
    return float(line.split()[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def is_idle(pid: int) -> bool:
    """Whether a process uses next to no CPU time."""

    def ticks() -> int:
        return sum(
            map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        )

    before = ticks()
    time.sleep(0.3)
    return ticks() - before <= 2


def engine_of(server_pid: int) -> int:
    """The pid of the server's engine process."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    for child in map(int, children):
        if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError(f"no engine among the children {children} of {server_pid}")


@pytest.mark.parametrize("lesson", LESSONS)
def test_whole_and_streamed_split_as_the_text_does(served: LocalServer, lesson: str) -> None:
    expected = split(LESSONS[lesson])
    reasoning = None if expected.status is SplitStatus.UNTAGGED else expected.reasoning
    reply = client(served).chat.completions.create(model=served.model, **asked(lesson))
    message: Any = reply.choices[0].message
    assert (message.reasoning_content, message.content) == (reasoning, expected.answer)
    assert message.reasoning == reasoning
    assert reply.choices[0].finish_reason == "stop"

    chunks = list(
        client(served).chat.completions.create(
            model=served.model, stream=True, stream_options={"include_usage": True}, **asked(lesson)
        )
    )
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks[:-1]]
    thoughts = [d.reasoning_content for d in deltas if hasattr(d, "reasoning_content")]
    assert ("".join(thoughts) if thoughts else None) == reasoning
    assert "".join(d.content or "" for d in deltas) == expected.answer
    assert chunks[-1].usage == reply.usage


def test_usage_counts_tokens_exactly(served: LocalServer) -> None:
    # One token per byte, one per tag, one for the end.
    reply = client(served).chat.completions.create(model=served.model, **asked("closed"))
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert reply.usage.prompt_tokens == 1 + len("closed") + 1
    assert reply.usage.completion_tokens_details.reasoning_tokens == len("7+8=15") + 2
    assert reply.usage.completion_tokens == len("7+8=15") + 2 + len("15") + 1


def test_a_thought_cut_short_has_no_answer(served: LocalServer) -> None:
    reply = client(served).chat.completions.create(
        model=served.model, max_tokens=4, **asked("closed")
    )
    choice: Any = reply.choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == ("7+8", None)
    assert (choice.finish_reason, choice.reasoning_truncated) == ("length", True)
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 4


def test_stop_strings_bind_to_the_answer(served: LocalServer) -> None:
    reply = client(served).chat.completions.create(
        model=served.model, stop=["STOP"], **asked("spaced")
    )
    message: Any = reply.choices[0].message
    assert message.reasoning_content == "first\n\nthen STOP"
    assert message.content == "all of "
    assert reply.choices[0].finish_reason == "stop"
    assert eventually(lambda: running(served) == 0)


def test_choices_and_seeds(served: LocalServer) -> None:
    def draw(seed: int) -> list[str | None]:
        body: Any = asked("something it never saw") | {"temperature": 1.5}
        reply = client(served).chat.completions.create(
            model=served.model, n=3, seed=seed, max_tokens=30, **body
        )
        return [json.dumps(choice.message.model_dump()) for choice in reply.choices]

    first = draw(1)
    assert len(set(first)) == 3
    assert draw(1) == first
    assert draw(2) != first
    assert draw(-1) == draw(-1)  # to vLLM itself this one is no seed at all


def test_logit_bias_reaches_the_engine(served: LocalServer) -> None:
    token = httpx.post(f"{root(served)}/tokenize", json={"prompt": "z"}).json()["tokens"][0]
    reply = client(served).chat.completions.create(
        model=served.model, max_tokens=5, logit_bias={str(token): 100}, **asked("plain")
    )
    assert reply.choices[0].message.content == "zzzzz"


@pytest.mark.parametrize(("budget", "thought"), [(0, ""), (5, "fir")])
def test_a_thinking_budget_closes_the_thought_and_answers(
    served: LocalServer, budget: int, thought: str
) -> None:
    def draw() -> tuple[Any, Any]:
        body: Any = asked("spaced") | {"temperature": 1, "seed": 5}
        reply = client(served).chat.completions.create(
            model=served.model, max_tokens=60, extra_body={"thinking_budget": budget}, **body
        )
        return reply.choices[0], reply.usage

    choice, usage = draw()
    # The tag and the line break are tokens too; a thought is noticed once its tag is there.
    assert choice.message.reasoning_content == thought
    assert choice.message.content is not None and choice.reasoning_truncated is True
    closing = 2 if budget else 1  # a line break and the tag, or the tag alone
    assert usage.completion_tokens_details.reasoning_tokens == max(1, budget) + closing
    again, counted = draw()
    assert (again.message, counted) == (choice.message, usage)


def test_a_template_without_a_switch_says_how_to_leave_the_thought_out(
    served: LocalServer,
) -> None:
    switch = {"chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(openai.BadRequestError, match="use thinking_budget or reasoning_effort"):
        client(served).chat.completions.create(
            model=served.model, extra_body=switch, **asked("closed")
        )
    instead: list[Any] = [{"reasoning_effort": "none"}, {"extra_body": {"thinking_budget": 0}}]
    said = []
    for how in instead:
        reply = client(served).chat.completions.create(
            model=served.model, max_tokens=60, **asked("closed"), **how
        )
        said.append(reply.choices[0].message)
        assert said[-1].reasoning_content == "" and said[-1].content
    assert said[0] == said[1]


def test_a_schema_binds_the_answer_and_not_the_thought(served: LocalServer) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    for lesson in ("closed", "plain"):
        body: Any = asked(lesson) | {
            "response_format": {"type": "json_schema",
                                "json_schema": {"name": "x", "schema": schema}}
        }  # fmt: skip
        reply = client(served).chat.completions.create(model=served.model, max_tokens=200, **body)
        message: Any = reply.choices[0].message
        thought = split(LESSONS[lesson]).reasoning or None
        assert message.reasoning_content == thought
        if reply.choices[0].finish_reason == "stop":  # a tiny model may write spaces to the end
            assert json.loads(message.content)["n"] in (1, 2)
        else:
            assert message.content.startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "robot"},  # is none
        {"type": "object", "not": {}},  # would be read over
        {"$ref": "#"},  # can be read and not compiled, which the engine alone finds out
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_hold_is_refused(
    served: LocalServer, schema: dict[str, Any], stream: bool
) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    bad: Any = asked("closed") | {"response_format": shape, "stream": stream}
    with pytest.raises(openai.OpenAIError, match="the schema cannot be used") as refused:
        reply = client(served).chat.completions.create(
            model=served.model, extra_body={"thinking_budget": 0}, **bad
        )
        for _ in reply:  # its thought is sent before the engine finds out
            pass
    error: Any = refused.value
    assert error.param == "response_format"
    assert httpx.get(f"{root(served)}/ready").status_code == 200


def test_logprobs_of_the_answer(served: LocalServer) -> None:
    reply = client(served).chat.completions.create(
        model=served.model, logprobs=True, top_logprobs=2, **asked("closed")
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == ["1", "5"]
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0


def test_plain_completions_are_verbatim(served: LocalServer) -> None:
    prompt = "<|user|>closed<|assistant|>"
    reply = client(served).completions.create(
        model=served.model, prompt=prompt, temperature=0, max_tokens=50
    )
    assert reply.choices[0].text == LESSONS["closed"]
    tokens = httpx.post(f"{root(served)}/tokenize", json={"prompt": prompt}).json()["tokens"]
    chat = httpx.post(f"{root(served)}/tokenize", json={"messages": asked("closed")["messages"]})
    assert chat.json()["tokens"] == tokens
    back = httpx.post(f"{root(served)}/detokenize", json={"tokens": tokens}).json()
    assert back == {"prompt": prompt}


def test_the_model_shows_what_vouches_for_it(served: LocalServer, gated_checkpoint: Path) -> None:
    digest = load_checkpoint(gated_checkpoint).digest
    model: Any = client(served).models.retrieve(served.model)
    assert model.id == "tiny"
    assert model.digest == digest
    assert model.gate["decision"] == "d-test"
    assert model.max_model_len == TINY_CONTEXT
    response = httpx.get(f"{root(served)}/ready")
    assert response.status_code == 200
    assert response.headers["x-thinkgate-model-digest"] == digest
    assert response.headers["x-thinkgate-gate"] == "pass d-test"


def test_a_prompt_that_does_not_fit(served: LocalServer) -> None:
    with pytest.raises(openai.BadRequestError, match=f"the context {TINY_CONTEXT}"):
        client(served).chat.completions.create(model=served.model, **asked("x" * 3000))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_slow_reader_holds_up_nobody(served: LocalServer, leaves: bool) -> None:
    # About 9 MB: the kernel takes 4 MB of a stream that nobody reads.
    body = {"prompt": "endless", "n": 8, "logprobs": 20, "stream": True} | ENDLESS
    small = httpx.HTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)])
    tokens: Counter[int] = Counter()
    with (
        httpx.Client(transport=small, timeout=60) as http,
        http.stream("POST", f"{served.base_url}/completions", json=body) as response,
    ):
        lines = (line[6:] for line in response.iter_lines() if line.startswith("data: {"))
        shown = [next(lines)]
        reply = client(served).chat.completions.create(model=served.model, **asked("closed"))
        assert reply.choices[0].message.content == "15"
        engine = engine_of(served.process.pid)
        assert eventually(lambda: is_idle(engine), seconds=60)
        assert running(served) == 1  # all is generated, and waits for its reader
        if not leaves:
            for line in [*shown, *lines]:
                for choice in json.loads(line)["choices"]:
                    tokens[choice["index"]] += len((choice["logprobs"] or {"tokens": ()})["tokens"])
    assert eventually(lambda: running(served) == 0, seconds=3)
    if not leaves:
        assert tokens == dict.fromkeys(range(8), ENDLESS["max_tokens"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_who_leaves_frees_the_engine(served: LocalServer, stream: bool) -> None:
    body = asked("endless") | ENDLESS | {"n": 4, "stream": stream}
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.stream(
            "POST", f"{served.base_url}/chat/completions", json=body, timeout=1.0
        ) as response,
    ):
        for at, _ in enumerate(response.iter_lines()):
            if at > 20:
                raise httpx.ReadTimeout("enough")
    assert eventually(lambda: running(served) == 0, seconds=3)
    engine = engine_of(served.process.pid)
    assert eventually(lambda: is_idle(engine), seconds=3)  # it would have run for seconds more
    reply = client(served).chat.completions.create(model=served.model, **asked("closed"))
    assert reply.choices[0].message.content == "15"


def test_a_schema_that_would_take_minutes_is_refused_and_holds_up_nobody(
    served: LocalServer,
) -> None:
    def shaped(name: str, pattern: str) -> openai.types.chat.ChatCompletion:
        schema = {"type": "string", "pattern": pattern}
        shape: Any = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
        return client(served).chat.completions.create(
            model=served.model, **asked("closed"), response_format=shape
        )

    with ThreadPoolExecutor() as pool:
        costly = pool.submit(shaped, "costly", f"^{'(.?a?){0,128}' * 6}$")
        reply = shaped("cheap", "^a{3}$")
        assert not costly.done()
        assert reply.choices[0].message.content == '"aaa"'
        with pytest.raises(openai.BadRequestError, match="more than 3 s of processor time") as bad:
            costly.result()
    assert bad.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match="counts to 129, and vLLM to 128 at most"):
        shaped("counting", "^a{129}$")
    # What was compiled for the reply was compiled by a thread that gives way to tokens.
    threads = Path(f"/proc/{engine_of(served.process.pid)}/task").iterdir()
    nice = [(thread / "stat").read_text().rpartition(")")[2].split()[16] for thread in threads]
    assert {"0", "10"} <= set(nice)


def test_two_hundred_streams_at_once(served: LocalServer) -> None:
    async def one(http: openai.AsyncOpenAI) -> str:
        stream = await http.chat.completions.create(
            model=served.model, stream=True, **asked("spaced")
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def many() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.base_url, api_key="none") as http:
            return await asyncio.gather(*(one(http) for _ in range(200)))

    assert asyncio.run(many()) == ["all of STOP it\n"] * 200


def test_after_kill_9_of_the_engine_the_same_command_serves_again_and_sigterm_cuts_nothing(
    gated_checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    with local_server(gated_checkpoint, log=log) as server:
        stream = client(server).chat.completions.create(
            model=server.model, stream=True, extra_body=ENDLESS, **asked("endless")
        )
        next(iter(stream))
        os.kill(engine_of(server.process.pid), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="the engine has stopped"):
            list(stream)
        assert server.process.wait(30) == 70
    assert "the engine died" in log.read_text()
    port = server.base_url.rsplit(":", 1)[1].removesuffix("/v1")
    with local_server(gated_checkpoint, extra=["--port", port]) as server:
        engine = engine_of(server.process.pid)
        assert asyncio.run(_terminated_under_load(server)) == [LOAD_TOKENS] * LOAD
        assert server.process.wait(30) == 0
        assert not alive(engine)


LOAD, LOAD_TOKENS = 16, 600


async def _terminated_under_load(server: LocalServer) -> list[int]:
    """How many tokens each of many requests came to, all of them running at SIGTERM."""

    async def one(http: openai.AsyncOpenAI, stream: bool) -> int:
        more: Any = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        reply: Any = await http.chat.completions.create(
            model=server.model,
            extra_body={"ignore_eos": True, "max_tokens": LOAD_TOKENS},
            **asked("endless"),
            **more,
        )
        last = [chunk async for chunk in reply][-1] if stream else reply
        return last.usage.completion_tokens

    async with openai.AsyncOpenAI(
        base_url=server.base_url, api_key="none", max_retries=0, timeout=60
    ) as http:
        tasks = [asyncio.create_task(one(http, at % 4 > 0)) for at in range(LOAD)]
        while await asyncio.to_thread(running, server) < LOAD:
            assert not any(task.done() for task in tasks)
        # As a terminal's Ctrl-C or a supervisor would: the whole group.
        os.killpg(server.process.pid, signal.SIGTERM)
        assert not any(task.done() for task in tasks)
        return await asyncio.gather(*tasks)


def test_a_server_does_not_outlive_its_parent(gated_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from thinkgate_clients.local import local_server\n"
        "with local_server(sys.argv[1]) as server:\n"
        "    print(server.process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(gated_checkpoint)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        engine = engine_of(server)
        assert alive(server) and alive(engine)
        parent.kill()
    assert eventually(lambda: not alive(server))
    assert eventually(lambda: not alive(engine))


def test_a_killed_server_takes_its_engine_along(gated_checkpoint: Path) -> None:
    with local_server(gated_checkpoint) as server:
        engine = engine_of(server.process.pid)
        server.process.kill()
        assert eventually(lambda: not alive(engine))


def test_an_unknown_engine_setting_is_named(gated_checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thinkgate", "serve", str(gated_checkpoint), "--port", "0",
         "--engine.max_num_seq", "4"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--engine.max_num_seq" in done.stderr
    assert "did you mean 'max_num_seqs'?" in done.stderr


def test_consensus_returns_what_most_samples_say(served: LocalServer) -> None:
    body: Any = asked("closed") | {"temperature": 1, "seed": 3, "logprobs": True}
    reply: Any = client(served).chat.completions.create(
        model=served.model, extra_body={"consensus": 5}, **body
    )
    (choice,) = reply.choices
    first = reply.consensus["votes"][0]
    assert (choice.message.reasoning_content, choice.message.content) == ("7+8=15", "15")
    assert [entry.token for entry in choice.logprobs.content] == ["1", "5"]
    assert first["answer"] == "15" and first["count"] >= 3
    assert reply.consensus["agreement"] == first["count"] / reply.consensus["finished"]
    each = len("7+8=15") + 2 + len("15") + 1
    assert reply.usage.completion_tokens >= first["count"] * each
    stream = client(served).chat.completions.create(
        model=served.model, stream=True, extra_body={"consensus": 5}, **body
    )
    chunks: list[Any] = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "15"
    assert chunks[-1].consensus["votes"][0]["answer"] == "15"
    assert eventually(lambda: running(served) == 0)
