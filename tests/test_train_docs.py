"""docs/recipes.md says what the recipes say, and what docs/concepts.md names exists."""

import re
from pathlib import Path

import pytest
import yaml

from thinkgate_train.health.metric_guide import KNOWN
from thinkgate_train.pipeline import load_stages
from thinkgate_train.recipe import Peft
from thinkgate_train.rewards import REWARDS

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "train" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", [n for n in RECIPES if not n.startswith("toy-")])
def test_every_shipped_recipe_has_its_section(name: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    _, found, section = text.partition(f"\n### {name}\n")
    assert found, f"docs/recipes.md says nothing about {name}"
    section = " ".join(re.split(r"\n##+ ", section)[0].split())
    said = yaml.safe_load((ROOT / "train" / "recipes" / f"{name}.yaml").read_text())
    assert f"**Needs** {said['hardware']}." in section
    assert f"**Time** {said['time']}." in section
    assert f"thinkgate train {name}" in section
    for stage in load_stages(name, tmp_path):
        for metric, way in stage.recipe.moves.items():
            assert re.search(rf"`{re.escape(metric)}`[^.]* {way}", section), f"{metric} {way}"


def test_what_the_concepts_name_exists() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(train/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link
    stages = {stage.name for stage in load_stages("r1", None)}
    metrics = {*KNOWN, *RECIPES, *REWARDS, *Peft.model_fields, *stages}
    others = {"prompt", "chosen", "rejected", "data", "model", "rewards", "clip", "scale", "None"}
    options = {"num_generations", "per_device_train_batch_size", "top_p", "top_k", "min_p", "loss"}
    files = {"plots.html", "completions.jsonl"}
    for name in re.findall(r"`([a-z][a-z_0-9/-]+(?:\.\w+)?)`", text):
        known = name in metrics | others | options | files or (ROOT / name).exists()
        assert known or name.startswith(("trl.", "prepare.", "thinkgate/")), name
