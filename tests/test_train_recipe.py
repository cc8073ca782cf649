"""Recipes: shipped ones parse, every mistake is one sentence, TRL's section reaches TRL."""

from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint

from thinkgate.cli import main
from thinkgate.config import apply_overrides, parse, read_yaml
from thinkgate.errors import ConfigError
from thinkgate_train.pipeline import load_stages
from thinkgate_train.recipe import Recipe
from thinkgate_train.trl_options import trl_config

RECIPES = sorted((Path(__file__).parent.parent / "train" / "recipes").glob("*.yaml"))


def recipe(name: str, *overrides: str) -> Recipe:
    path = next(p for p in RECIPES if p.stem == name)
    return parse(Recipe, apply_overrides(read_yaml(path), overrides), path)


@pytest.mark.parametrize("toy", [False, True])
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_build_their_trl_config(path: Path, toy: bool, tmp_path: Path) -> None:
    for stage in load_stages(path.stem, tmp_path, toy=toy):
        loaded = stage.recipe
        if loaded.method == "sample":
            continue
        config: Any = trl_config(loaded, str(tmp_path))
        for key, value in loaded.trl.items():
            assert getattr(config, key) == value
        assert config.seed == loaded.seed


def test_keys_of_older_tutorials_are_moved_where_their_meaning_lives_now() -> None:
    old = recipe(
        "quickstart-grpo",
        "trl.max_prompt_length=512",
        "trl.warmup_ratio=0.1",
        "trl.evaluation_strategy=steps",
    )
    assert old.prepare.max_prompt_length == 512
    assert old.trl["warmup_steps"] == 0.1
    assert old.trl["eval_strategy"] == "steps"
    assert not {"max_prompt_length", "warmup_ratio", "evaluation_strategy"} & old.trl.keys()


@pytest.mark.parametrize(
    ("name", "override", "expected"),
    [
        ("quickstart-sft", "modle.path=x", "unknown key 'modle'; did you mean 'model'?"),
        (
            "quickstart-sft",
            "trl.learning_rat=1",
            "'trl.learning_rat'; did you mean 'learning_rate'?",
        ),
        ("quickstart-grpo", "trl.output_dir=x", "use --out"),
        ("quickstart-grpo", "trl.reward_weights=[1]", "give each of the 'rewards' its weight"),
        ("quickstart-grpo", "trl.seed=3", "set 'seed' at the top"),
        ("quickstart-grpo", "trl.num_generations=1", "num_generations is 1; use"),
        ("quickstart-grpo", "trl.auto_find_batch_size=true", "trl: auto_find_batch_size is not"),
        ("quickstart-sft", "trl.report_to=wndb", "no tracker 'wndb'; did you mean 'wandb'?"),
        ("quickstart-sft", "trl.report_to=[clearml]", "clearml is not installed; pip install"),
        ("quickstart-sft", "model.path=x", "exactly one of 'path', 'scratch' and 'recipe'"),
        ("quickstart-grpo", "rewards=[{name: corectness}]", "did you mean 'correctness'?"),
        ("quickstart-grpo", "rewards=[]", "method 'grpo' needs 'rewards'"),
        ("quickstart-grpo", "prompt.template=hello", "needs {prompt}"),
        ("quickstart-grpo", "open_tag=''", "bare tags"),
        ("quickstart-sft", "data.half=test", "'data"),
    ],
)
def test_a_mistake_is_one_sentence(
    name: str, override: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", name, override, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.startswith("thinkgate: ") and said.count("\n") == 1
    assert not out.exists()


def test_a_batch_that_does_not_hold_whole_groups_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch of 100 rollouts .* groups of 8; .* example 96"):
        trl_config(recipe("quickstart-grpo", "trl.per_device_train_batch_size=100"), str(tmp_path))


def test_gradient_accumulation_counts_towards_the_batch(tmp_path: Path) -> None:
    overrides = ("trl.per_device_train_batch_size=4", "trl.gradient_accumulation_steps=4")
    config: Any = trl_config(recipe("quickstart-grpo", *overrides), str(tmp_path))
    assert config.generation_batch_size == 16


def test_a_missing_model_and_a_finished_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["train", "quickstart-grpo", f"model.path={tmp_path / 'none'}", "data.count=8"]
    assert main([*missing, "--out", str(tmp_path / "out")]) == 2
    assert "no such folder, and not the id of a Hub model" in capsys.readouterr().err
    make_checkpoint(tmp_path / "out")
    assert main(["train", "quickstart-sft", "--out", str(tmp_path / "out")]) == 2
    assert "already holds a checkpoint" in capsys.readouterr().err


def test_no_room_on_the_disk_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "quickstart-sft", "disk_mib=1000000000", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "MiB free on its disk, 1000000000 MiB needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trl.max_steps=abc", "trl.max_steps is 'abc'; it must be int"),
        ("trl.learning_rate=[1]", "trl.learning_rate is [1]; it must be float"),
    ],
)
def test_a_trl_value_of_another_type_is_named(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trl_config(recipe("quickstart-sft", override), str(tmp_path))
    assert words in str(caught.value)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_is_no_checkpoint_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: list[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    assert main(["train", "quickstart-sft", "--out", str(tmp_path), *force]) == 2
    assert "is not a finished checkpoint, so it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years"
