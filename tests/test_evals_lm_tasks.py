"""Our suites as tasks of plain lm-eval: the same problems, prompts, sampling and verdicts."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint
from lm_eval_task import plain_lm_eval
from scripted_endpoint import Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.cli import main
from thinkgate_clients.local import LocalServer
from thinkgate_evals.lm_tasks import tasks_folder
from thinkgate_evals.records import read_records
from thinkgate_evals.suites import load_suite

ROOT = Path(__file__).parent.parent
TASKS = ROOT / "evals" / "tasks"
NAMES = sorted(file.stem for file in (ROOT / "evals" / "suites").glob("*.yaml"))
BOXED = "\n\nReason step by step, and put your final answer within \\boxed{}."
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k_test.jsonl": [
        {"question": f"{n} eggs, twice?", "answer": f"{n}*2={2 * n}\n#### {2 * n}"}
        for n in (3, 21, 1500)
    ],
    "math500.jsonl": [
        {"problem": "Half of {one}?", "answer": "\\frac{1}{2}", "unique_id": "a/1.json"},
        {"problem": "Roots of $x^2-1$?", "answer": "1,-1", "unique_id": "a/2.json"},
        {"problem": "Where?", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "unique_id": "b/1"},
    ],
    "amc23.jsonl": [{"id": 0, "question": "How many?", "answer": 27.0}],
}
GOLDS = {
    "gsm8k": {"3 eggs, twice?": "6", "21 eggs, twice?": "42", "1500 eggs, twice?": "3,000"},
    "math500": {
        "Half of {one}?": "0.5",
        "Roots of $x^2-1$?": "-1, 1",
        "Where?": "(3, \\pi/2)",
    },
    "amc23": {"How many?": "27"},
}


@pytest.fixture(autouse=True)
def quick_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval looks the machine over after each run, which takes a second."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for file, rows in ROWS.items():
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("THINKGATE_DATA_DIR", str(folder))
    return folder


def run(name: str, say: Callable[[str], str], thought: str | None = "hm") -> dict[str, Any]:
    """lm-eval's metrics of a task, when the model answers `say(problem)`."""

    def script(body: dict[str, Any]) -> Says:
        return Says(say(prompt_of(body).removesuffix(BOXED)), thought)

    with ScriptedEndpoint(script) as server:
        found = plain_lm_eval(f"thinkgate_{name}", server.base_url, include=TASKS)
    return found["results"][f"thinkgate_{name}"]


def test_every_suite_is_a_task_that_says_nothing_of_its_own() -> None:
    assert sorted(file.stem for file in TASKS.glob("*.yaml")) == [f"thinkgate_{n}" for n in NAMES]
    for name in NAMES:
        lines = (TASKS / f"thinkgate_{name}.yaml").read_text().splitlines()
        assert [line for line in lines if not line.startswith("#")] == [
            f"task: thinkgate_{name}",
            "tag: thinkgate",
            "class: !function thinkgate_suite.SuiteTask",
        ]


