"""Rewards that ask another model: a failed judge is None, and no verdict is paid for twice."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate import llm_judge
from thinkgate.errors import ConfigError, EndpointError, MissingDependencyError
from thinkgate.format import split
from thinkgate.llm_judge import NO_GOLD, LLMJudge, read_score
from thinkgate_train.rewards import build


def judge(endpoint: ScriptedEndpoint | str, **settings: Any) -> LLMJudge:
    url = endpoint if isinstance(endpoint, str) else endpoint.base_url
    return LLMJudge(base_url=url, **({"model": "scripted", "retries": 0} | settings))


def grading(body: dict[str, Any]) -> Says:
    """A judge that gives 0.25 for each exclamation mark in the answer."""
    answer = prompt_of(body).split("ANSWER TO GRADE =====\n")[1].split("\n===== END")[0]
    return Says(json.dumps({"score": 0.25 * answer.count("!")}), None)


# Asking


def test_the_judge_sees_question_answer_gold_and_rubric() -> None:
    with ScriptedEndpoint(grading) as endpoint:
        one = judge(endpoint, rubric="Shouting is good.")
        assert one.score(["why?", "how?"], ["so!", "no"], ["because", None]) == [0.25, 0]
        asked = sorted(endpoint.requests, key=prompt_of, reverse=True)
    said = prompt_of(asked[0])
    assert all(
        part in said for part in ("why?", "so!", "because", "Shouting is good.", "0 (worst)")
    )
    assert NO_GOLD in prompt_of(asked[1])
    assert {body["temperature"] for body in asked} == {0}
    assert {body["_headers"]["authorization"] for body in asked} == {"Bearer none"}


def test_the_reward_sends_the_answer_part_only() -> None:
    logged: list[tuple[str, float]] = []
    completions = ["<think>shh!!!</think>yes!", "<think>cut!", "<think>a</think>"]
    prompts = [
        [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"}] for i in range(3)
    ]
    with ScriptedEndpoint(grading) as endpoint:
        args = {"base_url": endpoint.base_url, "model": "m"}
        reward = build("llm_judge", split, args)
        assert reward.__name__ == "llm_judge"
        texts = reward(
            prompts=prompts,
            completions=completions,
            gold=["1", None, 3],
            log_metric=lambda *metric: logged.append(metric),
        )
        messages = [[{"role": "assistant", "content": c}] for c in completions]
        assert reward(prompts=prompts, completions=messages, gold=["1", None, 3]) == texts
        assert texts == [0.25, 0, 0]  # where there is no answer, nobody is asked
        assert len(endpoint.requests) == 1
        assert "shh" not in prompt_of(endpoint.requests[0])
        whole = build("llm_judge", split, args | {"on": "completion"})
        assert whole(prompts=prompts, completions=completions) == [1, 0.25, 0]
    assert logged == [("judge/failed", 0)]


def test_equal_answers_are_asked_once_and_order_is_kept() -> None:
    answers = ["a!", "b", "a!", "c!!", "b", ""]
    with ScriptedEndpoint(grading) as endpoint:
        one = judge(endpoint)
        scores = one.score(["q"] * 6, answers)
        assert scores == [0.25, 0, 0.25, 0.5, 0, 0]
        assert len(endpoint.requests) == 3
        order = random.Random(0).sample(range(6), 6)
        assert one.score(["q"] * 6, [answers[i] for i in order]) == [scores[i] for i in order]
        assert len(endpoint.requests) == 3


def test_slots_in_the_texts_are_not_filled() -> None:
    with ScriptedEndpoint(lambda _: Says("1")) as endpoint:
        one = judge(endpoint, template="{prompt} | {answer} | {gold} | {x}")
        assert one.score(["{answer}"], ["{gold} {prompt}"], ["\\1 {low}"]) == [1]
        assert prompt_of(endpoint.requests[0]) == "{answer} | {gold} {prompt} | \\1 {low} | {x}"


def test_the_scale_of_the_judge_becomes_0_to_1() -> None:
    replies = {"a": "1", "b": '{"score": 10}', "c": "5.5/10", "d": "11", "e": "0"}
    with ScriptedEndpoint(lambda body: Says(replies[prompt_of(body)])) as endpoint:
        one = judge(endpoint, template="{answer}", scale=(1, 10))
        assert one.score([""] * 5, list(replies)) == [0, 1, 0.5, None, None]


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedEndpoint(grading) as endpoint:
        one = judge(endpoint, api_key_env="JUDGE_KEY", sampling={"top_k": 5})
        with pytest.raises(ConfigError, match="JUDGE_KEY: the environment has no such variable"):
            one.connect()
        monkeypatch.setenv("JUDGE_KEY", "sesame")
        assert one.score(["q"], ["a"]) == [0]
        (body,) = endpoint.requests
    assert body["_headers"]["authorization"] == "Bearer sesame"
    assert "temperature" not in body and body["top_k"] == 5


# Failing


def test_429_and_500_are_tried_again() -> None:
    turns = iter([Fails(429), Fails(500), Fails(503)])
    with ScriptedEndpoint(lambda body: next(turns, grading(body))) as endpoint:
        assert judge(endpoint, retries=3).score(["q"], ["a!"]) == [0.25]
        assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    "failure",
    [
        Fails(500),
        Fails(429),
        Fails(hang=30),
        Fails(400, {"message": "prompt too long"}),
        Fails(200, body="<html>welcome</html>"),
        Fails(200, body="[]"),
        Says(None),
        Says("I would rather not say."),
        Says('{"score": "high"}'),
        Says('{"score": 7}'),
        Says("0.3 or 0.4"),
        Says("<think>perhaps 1"),
    ],
    ids=lambda f: str(f)[:40],
)
def test_a_failed_judge_is_none_and_counted(
    failure: Says | Fails, caplog: pytest.LogCaptureFixture
) -> None:
    logged: list[tuple[str, float]] = []

    def script(body: dict[str, Any]) -> Says | Fails:
        return failure if "bad" in prompt_of(body) else grading(body)

    with ScriptedEndpoint(script) as endpoint:
        args = {"base_url": endpoint.base_url, "model": "m", "retries": 0, "timeout": 1}
        reward = build("llm_judge", split, args)
        for _ in range(2):
            got = reward(
                prompts=["q"] * 4,
                completions=["bad", "good!", "fine!!", "bad"],
                log_metric=lambda *metric: logged.append(metric),
            )
            assert got == [None, 0.25, 0.5, None]
        # Verdicts are remembered, failures are not.
        assert len(endpoint.requests) == 4
    assert logged == [("judge/failed", 0.5)] * 2
    assert len(caplog.records) == 1  # each kind is told once
    assert "counted as not measured" in caplog.text


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Fails(401, {"message": "bad key"}), r"refuses model 'scripted' \(401\): bad key"),
        (Fails(404, {"message": "no such model"}), r"\(404\): no such model"),
        (Fails(200, body="<html>"), "does not speak the chat completions API"),
    ],
)
def test_settings_that_never_work_end_the_run(failure: Fails, said: str) -> None:
    with (
        ScriptedEndpoint(lambda _: failure) as endpoint,
        pytest.raises(EndpointError, match=said) as caught,
    ):
        judge(endpoint).score(["q"] * 2, ["a", "b"])
    assert "\n" not in str(caught.value)


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match=r"cannot reach .*is it running\?"):
        judge(f"http://127.0.0.1:{port}").score(["q"], ["a"])


def test_a_judge_that_dies_later_does_not_take_the_run_with_it() -> None:
    with ScriptedEndpoint(grading) as endpoint:
        one = judge(endpoint)
        assert one.score(["q"], ["a!"]) == [0.25]
        endpoint.script = lambda _: Fails(401)
        assert one.score(["q"] * 2, ["a!", "b!"]) == [0.25, None]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_url": "localhost:8000"}, "'base_url' is .*write it as http"),
        ({"template": "{prompt}?"}, "the template needs {answer}"),
        ({"scale": [1, 0]}, "worst being the smaller"),
        ({"concurrency": 0}, "'concurrency' is 0"),
        ({"temprature": 0}, "unknown key 'temprature'"),
        ({"on": "thought"}, "'on' is 'thought'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        build("llm_judge", split, {"base_url": "http://x", "model": "m"} | settings)
    assert "\n" not in str(caught.value) and "reward 'llm_judge'" in str(caught.value)


def test_without_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"LLM judge needs openai.*pip install"):
        build("llm_judge", split, {"base_url": "http://x", "model": "m"})


def test_requests_keep_the_pace_over_threads_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    monkeypatch.setattr(llm_judge, "time", clock)
    turns = iter([Fails(500)])
    with ScriptedEndpoint(lambda body: next(turns, grading(body))) as endpoint:
        one = judge(endpoint, requests_per_minute=2, retries=1)
        assert one.score(["q"] * 3, ["a", "b", "c"]) == [0, 0, 0]
    # One a minute for each of the two processes; the retry is a request like the others.
    assert [round(seconds / 60) for seconds in sorted(slept)] == [0, 1, 2, 3]


# Remembering


def test_verdicts_outlive_the_process(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "verdicts.jsonl"
    with ScriptedEndpoint(grading) as endpoint:
        settings = {"model": "scripted", "base_url": endpoint.base_url, "retries": 0}
        assert LLMJudge(**settings, cache=cache).score(["q"] * 2, ["a!", "b"]) == [0.25, 0]
        entries = [json.loads(line) for line in cache.read_text().splitlines()]
        assert sorted(e["score"] for e in entries) == [0, 0.25]
        assert {e["reply"] for e in entries} == {'{"score": 0.25}', '{"score": 0.0}'}
        again = LLMJudge(**settings, cache=cache)
        assert again.score(["q"] * 2, ["b", "a!"]) == [0, 0.25]
        assert len(endpoint.requests) == 2
        # Another model, rubric or question is another verdict.
        others: list[dict[str, Any]] = [{"model": "other"}, {"rubric": "Be kind."}]
        for count, other in enumerate(others, 3):
            LLMJudge(**(settings | other), cache=cache).score(["q"], ["a!"])
            assert len(endpoint.requests) == count
        again.score(["why"], ["a!"])
        assert len(endpoint.requests) == 5


def test_a_torn_or_foreign_line_costs_one_verdict(tmp_path: Path) -> None:
    cache = tmp_path / "verdicts.jsonl"
    with ScriptedEndpoint(grading) as endpoint:
        judge(endpoint, cache=cache, concurrency=1).score(["q"] * 2, ["a!", "b!!"])
        whole = cache.read_bytes()
        cache.write_bytes(b'[1]\n{"key": 3}\n\xff\n' + whole[:-9])
        assert judge(endpoint, cache=cache).score(["q"] * 2, ["a!", "b!!"]) == [0.25, 0.5]
        assert len(endpoint.requests) == 3
        assert judge(endpoint, cache=cache).score(["q"] * 2, ["a!", "b!!"]) == [0.25, 0.5]
        assert len(endpoint.requests) == 3


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_what_was_answered_outlives_a_killed_process(
    tmp_path: Path, ending: signal.Signals
) -> None:
    cache = tmp_path / "verdicts.jsonl"
    code = (
        "import sys; from thinkgate.llm_judge import LLMJudge\n"
        "judge = LLMJudge(base_url=sys.argv[1], model='m', cache=sys.argv[2], concurrency=1)\n"
        "judge.score(['q'] * 3, ['1!', '2!!', '3!!!'])\n"
    )

    def script(body: dict[str, Any]) -> Says | Fails:
        return Fails(hang=200) if "3!!!" in prompt_of(body) else grading(body)

    with ScriptedEndpoint(script) as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-c", code, endpoint.base_url, str(cache)], stderr=subprocess.DEVNULL
        )
        while len(endpoint.requests) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(ending)
        assert process.wait(60) == -ending  # it does not wait for the judge
        endpoint.script = grading
        one = judge(endpoint, model="m", cache=cache)
        assert one.score(["q"] * 3, ["1!", "2!!", "3!!!"]) == [0.25, 0.5, 0.75]
        assert len(endpoint.requests) == 4


# Reading a verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 7}', 7),
        ('{"score": "7.5", "why": "it {nearly} fits"}', 7.5),
        ('Here it is:\n```json\n{"why": {"score": 1}, "score": 4}\n```', 4),
        ('The answer says {"score": 10}, but:\n{"score": 2}', 2),
        ("7", 7),
        (" **7.5**. ", 7.5),
        ("7/10", 7),
        ("Fine work.\nScore: 7", 7),
        ("Fine work.\n\n**Rating:** **7 / 10**", 7),
        ("My final grade is 0.", 0),
        ('<think>maybe 3, score: 4</think>{"score": 5}', 5),
        ("7/20", None),
        ("-1", None),
        ("11", None),
        ("Score: 3\nbut it could be 4", None),
        ("between 3 and 4", None),
        ('{"score": null}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e999}', None),
        ('{"score": 7', None),
        ('{"grade": 7}', None),
        ("{" * 100_000, None),
        ('{"a":' + "[" * 50_000, None),
        ("", None),
        ("seven", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_read_score(reply: str, score: float | None) -> None:
    assert read_score(reply, 0, 10) == score


@given(st.text() | st.from_regex(r"(score: ?)?-?[0-9./]{1,9}", fullmatch=True))
def test_a_score_is_on_the_scale_or_none(reply: str) -> None:
    score = read_score(reply, 1, 5)
    assert score is None or 1 <= score <= 5
