"""The response cache, and several addresses of one model."""

import argparse
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.cli import main
from thinkgate.errors import EndpointError
from thinkgate_evals import eval_command
from thinkgate_evals.cache import ResponseCache
from thinkgate_evals.measure import Measurement, Options, measure_endpoint
from thinkgate_evals.records import read_records
from thinkgate_evals.replicas import GIVE_UP_AFTER
from thinkgate_evals.runner import Endpoint
from thinkgate_evals.suites import load_suite

COUNT = 12
ROOT = Path(__file__).parent.parent
Script = Callable[[dict[str, Any]], Says | Fails]


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "sums.jsonl"
    rows = ({"prompt": f"{n}+{n}", "gold": str(2 * n)} for n in range(COUNT))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{file}"


class Asked:
    """Answers right, with a thought that names the seed; counts what it is asked."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, body: dict[str, Any]) -> Says:
        self.seeds.append(body["seed"])
        number = int(prompt_of(body).partition("+")[0])
        return Says(str(2 * number), f"seed {body['seed']}")


def measure(script: Script, data: str, tmp_path: Path, out: str, **more: Any) -> Measurement:
    digest, overrides = more.pop("digest", "d" * 64), more.pop("overrides", ())
    suite = load_suite(data, overrides=overrides)
    with ScriptedEndpoint(script) as server:
        endpoint = Endpoint(base_url=server.base_url, model="scripted", digest=digest)
        options = Options(cache=tmp_path / "cache.sqlite", **more)
        [measured] = measure_endpoint(endpoint, [suite], options, tmp_path / out)
        return measured


def test_the_same_question_is_asked_once(data: str, tmp_path: Path) -> None:
    script = Asked()
    first = measure(script, data, tmp_path, "a")
    again = measure(script, data, tmp_path, "b")
    assert len(script.seeds) == COUNT
    texts = [
        (r.problem_id, r.reasoning, r.answer, r.verdict, r.reasoning_tokens) for r in again.records
    ]
    assert texts == [
        (r.problem_id, r.reasoning, r.answer, r.verdict, r.reasoning_tokens) for r in first.records
    ]
    assert [r.cached for r in first.records] == [False] * COUNT
    assert [r.cached for r in again.records] == [True] * COUNT
    assert read_records(again.path)[0].cached
    # What was not asked is no throughput.
    assert first.summary.samples_per_second is not None
    assert again.summary.samples_per_second is None


def test_every_repeat_is_its_own_question(data: str, tmp_path: Path) -> None:
    """lm-eval's cache gives all repeats one answer where only a temperature is set."""
    script = Asked()
    measure(script, data, tmp_path, "a", overrides=["samples=3"])
    again = measure(script, data, tmp_path, "b", overrides=["samples=3"])
    assert len(script.seeds) == len(set(script.seeds)) == 3 * COUNT
    assert len({record.reasoning for record in again.records}) == 3 * COUNT
    assert again.summary.duplicate_rate is not None
    assert again.summary.duplicate_rate.estimate == 0


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "e" * 64},
        {"overrides": ["sampling.temperature=0.3"]},
        {"overrides": ["sampling.max_tokens=99"]},
        {"overrides": ["sampling.seed=1"]},
        {"overrides": ["prompt.template={prompt}?"]},
        {"overrides": ["prompt.system=Think."]},
        {"fresh": True},
    ],
    ids=str,
)
def test_any_other_question_is_asked(change: dict[str, Any], data: str, tmp_path: Path) -> None:
    script = Asked()
    measure(script, data, tmp_path, "a")
    if "overrides" in change and "{prompt}?" in change["overrides"][0]:
        # The template's question mark must not reach the number.
        inner, script_ = script, lambda body: inner(_stripped(body))
        measure(script_, data, tmp_path, "b", **change)
    else:
        measure(script, data, tmp_path, "b", **change)
    assert len(script.seeds) == 2 * COUNT


def _stripped(body: dict[str, Any]) -> dict[str, Any]:
    content = prompt_of(body).rstrip("?")
    return {**body, "messages": [{"role": "user", "content": content}]}


def test_the_suites_version_is_no_part_of_the_question(data: str, tmp_path: Path) -> None:
    script = Asked()
    measure(script, data, tmp_path, "a")
    measure(script, data, tmp_path, "b", overrides=["version=2"])
    assert len(script.seeds) == COUNT


