"""Faults put into real training at toy size: each must end the run under its own name.

The rewards at fault are functions of this file, named in the recipe as users name theirs.
"""

import functools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODEL

from thinkgate.cli import main
from thinkgate_train import decoding, rollouts, run

HERE = Path(__file__)
TINY = [
    *TINY_MODEL,
    "data.min_terms=2",
    "data.max_terms=2",
    "data.count=4096",
    "trl.max_steps=300",
    "trl.per_device_train_batch_size=32",
    "trl.warmup_steps=10",
    "trl.learning_rate=0.01",
]
SMALL = [
    "data.min_terms=2",
    "data.max_terms=2",
    "data.count=64",
    "data.unique=false",
    "trl.per_device_train_batch_size=32",
    "trl.max_completion_length=24",
    "trl.max_steps=60",
]


def constant(completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def verbosity(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) / 10 for text in completions]


def nothing(completions: Sequence[str], **_: Any) -> list[float]:
    return [float("nan")] * len(completions)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has half learned to add two numbers, sometimes thinking first."""
    out = tmp_path_factory.mktemp("faults") / "base"
    command = ["train", "quickstart-sft", *TINY, "preflight.enabled=false", "--out", str(out)]
    assert main(command) == 0
    return out


def grpo(base: Path, out: Path, *settings: str) -> int:
    """A strict GRPO run; what it would refuse beforehand is let through, to be met in training."""
    common = [f"model.path={base}", "health=strict", "preflight.enabled=false", *SMALL]
    return main(["train", "quickstart-grpo", *common, *settings, "--out", str(out)])


def rewards(*names: str) -> str:
    """An override: the given functions of this file, and a tenth for a right answer."""
    functions = ", ".join(f"{{name: '{HERE}:{name}'}}" for name in names)
    return f"rewards=[{{name: correctness, weight: 0.1}}, {functions}]"


def only(name: str) -> str:
    return f"rewards=[{{name: '{HERE}:{name}'}}]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([only("constant")], "step 10: constant reward: there is no gradient, nothing is learned"),
        ([only("nothing")], "step 3: no reward: no completion got a reward in the last 3 logs"),
        (
            ["trl.max_completion_length=1"],
            "step 5: all clipped: 100% of the completions are cut off at 1 tokens",
        ),
        (
            [rewards("verbosity"), "trl.learning_rate=0.01"],
            "reward hacking: the reward rose by|forgot to stop: .* or length is rewarded",
        ),
        # Which of its marks comes first is chance.
        (["trl.learning_rate=0.05"], "lower trl.learning_rate \\(now 0.05\\)|constant reward"),
    ],
    ids=[
        "constant reward",
        "no reward",
        "all clipped",
        "length rewarded",
        "learning rate",
    ],
)
def test_a_faulty_run_is_ended_under_its_name(
    base: Path, tmp_path: Path, settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert grpo(base, out, *settings) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and "health=warn" in error
    assert not out.exists()


@pytest.mark.slow
def test_the_same_run_without_a_fault_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert grpo(base, out) == 0
    manifest = json.loads((out / "thinkgate" / "manifest.json").read_text())
    assert manifest["health"]["verdict"] in ("healthy", "warned")
    assert not any(f["stop"] for f in manifest["health"]["findings"])
    assert "Rollouts" in (out / "thinkgate" / "plots.html").read_text()


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_last_healthy_state(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fault = tmp_path / "out", rewards("verbosity")
    assert grpo(base, out, fault, "trl.learning_rate=0.01") == 2
    said = re.search(r"the last healthy state is that of step (\d+)", capsys.readouterr().err, re.I)
    assert said
    healthy = int(said[1])
    last = healthy + 6
    calm = ["trl.learning_rate=1e-6", f"trl.max_steps={last}"]
    assert grpo(base, out, fault, *calm, "--resume") == 0
    lines = (out / "thinkgate" / "metrics.jsonl").read_text().splitlines()
    rows = [row for line in lines if "reward" in (row := json.loads(line))]
    assert [row["step"] for row in rows] == list(range(1, last + 1))
    rates = [row["learning_rate"] for row in rows]
    assert set(rates[:healthy]) == {0.01} and rates[-1] == 1e-6


@pytest.mark.slow
def test_weights_that_overflow_end_the_run_in_every_mode(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["trl.learning_rate=1e38", "trl.max_grad_norm=0", "health=off"]
    assert grpo(base, tmp_path / "out", *settings) == 2
    error = capsys.readouterr().err
    assert "NaN" in error and "lower trl.learning_rate" in error


@pytest.mark.slow
def test_a_template_that_opens_the_thought_unknown_to_the_run(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model, ignore=shutil.ignore_patterns("thinkgate"))
    template = model / "chat_template.jinja"
    opened = template.read_text() + "{% if add_generation_prompt %}<think>{% endif %}"
    template.write_text(opened)
    monkeypatch.setattr(run, "opens_thought", lambda *_: False)
    assert grpo(model, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "step 5: wrong prefill:" in error and "a thought they never opened" in error


@pytest.mark.slow
def test_rollouts_from_stale_weights(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The engine never gets the updates: it goes on with the weights of the first step."""
    first: dict[str, Any] = {}

    @functools.wraps(decoding.sample)
    def stale(model: Any, *rest: Any, **named: Any) -> decoding.Samples:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        newest = {name: p.data for name, p in trained.items()}
        first.update({name: p.clone() for name, p in newest.items() if name not in first})
        for name, p in trained.items():
            p.data = first[name]
        drawn = decoding.sample(model, *rest, **named)
        for name, p in trained.items():
            p.data = newest[name]
        return drawn

    monkeypatch.setattr(rollouts, "sample", stale)
    assert grpo(base, tmp_path / "out", "trl.learning_rate=5e-3") == 2
    error = capsys.readouterr().err
    assert "logp gap: the engine that generates and the trainer differ by" in error
    assert "stale weights" in error
