"""Several training runs in a row, each from the results of those before: one YAML with `stages`.

A stage is a recipe of its own, or a shipped one with changes. `$out` in any of its texts is the
pipeline's folder, so `$out/<stage>` is what a stage has made. A stage that is complete is not run
again. Knows how recipes follow each other, not what one does.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from thinkgate.checkpoint import META, load_checkpoint
from thinkgate.config import Config, apply_overrides, bundled, nearest, parse, read_yaml
from thinkgate.console import console
from thinkgate.errors import ConfigError
from thinkgate_train.recipe import Recipe
from thinkgate_train.run_state import INCIDENTAL

__all__ = ["Pipeline", "Stage", "differences", "finished", "load_recipe", "load_stages"]

EVERYWHERE = ("seed", "health", "hang_after", "preflight.enabled")
"""Keys that may be overridden for all stages at once."""


class Stage(Config):
    """One stage, resolved: a recipe and the folder for its result."""

    name: str
    recipe: Recipe
    out: Path


class Pipeline(Config):
    """What a file with `stages` says."""

    name: str
    description: str = ""
    hardware: str = ""
    time: str = ""
    stages: tuple[dict[str, Any], ...] = Field(min_length=1)
    """Each has `name` and either a recipe's own keys, or `use: RECIPE` and `set: {key: value}`."""


def load_recipe(name: str, overrides: Iterable[str] = (), *, toy: bool = False) -> Recipe:
    """A recipe by path or shipped name, with overrides; on top of its toy section with `toy`."""
    path = bundled("thinkgate_train", "recipes", name)
    data = read_yaml(path)
    if not toy:
        return parse(Recipe, apply_overrides(data, overrides), path)
    small = parse(Recipe, data, path).toy_sized().model_dump(mode="json")
    return parse(Recipe, apply_overrides(small, overrides), path)


def load_stages(
    name: str,
    out: Path | None,
    overrides: Iterable[str] = (),
    *,
    toy: bool = False,
    ending: str = "",
) -> list[Stage]:
    """What a file asks for: the stages of a pipeline, or the one stage that is a recipe itself.

    `out` defaults to runs/<name><ending>. ConfigError names the file, the
    stage and the key at fault.
    """
    path = bundled("thinkgate_train", "recipes", name)
    data = read_yaml(path)
    if "stages" not in data:
        recipe = load_recipe(name, overrides, toy=toy)
        folder = out or Path("runs") / f"{recipe.name}{ending}"
        return [Stage(name=recipe.name, recipe=recipe, out=folder)]
    pipeline = parse(Pipeline, data, path)
    folder = out or Path("runs") / f"{pipeline.name}{ending}"
    names = _stage_names(pipeline, path)
    by_stage = _by_stage(list(overrides), names)
    return [
        Stage(
            name=name,
            recipe=_stage_recipe(stage, by_stage[name], folder, toy, f"{path}, stage {name}"),
            out=folder / name,
        )
        for name, stage in zip(names, pipeline.stages, strict=True)
    ]


def finished(stage: Stage) -> bool:
    """Whether the stage's result is there; ConfigError when what is there was made otherwise."""
    sampled = stage.out / "sampling.json"
    if sampled.is_file():
        done: dict[str, Any] = json.loads(sampled.read_text(encoding="utf-8"))["config"]
    elif (stage.out / META).is_dir():
        done = load_checkpoint(stage.out).manifest.config
    else:
        return False
    # What was done says where its base lay; a base may have one of its own, beside it.
    asked, _ = base_stage(stage.recipe, stage.out.parent)
    differing = differences(asked.model_dump(mode="json", exclude=set(INCIDENTAL)), done)
    if differing:
        raise ConfigError(
            f"{stage.out} was made with another {', '.join(differing)}; choose another folder "
            "with --out, or pass --force to make it again"
        )
    return True


def base_stage(recipe: Recipe, beside: Path) -> tuple[Recipe, Stage | None]:
    """The recipe with its base's folder for `model.recipe`, and the stage that makes the base."""
    wanted = recipe.model.recipe
    if wanted is None:
        return recipe, None
    base = load_recipe(wanted)
    stage = Stage(name=base.name, recipe=base, out=beside / base.name)
    model = recipe.model.model_copy(update={"recipe": None, "path": str(stage.out)})
    return recipe.model_copy(update={"model": model}), stage


def differences(asked: Mapping[str, Any], done: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what is asked for and was done otherwise."""
    found: list[str] = []
    for key, value in asked.items():
        other = done.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differences(
                cast("Mapping[str, Any]", value),
                cast("Mapping[str, Any]", other),
                f"{prefix}{key}.",
            )
        elif value != other:
            found.append(f"{prefix}{key}")
    return sorted(found)


def _stage_names(pipeline: Pipeline, path: Path) -> list[str]:
    names: list[str] = []
    for number, stage in enumerate(pipeline.stages, 1):
        name = stage.get("name")
        if not isinstance(name, str) or not name or "/" in name:
            raise ConfigError(f"{path}: stage {number} has no name; give it one, such as 'sft'")
        if name in names:
            raise ConfigError(f"{path}: two stages are called '{name}'; rename one")
        names.append(name)
    return names


def _by_stage(overrides: list[str], names: list[str]) -> dict[str, list[str]]:
    """`stage.key=value` for one stage, `seed=1` for all."""
    result: dict[str, list[str]] = {name: [] for name in names}
    for item in overrides:
        stage, dot, rest = item.partition(".")
        if item.partition("=")[0] in EVERYWHERE:
            for mine in result.values():
                mine.append(item)
        elif dot and stage in result:
            result[stage].append(rest)
        else:
            raise ConfigError(
                f"override '{item}': begin it with a stage's name, as in "
                f"{names[0]}.trl.max_steps=10; {nearest(stage, names)}"
            )
    return result


def _stage_recipe(
    stage: dict[str, Any], overrides: list[str], out: Path, toy: bool, where: str
) -> Recipe:
    data = {key: value for key, value in stage.items() if key not in ("use", "set")}
    if "use" in stage:
        unknown = [key for key in data if key != "name"]
        if unknown:
            raise ConfigError(f"{where}: '{unknown[0]}' beside 'use'; write it under 'set'")
        data = read_yaml(bundled("thinkgate_train", "recipes", stage["use"])) | data
        data = _with_set(data, stage.get("set") or {}, where)
    elif "set" in stage:
        raise ConfigError(f"{where}: 'set' goes with 'use'; write the keys themselves")
    data = _with_out(data, out)
    if toy:
        data = parse(Recipe, data, where).toy_sized().model_dump(mode="json")
    return parse(Recipe, apply_overrides(data, overrides), where)


def _with_set(data: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """`data` with dotted keys changed; the values are YAML already, so they stay as they are."""
    for dotted, value in changes.items():
        *parents, last = str(dotted).split(".")
        node = data
        for key in parents:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(f"{where}: set.{dotted}: '{key}' is a value, not a section")
            node = cast("dict[str, Any]", child)
        node[last] = value
    return data


def _with_out(value: Any, out: Path) -> Any:
    """`value` with `$out` in its texts replaced by the pipeline's folder."""
    if isinstance(value, str):
        return value.replace("$out", str(out))
    if isinstance(value, dict):
        return {key: _with_out(item, out) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_out(item, out) for item in value]
    return value


def announce(stages: list[Stage], number: int, stage: Stage) -> None:
    """One line before a stage of several."""
    if len(stages) > 1:
        console.print(f"[bold]{number}/{len(stages)} {stage.name}[/] ({stage.recipe.method})")
