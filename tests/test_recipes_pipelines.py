"""The recipes of several stages, trained at toy size by `make test-recipes`: each ends up better
than what it started from, on sums that nothing was trained on."""

from pathlib import Path

import pytest
import trained

from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main
from thinkgate.problems import Arithmetic
from thinkgate.records import read_records
from thinkgate_clients.local import local_server

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs, so that they share the bases they start from."""
    return tmp_path_factory.mktemp("pipelines")


def train(name: str, out: Path, *overrides: str) -> None:
    assert main(["train", name, "--toy", "--out", str(out), *overrides]) == 0


def accuracy(folder: Path) -> float:
    """Share of right answers at temperature 1, on 600 held-out sums of 3 to 4 terms."""
    held_out = Arithmetic(source="arithmetic", half="eval", count=600, min_terms=3, max_terms=4)
    return trained.accuracy(folder, held_out, longest=64)


def test_the_four_phases_of_r1_end_above_pure_rl_with_as_many_rollouts(runs: Path) -> None:
    train("r1", runs / "r1")
    stages = {path.name: path for path in (runs / "r1").iterdir() if path.is_dir()}
    taken = len(list(read_records(stages["rejection"] / "data.jsonl")))
    assert taken > 300
    r1, base = accuracy(stages["diverse-rl"]), accuracy(runs / "toy-arithmetic")
    assert r1 > base + 0.15
    # 15 + 15 steps of 64 rollouts and 1,200 samples are 49 steps of 64.
    recipe = runs / "zero.yaml"
    recipe.write_text(
        f"""
name: zero
stages:
  - name: zero
    method: grpo
    model: {{path: {runs / "toy-arithmetic"}}}
    data: {{source: arithmetic, half: train, seed: 1, count: 1000, min_terms: 3, max_terms: 4}}
    rewards: [{{name: correctness}}, {{name: format, weight: 0.2}}]
    trl: {{per_device_train_batch_size: 64, num_generations: 8, max_completion_length: 48,
           max_steps: 49, learning_rate: 3.0e-5, lr_scheduler_type: constant, beta: 0.02}}
"""
    )
    assert main(["train", str(recipe), "--out", str(runs / "pure")]) == 0
    assert r1 > accuracy(runs / "pure" / "zero") + 0.05


def test_a_student_learns_from_a_teacher_behind_a_real_server(runs: Path, tmp_path: Path) -> None:
    teacher = runs / "toy-teacher"
    if not teacher.exists():
        assert main(["train", "toy-teacher", "--out", str(teacher)]) == 0
    with local_server(teacher, allow_ungated=True, log=tmp_path / "server.log") as server:
        train(
            "distill",
            runs / "distill",
            f"traces.sampling.endpoint={server.base_url}",
            f"traces.sampling.teacher={server.model}",
        )
    rows = [row for _, row in read_records(runs / "distill" / "traces" / "data.jsonl")]
    assert len(rows) > 300 and all(row["completion"].startswith("<think>") for row in rows)
    student = runs / "distill" / "student"
    assert load_checkpoint(student).manifest.data[-1].count == len(rows)
    assert accuracy(student) > accuracy(runs / "toy-arithmetic") + 0.1
