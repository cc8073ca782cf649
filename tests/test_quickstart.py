"""The whole promise on real TRL and real vLLM, at CI size: train, gate, promote, serve, ask."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from thinkgate.checkpoint import gated, load_checkpoint
from thinkgate.provenance import verify
from thinkgate.provenance.keys import trusted_keys
from thinkgate.registry import Registry
from thinkgate_clients.local import local_server

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def command(root: Path, *arguments: str) -> list[str]:
    folders = ["--out", str(root / "run"), "--registry", str(root / "registry")]
    return [sys.executable, "-m", "thinkgate", "quickstart", "--fast", *folders, *arguments]


@pytest.fixture(scope="module", autouse=True)
def fresh_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Somebody without keys, as most who try it first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("THINKGATE_KEYS")
        patch.delenv("THINKGATE_TRUSTED")
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished quickstart, which was interrupted once on the way: its folder and its output."""
    root = tmp_path_factory.mktemp("quickstart")
    interrupted = subprocess.Popen(
        command(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    metrics = root / "run" / ".base.training" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text()):
        assert time.monotonic() < deadline and interrupted.poll() is None
        time.sleep(0.5)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, said
    assert "stopped; finished work is kept" in said and "Traceback" not in said
    assert not (root / "run" / "base").exists()
    done = subprocess.run(command(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root, done.stdout


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_grpo_beat_its_base_and_was_promoted(finished: tuple[Path, str]) -> None:
    root, said = finished
    candidate = load_checkpoint(root / "run" / "grpo")
    decision = gated(candidate)
    superiority = next(rule for rule in decision.rules if rule.rule == "superiority")
    assert superiority.estimate is not None and superiority.low is not None
    assert superiority.estimate >= 0.08 and superiority.low > 0
    assert Registry(root / "registry").resolve("production") == candidate.path
    assert decision.incumbent == load_checkpoint(root / "run" / "base").digest
    verify(candidate.path, trusted_keys(root / "registry")).require()
    assert "0 in both" in said and "PASS" in said


def test_the_gate_tells_better_equal_and_damaged_models_apart(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """`make gate-demo`, smaller: the same script as in CI, real weights, real vLLM."""
    folders = ["--run", str(finished[0] / "run"), "--out", str(tmp_path)]
    demo = [sys.executable, str(ROOT / "bench" / "gate_demo.py"), *folders, "--limit", "250"]
    done = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rules = {
        name: {
            rule["rule"]: rule["verdict"]
            for rule in json.loads((tmp_path / f"{name}-report" / "decision.json").read_text())[
                "rules"
            ]
        }
        for name in ("better", "copy", "noised")
    }
    assert rules["better"]["superiority"] == "pass"
    assert rules["copy"]["non_inferiority"] == "pass"
    assert rules["copy"]["superiority"] == "inconclusive"
    assert rules["noised"]["non_inferiority"] == rules["noised"]["superiority"] == "fail"
    assert "FAIL" in (tmp_path / "noised-report" / "summary.md").read_text()


def test_thinking_grew_during_grpo(finished: tuple[Path, str]) -> None:
    rows = read_lines(finished[0] / "run" / "grpo" / "thinkgate" / "metrics.jsonl")
    for name in ("step_share", "thinking_tokens", "reward"):
        values = [row[name] for row in rows if name in row]
        assert sum(values[-5:]) > sum(values[:5]), name


def test_the_answers_came_streamed_with_their_reasoning(finished: tuple[Path, str]) -> None:
    _, said = finished
    assert "> 8+7-6+9-3" in said
    assert "8+7=15" in said  # the first step of the thought


def test_the_report_stands_alone(finished: tuple[Path, str]) -> None:
    html = (finished[0] / "run" / "report.html").read_text()
    assert "<svg" in html and "superiority" in html
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)


def test_running_again_does_nothing_twice(finished: tuple[Path, str]) -> None:
    root, _ = finished
    before = load_checkpoint(root / "run" / "grpo").manifest.created
    records = (root / "run" / "base" / "thinkgate" / "evals" / "arithmetic.jsonl").read_bytes()
    done = subprocess.run(command(root), capture_output=True, text=True, check=True)
    assert done.stdout.count("already done") == 3
    assert load_checkpoint(root / "run" / "grpo").manifest.created == before
    verify(root / "run" / "grpo", trusted_keys(root / "registry")).require()
    after = (root / "run" / "base" / "thinkgate" / "evals" / "arithmetic.jsonl").read_bytes()
    assert after == records
    other = subprocess.run(
        command(root, "--seed", "7"), capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "was made with another seed; choose another folder with --out" in other.stderr


def test_the_examples_of_readme_and_tutorial_work(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    """curl and openai, as pasted; only the port is another."""
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [language for language, _ in blocks] == ["bash", "python"]
    with local_server("production", registry=finished[0] / "registry") as server:
        address = server.base_url.removesuffix("/v1")
        (_, curl), (_, python) = [
            (language, text.replace("http://127.0.0.1:8000", address)) for language, text in blocks
        ]
        answer = json.loads(subprocess.check_output(["bash", "-c", curl], text=True))
        message = answer["choices"][0]["message"]
        assert message["content"].strip().isdigit() and "8+7=15" in message["reasoning_content"]
        said = subprocess.check_output([sys.executable, "-c", python], text=True)
        assert said.startswith("8+7=15") and said.endswith(message["content"])
        asked = [sys.executable, "-m", "thinkgate", "chat", "--url", server.base_url, "8+7-6+9-3"]
        assert "8+7=15" in subprocess.check_output([*asked, "--temperature", "0"], text=True)
        program = tutorial_files()["ask.py"].replace("http://127.0.0.1:8000", address)
        [line] = re.findall(r"ask\.py ([\d+-]+)$", LAPTOP, re.MULTILINE)
        said = subprocess.check_output([sys.executable, "-c", program, line], text=True)
        assert re.fullmatch(r"8\+7=15\n(.+\n)+answer: \d+\n?", said), said


TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
LAPTOP = TUTORIAL.partition("\n## On one GPU")[0]


def tutorial_files() -> dict[str, str]:
    """The files its reader writes: blocks whose first line names one."""
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```", LAPTOP, re.MULTILINE | re.DOTALL))


def test_the_tutorial_goes_as_it_says(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Its laptop part on a copy of the quickstart: every command in turn, with its verdict."""
    root, _ = finished
    (tmp_path / "runs").mkdir()
    for name in ("run", "registry"):
        shutil.copytree(root / name, tmp_path / "runs" / name)
    (tmp_path / "runs" / "quickstart").symlink_to("run")
    for name, text in tutorial_files().items():
        (tmp_path / name).write_text(text)
    commands = re.findall(r"^    \.venv/bin/(thinkgate|python) (.*)$", LAPTOP, re.MULTILINE)
    expected = {"gate": 3, "gate --fresh": 0, "serve": 2, "more.py": 0, "promote": 0}
    ran = set[str]()
    for program, line in commands:
        words = shlex.split(line)
        if words[0] == "ask.py" or (words[0] == "serve" and "promote" in ran):
            continue  # of a server: the test above
        kind = "gate --fresh" if "--fresh" in words else words[0]
        ours = ["-m", "thinkgate"] if program == "thinkgate" else []
        done = subprocess.run(
            [sys.executable, *ours, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == expected[kind], f"{line}\n{done.stdout}\n{done.stderr}"
        ran.add(kind)
        if kind == "gate --fresh":
            assert "PASS  policy mine" in done.stdout
        elif kind == "serve":
            assert "the gate said INCONCLUSIVE" in done.stderr
    assert ran == set(expected)


def test_gsm8k_rows_go_through_the_same_path(finished: tuple[Path, str], tmp_path: Path) -> None:
    rows = [
        {"question": f"Ann has {n} apples and buys {n} more. How many?", "answer": f"#### {2 * n}"}
        for n in range(3, 8)
    ]
    (tmp_path / "gsm8k_test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    target = ["eval", str(finished[0] / "run" / "grpo"), "--suite", "gsm8k", "--limit", "4"]
    where = ["--data-dir", str(tmp_path), "--out", str(out), "--set", "sampling.max_tokens=64"]
    done = subprocess.run(
        [sys.executable, "-m", "thinkgate", *target, *where],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    records = read_lines(out / "gsm8k.jsonl")
    assert len(records) == 4 and all(r["verdict"] != "error" for r in records)
    assert {r["gold"] for r in records} == {"6", "8", "10", "12"}
    assert (out / "report.html").is_file() and (out / "report.json").is_file()


def test_the_readme_commands_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Evaluate, gate, promote and list, as written, on the checkpoints of the quickstart."""
    root, _ = finished
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(root / "run")
    (tmp_path / "runs" / "registry").symlink_to(root / "registry")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    text = (ROOT / "README.md").read_text()
    commands = re.findall(
        r"^    \.venv/bin/thinkgate ((?:eval|gate|verify|promote|list|show).*)$", text, re.M
    )
    assert len(commands) == 7
    for line in commands:
        done = subprocess.run(
            [sys.executable, "-m", "thinkgate", *line.split()],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_readme_training_commands_name_what_exists(tmp_path: Path) -> None:
    """Too long to run whole here: run as written, they stop only at the step count asked for."""
    text = (ROOT / "README.md").read_text()
    base, grpo = re.findall(r"^    \.venv/bin/thinkgate (train .*)$", text, re.M)
    small = {
        base: ["trl.max_steps=3", "data.count=192"],
        grpo: ["trl.max_steps=1", "preflight.enabled=false"],
    }
    for line, less in small.items():
        subprocess.run(
            [sys.executable, "-m", "thinkgate", *line.split(), *less], check=True, cwd=tmp_path
        )
    assert load_checkpoint(tmp_path / "runs/mine/grpo").manifest.parent