def test_prompt_sampling_and_problems_are_the_suites(data: Path, tmp_path: Path) -> None:
    suite = load_suite("math500", data_dir=data)
    with ScriptedEndpoint(lambda _: Says("1", "hm")) as server:
        plain_lm_eval("thinkgate_math500", server.base_url, include=TASKS)
        sent = sorted(server.requests, key=prompt_of)
    problems = sorted(suite.problems, key=lambda problem: problem.prompt)
    for body, problem in zip(sent, problems, strict=True):
        assert body["messages"] == suite.suite.prompt.messages(problem.prompt)
        sampling = suite.suite.sampling
        assert {key: body[key] for key in ("temperature", "top_p", "max_tokens")} == {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        assert body["stop"] == []


@pytest.mark.parametrize("name", GOLDS)
def test_golds_echoed_score_everything_and_perturbed_nothing(name: str, data: Path) -> None:
    golds = GOLDS[name]
    assert run(name, lambda p: f"So \\boxed{{{golds[p]}}}")["acc,none"] == 1.0
    assert run(name, lambda p: f"So \\boxed{{{golds[p]}9}}")["acc,none"] == 0.0


def test_only_the_answer_part_is_graded(data: Path) -> None:
    golds = GOLDS["gsm8k"]
    inside = run("gsm8k", lambda p: f"<think>So \\boxed{{{golds[p]}}}", thought=None)
    assert (inside["acc,none"], inside["no_answer,none"]) == (0.0, 1.0)
    closed = run("gsm8k", lambda p: f"<think>\\boxed{{1}}</think>{golds[p]}", thought=None)
    assert (closed["acc,none"], closed["no_answer,none"]) == (1.0, 0.0)


def test_what_the_verifier_cannot_settle_is_not_scored(data: Path) -> None:
    rows = [{"question": "?", "answer": "#### "}, {"question": "!", "answer": "#### 2"}]
    file = data / "gsm8k_test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("gsm8k", lambda _: "2")
    assert (found["acc,none"], found["unmeasured,none"], found["sample_len"]) == (1.0, 0.5, 2)


def test_repeats_have_seeds_of_their_own_with_plain_lm_eval_and_its_cache(
    data: Path, tmp_path: Path
) -> None:
    number = count()
    cache = tmp_path / "cache"
    with ScriptedEndpoint(lambda _: Says(f"no {next(number)}")) as server:
        for _ in range(2):
            found = plain_lm_eval("thinkgate_amc23", server.base_url, include=TASKS, cache=cache)
            assert found["results"]["thinkgate_amc23"]["distinct,none"] == 1.0
            [row] = found["samples"]["thinkgate_amc23"]
            assert len({text for [text] in row["resps"]}) == 8
        seeds = [body["seed"] for body in server.requests]
    assert len(set(seeds)) == 8


def test_identical_repeats_show(data: Path) -> None:
    assert run("amc23", lambda _: "27")["distinct,none"] == 1 / 8


def test_the_same_accuracy_as_our_own_runner(data: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Says:
        prompt = prompt_of(body)
        value = sum(int(term) for term in prompt.replace("-", "+-").split("+"))
        kind = len(prompt) % 7 + value % 5
        if kind == 3:
            return Says(None, f"\\boxed{{{value}}}", finish="length")
        return Says(str(value if kind % 2 else value + 1), "hm")

    out = tmp_path / "out"
    with ScriptedEndpoint(script) as server:
        command = ["eval", server.base_url, "--suite", "arithmetic", "--out", str(out)]
        assert main([*command, "--suite", "lm:thinkgate_arithmetic", "--limit", "40"]) == 0
    own, lm = (
        {record.key: record for record in read_records(out / f"{name}.jsonl")}
        for name in ("arithmetic", "lm-thinkgate_arithmetic")
    )
    assert own.keys() == lm.keys() and len({record.verdict for record in own.values()}) == 3
    for key, record in own.items():
        other = lm[key]
        for name in ("prompt", "prompt_hash", "gold", "seed", "answer", "verdict", "extracted"):
            assert getattr(record, name) == getattr(other, name)
    report = json.loads((out / "report.json").read_text())["suites"]
    shares = [report[name]["summary"]["shares"]["accuracy"] for name in report]
    assert shares[0] == shares[1]
    [acc] = [s for s in report["lm-thinkgate_arithmetic"]["lm_eval"] if s["name"] == "acc,none"]
    assert acc["value"] == pytest.approx(shares[0]["estimate"])


def test_the_data_folder_of_the_command_line_reaches_the_task(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THINKGATE_DATA_DIR")
    monkeypatch.chdir(data.parent)
    with ScriptedEndpoint(lambda _: Says("27", "hm")) as server:
        command = ["eval", server.base_url, "--suite", "lm:thinkgate_amc23", "--samples", "2"]
        assert main([*command, "--data-dir", "data", "--out", str(tmp_path / "out")]) == 0
    records = read_records(tmp_path / "out" / "lm-thinkgate_amc23.jsonl")
    # In the order the answers came.
    assert {r.repeat: r.verdict.value for r in records} == {0: "correct", 1: "correct"}


def test_a_missing_data_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "http://127.0.0.1:9/v1", "--suite", "lm:thinkgate_gsm8k"]
    assert main([*command, "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "gsm8k_test.jsonl: no such file" in error and error.count("\n") == 1


def test_the_folder_is_printed_for_include_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--lm-tasks-path"]) == 0
    assert Path(capsys.readouterr().out.strip()) == tasks_folder() == TASKS


def test_the_tasks_are_in_the_wheel() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"evals/tasks" = "thinkgate_evals/tasks"' in text


def readme_commands() -> list[str]:
    """The commands of the lm-eval section of the README of this part."""
    section = (ROOT / "evals" / "README.md").read_text().partition("## lm-eval\n")[2]
    blocks = re.findall(r"```bash\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def hub(path: str, name: str | None = None, **_: Any) -> Any:
    """What stands in for the Hub: GSM8K with three problems, and five to learn from."""
    from datasets import Dataset, DatasetDict

    assert (path, name) == ("openai/gsm8k", "main")
    shots = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(5)]
    tests = Dataset.from_list(ROWS["gsm8k_test.jsonl"])
    return DatasetDict({"train": Dataset.from_list(shots), "test": tests})


@pytest.mark.slow
def test_the_commands_of_the_readme_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", hub)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    make_checkpoint(tmp_path / "runs" / "quickstart" / "grpo")
    ask, judge, plain = readme_commands()
    golds = {
        row["question"]: row["answer"].rpartition("#### ")[2] for row in ROWS["gsm8k_test.jsonl"]
    }

    def script(body: dict[str, Any]) -> Says:
        question = prompt_of(body).removeprefix("Question: ").removesuffix("\nAnswer:")
        return Says(f"It is {golds.get(question, '1,-1')}", "hm")

    @contextmanager
    def serve(_: Path, *, allow_ungated: bool, log: Path) -> Iterator[LocalServer]:
        yield LocalServer(server.base_url, "scripted", None)  # type: ignore[arg-type]

    monkeypatch.setattr("thinkgate_clients.local.local_server", serve)
    with ScriptedEndpoint(script) as server:
        for command, correct in ((ask, 0), (judge, 3)):
            assert main(shlex.split(command)[1:]) == 0
            records = read_records(Path("runs/quickstart/grpo/thinkgate/evals/lm-gsm8k.jsonl"))
            assert [r.verdict for r in records].count(Verdict.CORRECT) == correct
        assert len(server.requests) == 3  # the second command only judges anew
        assert "lm-eval exact match" in capsys.readouterr().out
        command = plain.replace("http://127.0.0.1:8000/v1", server.base_url)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"thinkgate_math500.*\|acc ", done.stdout)
