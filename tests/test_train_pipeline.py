"""Pipelines: stages resolve to recipes and folders, mistakes are one sentence, done stays done."""

from pathlib import Path

import pytest

from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main
from thinkgate.errors import ConfigError
from thinkgate_train.pipeline import load_stages

SCRATCH = "{hidden_size: 64, intermediate_size: 128, layers: 1, head_dim: 32, kv_heads: 1}"
TWO = f"""
name: two
stages:
  - name: first
    method: sft
    model: {{scratch: {SCRATCH}}}
    data: {{source: arithmetic, half: train, count: 64}}
    cold_start: {{}}
    trl: {{max_steps: 2, per_device_train_batch_size: 8, learning_rate: 1.0e-3}}
  - name: second
    use: quickstart-grpo
    set:
      model.path: $out/first
      data: {{source: arithmetic, half: train, count: 16}}
      trl.max_steps: 1
      trl.per_device_train_batch_size: 8
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def test_stages_see_each_other_through_the_pipelines_folder(two: Path, tmp_path: Path) -> None:
    first, second = load_stages(str(two), tmp_path / "run", ["seed=7", "second.trl.beta=0.1"])
    assert (first.out, second.out) == (tmp_path / "run/first", tmp_path / "run/second")
    assert second.recipe.model.path == str(first.out)
    assert second.recipe.method == "grpo" and second.recipe.trl["num_generations"] == 8
    assert (first.recipe.seed, second.recipe.seed) == (7, 7)
    assert "beta" not in first.recipe.trl and second.recipe.trl["beta"] == 0.1
    assert (first.recipe.name, second.recipe.name) == ("first", "second")


@pytest.mark.parametrize(
    ("old", "new", "overrides", "words"),
    [
        ("", "", ["trl.max_steps=1"], "begin it with a stage's name, as in first.trl.max_steps=10"),
        ("", "", ["secnd.trl.max_steps=1"], "did you mean 'second'?"),
        ("use: quickstart-grpo", "use: quickstart-gpro", [], "did you mean 'quickstart-grpo'?"),
        ("    set:", "    seed: 1\n    set:", [], "'seed' beside 'use'; write it under 'set'"),
        ("  - name: first", "  - name: first\n    set: {}", [], "'set' goes with 'use'"),
        ("method: sft", "method: stf", [], "stage first: 'method' is 'stf'"),
        ("trl.max_steps: 1", "seed.x: 1", [], "set.seed.x: 'seed' is a value, not a section"),
        ("name: two", "nam: two", [], "did you mean 'name'?"),
        ("name: second", "name: first", [], "two stages are called 'first'"),
        ("name: second", "nmae: second", [], "stage 2 has no name"),
    ],
)
def test_a_mistake_in_a_pipeline_is_one_sentence(
    two: Path, tmp_path: Path, old: str, new: str, overrides: list[str], words: str
) -> None:
    two.write_text(TWO.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_stages(str(two), tmp_path / "run", overrides)
    assert words in str(caught.value)


@pytest.mark.slow
def test_a_finished_stage_is_not_run_again_and_a_changed_one_is_refused(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", str(two), "--out", str(out), "preflight.enabled=false"]
    assert main(command) == 0
    digests = [load_checkpoint(out / name).digest for name in ("first", "second")]
    assert load_checkpoint(out / "second").manifest.parent == digests[0]
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.count("already done") == 2
    assert main([*command, "first.trl.max_steps=3"]) == 2
    assert "was made with another trl.max_steps" in capsys.readouterr().err
    assert [load_checkpoint(out / name).digest for name in ("first", "second")] == digests


def test_the_random_control_changes_only_the_rewards_and_the_folder(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train", str(two), "--random-reward", "preflight.enabled=false"]
    assert main(command) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["two-random"]
    config = load_checkpoint(tmp_path / "runs" / "two-random" / "second").manifest.config
    assert [reward["name"] for reward in config["rewards"]] == ["random"]
    assert main(["train", "quickstart-sft", "--random-reward"]) == 2
    assert "--random-reward needs a method with rewards, not 'sft'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_base_is_made_once_beside_the_runs_that_start_from_it(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when a pipeline's stage starts from it, and when that stage is looked at again."""
    base = tmp_path / "base.yaml"
    first, _, second = TWO.partition("  - name: second")
    del second
    base.write_text(first.replace("name: two\nstages:\n  - name: first", "name: base\n"))
    body = base.read_text().replace("\n    ", "\n").replace("name: base\n\n", "name: base\n")
    base.write_text(body)
    two.write_text(TWO.replace("model.path: $out/first", f"model: {{recipe: {base}}}"))
    command = ["train", str(two), "--out", str(tmp_path / "run"), "preflight.enabled=false"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "the base to start from, made once" in said
    assert load_checkpoint(tmp_path / "base").manifest.name == "base"
    parent = load_checkpoint(tmp_path / "run" / "second").manifest.parent
    assert parent == load_checkpoint(tmp_path / "base").digest
    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.count("already done") == 2 and "made once" not in again


def test_a_base_with_a_base_of_its_own_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken for one made otherwise, since its manifest has the folder of its own base."""
    common = """
method: sft
data: {source: arithmetic, half: train, count: 16}
cold_start: {}
preflight: {enabled: false}
trl: {max_steps: 1, per_device_train_batch_size: 8, learning_rate: 1.0e-3}
"""
    starts = {
        "first": f"{{scratch: {SCRATCH}}}",
        "second": f"{{recipe: {tmp_path}/first.yaml}}",
        "third": f"{{recipe: {tmp_path}/second.yaml}}",
    }
    for name, model in starts.items():
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nmodel: {model}\n{common}")
    third = str(tmp_path / "third.yaml")
    assert main(["train", third, "--out", str(tmp_path / "runs" / "one")]) == 0
    base = load_checkpoint(tmp_path / "runs" / "second")
    assert base.manifest.parent == load_checkpoint(tmp_path / "runs" / "first").digest
    capsys.readouterr()
    assert main(["train", third, "--out", str(tmp_path / "runs" / "two")]) == 0
    assert "made once" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "runs" / "two").manifest.parent == base.digest
    assert main(["train", third, "seed=1", "--out", str(tmp_path / "runs" / "one"), "--force"]) == 0