def test_failures_are_not_kept(data: str, tmp_path: Path) -> None:
    measured = measure(lambda _: Fails(400), data, tmp_path, "a")
    assert measured.summary.verdicts == {"error": COUNT}
    script = Asked()
    assert measure(script, data, tmp_path, "b").summary.verdicts == {"correct": COUNT}
    assert len(script.seeds) == COUNT


def test_answers_of_other_weights_are_not_kept(data: str, tmp_path: Path) -> None:
    headers = {"X-Thinkgate-Model-Digest": "e" * 64}
    with ScriptedEndpoint(Asked(), headers=headers) as server:
        endpoint = Endpoint(base_url=server.base_url, model="scripted", digest="d" * 64)
        options = Options(cache=tmp_path / "cache.sqlite")
        with pytest.raises(EndpointError, match="now serves model eeeeeeeeeeee"):
            measure_endpoint(endpoint, [load_suite(data)], options, tmp_path / "a")
    script = Asked()
    measure(script, data, tmp_path, "b")
    assert len(script.seeds) == COUNT


def test_no_answer_and_odd_text_come_back_as_they_were(tmp_path: Path, data: str) -> None:
    def cut(_: dict[str, Any]) -> Says:
        return Says(None, "\ud800 half a thought \u2028", finish="length", usage=None)

    first = measure(cut, data, tmp_path, "a", limit=1).records[0]
    again = measure(cut, data, tmp_path, "b", limit=1).records[0]
    assert again.cached and again == first.model_copy(update={"cached": True, "endpoint": None})
    assert again.answer is None


