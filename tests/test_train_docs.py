"""The commands of docs/concepts.md, docs/recipes.md and train/README.md: the real parsers take
them, every recipe and override in them resolves, and what they name exists."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from thinkgate.cli import COMMANDS
from thinkgate_train.health.metric_guide import KNOWN
from thinkgate_train.pipeline import load_stages
from thinkgate_train.recipe import Peft
from thinkgate_train.rewards import REWARDS
from thinkgate_train.trl_options import trl_config

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "docs" / "concepts.md", ROOT / "docs" / "recipes.md", ROOT / "train" / "README.md"]
RECIPES = sorted(path.stem for path in (ROOT / "train" / "recipes").glob("*.yaml"))
COMMAND = re.compile(r"(?:^ {4}|`)((?:accelerate launch |thinkgate )[^`\n]+)", re.MULTILINE)
PLACEHOLDERS = ("RECIPE", "NAME", "[")


def commands(document: Path) -> list[str]:
    """Indented lines and inline code that call us; a remark after three spaces is no part."""
    found = COMMAND.findall(document.read_text(encoding="utf-8"))
    lines = [re.split(r"\s{3,}", line)[0] for line in found]
    return [line for line in lines if not any(word in line for word in PLACEHOLDERS)]


def parsed(words: list[str]) -> argparse.Namespace:
    """By the command's own parser, which exits on a mistake."""
    name, rest = words[0], words[1:]
    parser = argparse.ArgumentParser(prog=name, allow_abbrev=False)
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    return parser.parse_intermixed_args(rest)


@pytest.mark.parametrize(
    ("document", "command"), [(doc.name, line) for doc in DOCS for line in commands(doc)]
)
def test_a_command_would_run(document: str, command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "accelerate":
        config, ours = words[words.index("--config_file") + 1], words.index("-m")
        assert yaml.safe_load((ROOT / config).read_text())["num_processes"] > 0
        words = words[ours + 1 :]
    args = parsed(words[1:])
    if words[1] != "train" or args.recipe.endswith(".yaml"):
        return
    stages = load_stages(args.recipe, tmp_path, args.overrides, toy=args.toy)
    for stage in stages:
        # vLLM's own checks want a GPU; the keys are checked without it.
        trl = {k: v for k, v in stage.recipe.trl.items() if k not in ("use_vllm", "bf16")}
        if stage.recipe.method != "sample":
            trl_config(stage.recipe.model_copy(update={"trl": trl}), str(tmp_path))


def test_there_are_commands_in_every_document() -> None:
    assert all(len(commands(document)) >= 4 for document in DOCS)


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
