"""Method `sample`: a teacher's traces over a real socket, kept where right, never taken twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main

SCRATCH = "{hidden_size: 64, intermediate_size: 128, layers: 1, head_dim: 32, kv_heads: 1}"
RECIPE = f"""
name: traces
method: sample
model: {{scratch: {SCRATCH}}}
data: {{source: arithmetic, half: train, count: 6, min_terms: 2, max_terms: 3}}
sampling: {{endpoint: URL, teacher: scripted, samples: 2, keep: 1, max_tokens: 64, concurrency: 3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "traces.yaml"
    path.write_text(RECIPE)
    return path


def take(recipe: Path, out: Path, url: str, *overrides: str) -> int:
    return main(["train", str(recipe), f"sampling.endpoint={url}", *overrides, "--out", str(out)])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def right(body: dict[str, Any]) -> Says:
    question = prompt_of(body)
    return Says(content=str(eval(question)), thought=f"{question} is easy")


def test_right_traces_are_kept_with_their_thought_and_their_problem(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with ScriptedEndpoint(right) as endpoint:
        assert take(recipe, out, endpoint.base_url) == 0
        asked = endpoint.requests
    assert len(asked) == 12
    assert len({(prompt_of(body), body["seed"]) for body in asked}) == 12  # no two alike
    kept = rows(out / "data.jsonl")
    assert len(kept) == 6  # one of two identical traces for each problem
    for row in kept:
        assert row["completion"] == (
            f"<think>\n{row['prompt']} is easy\n</think>\n\n{eval(row['prompt'])}"
        )
        assert row["gold"] == str(eval(row["prompt"]))
    summary = json.loads((out / "sampling.json").read_text())
    assert summary["counts"]["duplicate"] == 6
    assert not list(tmp_path.glob(".*"))


def test_a_trace_is_written_as_the_student_is_to_write(recipe: Path, tmp_path: Path) -> None:
    style = "sampling.trace='{open}{thought}{close}{answer}'"
    with ScriptedEndpoint(right) as endpoint:
        assert take(recipe, tmp_path / "out", endpoint.base_url, style) == 0
    for row in rows(tmp_path / "out" / "data.jsonl"):
        assert row["completion"] == f"<think>{row['prompt']} is easy</think>{eval(row['prompt'])}"


@pytest.mark.parametrize("trace", ["{thought}", "{open}{answer}{thought}{close}", "{0}", "{open"])
def test_a_trace_without_its_parts_is_refused(
    recipe: Path, tmp_path: Path, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take(recipe, tmp_path / "out", "http://127.0.0.1:9", f"sampling.trace='{trace}'") == 2
    assert "sampling.trace" in capsys.readouterr().err


def test_wrong_unfinished_and_untagged_traces_are_dropped_and_counted(
    recipe: Path, tmp_path: Path
) -> None:
    said: dict[str, int] = {}

    def script(body: dict[str, Any]) -> Says:
        question = prompt_of(body)
        turn = said.setdefault(question, len(said))
        if turn == 0:
            return right(body)
        if turn == 1:
            return Says(content="1000", thought="hm")
        if turn == 2:
            return Says(content=None, thought="on and on", finish="length")
        if turn == 3:
            return Says(content=str(eval(question)))
        if turn == 4:
            return Says(content=f"<think>raw</think>{eval(question)}")
        return Says(content="", thought="all said")

    out = tmp_path / "out"
    with ScriptedEndpoint(script) as endpoint:
        assert take(recipe, out, endpoint.base_url) == 0
    counts = json.loads((out / "sampling.json").read_text())["counts"]
    expected = {"wrong": 2, "truncated": 2, "untagged": 2, "empty": 2, "duplicate": 2}
    assert counts == expected
    assert sorted("raw" in row["completion"] for row in rows(out / "data.jsonl")) == [False, True]


def test_what_was_sampled_before_a_failure_is_not_sampled_again(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def failing(body: dict[str, Any]) -> Says | Fails:
        return right(body) if len(endpoint.requests) <= 5 else Fails(401, {"message": "no credit"})

    with ScriptedEndpoint(failing) as endpoint:
        assert take(recipe, out, endpoint.base_url, "sampling.concurrency=1") == 2
        url = endpoint.base_url
    said = capsys.readouterr().err
    assert url in said and "no credit" in said and "run it again to go on" in said
    taken = tmp_path / ".out.sampling" / "samples.jsonl"
    assert len(rows(taken)) == 5
    with taken.open("a") as file:
        file.write('{"row": 5, "sam')  # what a killed process leaves
    with ScriptedEndpoint(right) as endpoint:
        assert take(recipe, out, endpoint.base_url, "seed=1") == 2
        assert "samples taken with another seed" in capsys.readouterr().err
        assert not endpoint.requests
        assert take(recipe, out, endpoint.base_url) == 0
        assert len(endpoint.requests) == 7
    assert len(rows(out / "data.jsonl")) == 6


def test_nothing_right_is_an_error_that_says_what_was_wrong(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(lambda _: Says(content="1000", thought="x")) as endpoint:
        assert take(recipe, tmp_path / "out", endpoint.base_url) == 2
    assert "none of 12 samples was accepted (wrong 12)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_judge_has_the_last_word(recipe: Path, tmp_path: Path) -> None:
    def judge(body: dict[str, Any]) -> Says:
        text = json.dumps(body["messages"])
        return Says(content="1" if "is easy" in text or "+" in text else "0")

    out = tmp_path / "out"
    with ScriptedEndpoint(right) as teacher, ScriptedEndpoint(judge) as grader:
        args = f"{{args: {{base_url: '{grader.base_url}', model: scripted}}, at_least: 0.5}}"
        assert take(recipe, out, teacher.base_url, f"sampling.judge={args}") == 0
        assert grader.requests
    kept = {row["prompt"] for row in rows(out / "data.jsonl")}
    assert kept and all("+" in prompt for prompt in kept)


@pytest.mark.slow
def test_a_model_here_samples_and_a_student_learns_from_it(tmp_path: Path) -> None:
    """The model is random, so nothing is verified: the path is what counts."""
    path = tmp_path / "self.yaml"
    path.write_text(
        f"""
name: self
stages:
  - name: base
    method: sft
    model: {{scratch: {SCRATCH}}}
    data: {{source: arithmetic, half: train, count: 256, max_terms: 2, min_terms: 2, unique: false}}
    trl: {{max_steps: 60, per_device_train_batch_size: 16, learning_rate: 1.0e-2}}
  - name: own
    method: sample
    model: {{path: $out/base}}
    data: {{source: arithmetic, half: train, count: 8, min_terms: 2, max_terms: 2}}
    sampling: {{samples: 4, max_tokens: 24, verify: false, keep: 4}}
  - name: student
    method: sft
    model: {{path: $out/base}}
    data: {{source: jsonl, path: $out/own/data.jsonl}}
    trl: {{max_steps: 2, per_device_train_batch_size: 4}}
"""
    )
    out = tmp_path / "out"
    assert main(["train", str(path), "--out", str(out)]) == 0
    kept = rows(out / "own" / "data.jsonl")
    assert all("<think>" in row["completion"] for row in kept)
    student = load_checkpoint(out / "student")
    assert student.manifest.parent == load_checkpoint(out / "base").digest
    assert student.manifest.data[-1].count == len(kept)