def test_a_file_that_is_no_cache_is_one_sentence(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache.sqlite").write_text("not a database, but long enough to be one " * 50)
    with ScriptedEndpoint(Asked()) as server:
        command = ["eval", server.base_url, "--suite", data, "--out", str(tmp_path / "o")]
        assert main([*command, "--cache", str(tmp_path / "cache.sqlite")]) == 2
    error = capsys.readouterr().err
    assert "cannot be used as a response cache" in error and "--cache" in error
    assert error.count("\n") == 1


def test_two_runs_may_share_a_cache(tmp_path: Path) -> None:
    from thinkgate.format import SplitStatus
    from thinkgate_clients.reply import Reply

    reply = Reply(
        reasoning="r",
        answer="a",
        status=SplitStatus.CLOSED,
        finish_reason="stop",
        reasoning_tokens=1,
        answer_tokens=1,
        completion_tokens=2,
        request_id=None,
        model_digest=None,
        latency_s=0.5,
    )
    path = tmp_path / "deep" / "cache.sqlite"
    with ResponseCache(path) as one, ResponseCache(path) as two:
        one.put("k", reply)
        assert two.get("k") == reply and two.get("other") is None
        two.put("k", reply)


def test_requests_are_shared_among_addresses_of_one_model(data: str, tmp_path: Path) -> None:
    models = ({"id": "m", "digest": "d" * 64},)
    scripts = Asked(), Asked(), Asked()
    with (
        ScriptedEndpoint(scripts[0], models=models) as a,
        ScriptedEndpoint(scripts[1], models=models) as b,
        ScriptedEndpoint(scripts[2], models=models) as c,
    ):
        command = ["eval", a.base_url, "--endpoints", f"{b.base_url}, {c.base_url}"]
        assert (
            main([*command, "--suite", data, "--out", str(tmp_path / "o"), "--concurrency", "3"])
            == 0
        )
    assert sum(len(script.seeds) for script in scripts) == COUNT
    assert all(script.seeds for script in scripts)
    assert len(read_records(tmp_path / "o" / "sums.jsonl")) == COUNT


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (({"id": "other", "digest": "d" * 64},), "offers other, not m"),
        (
            ({"id": "m", "digest": "e" * 64},),
            "serves a model eeeeeeeeeeeeeeeeeeeeee, not dddddddddddd",
        ),
        (({"id": "m"},), "serves a model with an unknown digest, not dddddddddddd"),
    ],
)
def test_addresses_of_another_model_are_refused(
    models: tuple[dict[str, Any], ...],
    words: str,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Asked()
    with (
        ScriptedEndpoint(script, models=({"id": "m", "digest": "d" * 64},)) as a,
        ScriptedEndpoint(script, models=models) as b,
    ):
        command = ["eval", a.base_url, "--endpoints", b.base_url, "--suite", data]
        assert main([*command, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and script.seeds == []


def dying(server: ScriptedEndpoint, after: int, dead: threading.Event | None = None) -> Script:
    """Answers, and takes the server down with the request after so many."""
    asked = Asked()

    def script(body: dict[str, Any]) -> Says | Fails:
        if len(asked.seeds) < after:
            return asked(body)
        server.die()
        if dead is not None:
            dead.set()
        return Fails(hang=30)

    return script


def test_the_others_do_the_work_of_an_address_that_dies(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, asked = threading.Event(), Asked()

    def afterwards(body: dict[str, Any]) -> Says:
        assert dead.wait(60)
        time.sleep(0.02)  # so that there is work left for whom the dead one left alone
        return asked(body)

    with (
        ScriptedEndpoint(afterwards) as a,
        ScriptedEndpoint(Asked()) as b,
        ScriptedEndpoint(afterwards) as c,
    ):
        b.script = dying(b, 2, dead)
        gone = b.base_url
        endpoint = Endpoint(
            base_url=a.base_url, model="scripted", others=(gone, c.base_url, gone), max_retries=0
        )
        options = Options(concurrency=3)
        suite = load_suite(data, overrides=["samples=3"])
        [measured] = measure_endpoint(endpoint, [suite], options, tmp_path / "o")
        assert measured.summary.verdicts == {"correct": 3 * COUNT}
        answered = Counter(record.endpoint for record in measured.records)
        assert answered.keys() == {a.base_url, gone, c.base_url} and answered[gone] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and gone in error and "the other addresses" in error


def test_an_address_that_only_fails_is_given_up_and_nothing_is_lost(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Asked()
    with (
        ScriptedEndpoint(Asked()) as a,
        ScriptedEndpoint(lambda body: broken(body) and Fails()) as b,
    ):
        endpoint = Endpoint(
            base_url=a.base_url, model="scripted", others=(b.base_url,), max_retries=0
        )
        suite = load_suite(data, overrides=["samples=4"])
        [measured] = measure_endpoint(endpoint, [suite], Options(concurrency=4), tmp_path / "o")
    assert measured.summary.verdicts == {"correct": 4 * COUNT}
    assert GIVE_UP_AFTER <= len(broken.seeds) < GIVE_UP_AFTER + 4
    assert f"{GIVE_UP_AFTER} requests in a row failed" in capsys.readouterr().err


def test_the_last_address_that_dies_stops_the_run_and_is_named(data: str, tmp_path: Path) -> None:
    with ScriptedEndpoint(Asked()) as a, ScriptedEndpoint(Asked()) as b:
        a.script, b.script = dying(a, 3), dying(b, 2)
        urls = a.base_url, b.base_url
        suite = load_suite(data)
        endpoint = Endpoint(base_url=urls[0], model="scripted", others=urls[1:], max_retries=0)
        with pytest.raises(EndpointError, match="nothing was counted as wrong") as caught:
            measure_endpoint(endpoint, [suite], Options(concurrency=2), tmp_path / "o")
        assert any(url in str(caught.value) for url in urls)
    kept = read_records(tmp_path / "o" / "sums.jsonl")
    assert {record.verdict for record in kept} <= {"correct", "error"}
    # On going on, one that is still down is left out.
    models = ({"id": "scripted"},)
    with ScriptedEndpoint(Asked(), models=models) as c:
        command = ["eval", c.base_url, "--endpoints", urls[0], "--suite", data]
        assert main([*command, "--out", str(tmp_path / "p")]) == 0


def test_endpoints_beside_a_checkpoint_are_refused(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "runs/x", "--endpoints", "http://x", "--suite", data]) == 2
    assert "--endpoints is for addresses" in capsys.readouterr().err


def test_the_slurm_job_of_the_readme(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands: a server on every node, then one evaluation of all."""
    readme = (ROOT / "evals" / "README.md").read_text()
    [job] = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", readme, re.DOTALL)
    tools = {
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "srun": 'shift 5; exec "$@"',
        "curl": "exit 0",
        "thinkgate": f'printf "%s\\n" "$*" >> {tmp_path}/said',
    }
    for name, body in tools.items():
        tool = tmp_path / name
        tool.write_text(f"#!/bin/bash\n{body}\n")
        tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NAME": "job"}
    subprocess.run(
        ["bash", "-eu", "-c", f"SLURM_JOB_NODELIST=n\n{job}\nwait"], env=environment, check=True
    )
    *serving, evaluation = sorted((tmp_path / "said").read_text().splitlines(), reverse=True)
    assert len(serving) == 3 and all(line.startswith("serve runs/gsm8k-grpo") for line in serving)
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    args = parser.parse_args(evaluation.removeprefix("eval ").split())
    assert args.target == "http://n1:8000/v1"
    assert args.endpoints == "http://n2:8000/v1,http://n3:8000/v1"
