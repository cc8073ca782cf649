"""Configuration mistakes: one sentence that names the value and the fix."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

import pytest
from pydantic import Field, model_validator

from thinkgate.config import Config, apply_overrides, bundled, parse, read_yaml
from thinkgate.errors import ConfigError


class Small(Config):
    kind: Literal["small"]
    size: Annotated[int, Field(gt=0)] = 1


class Large(Config):
    kind: Literal["large"]
    length: int = 1


Part = Annotated[Small | Large, Field(discriminator="kind")]


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Example(Config):
    name: str
    part: Part
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = (Small(kind="small"),)
    colour: Literal[Colour.RED, Colour.GREEN] = Colour.RED
    learning_rate: float = 1e-3

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.name == "slow" and self.learning_rate == 1:
            raise ValueError("slow learners have no rate")
        return self


GOOD = {"name": "x", "part": {"kind": "small"}}


def test_parses_and_is_frozen() -> None:
    example = parse(Example, GOOD, "file.yaml")
    assert isinstance(example.part, Small)
    with pytest.raises(ValueError, match="frozen"):
        example.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rte": 1}, "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ({"part": {"kind": "small", "sise": 2}}, "'part.sise'; did you mean 'size'?"),
        ({"part": {"kind": "large", "lenght": 2}}, "did you mean 'length'?"),
        ({"part": {"kind": "small", "size": 0}}, "'part.size' is 0: "),
        ({"learning_rate": "fast"}, "'learning_rate' is 'fast': "),
        ({"part": {"kind": "smal"}}, "'part.kind' is 'smal'; did you mean 'small'?"),
        ({"part": {"size": 2}}, "'part.kind' is missing"),
        ({"part": "small"}, "'part' is 'small': input should be a mapping"),
        ({"colour": "blue"}, "'colour' is 'blue': input should be 'red' or 'green'"),
        ({"parts": []}, "'parts' is empty; give 1 at least"),
        ({"parts": 1}, "'parts' is 1: input should be a list"),
        ({"learning_rate": 1.0, "name": "slow"}, "file.yaml: slow learners have no rate"),
    ],
)
def test_a_mistake_names_the_key_and_the_fix(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Example, {**GOOD, **change}, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert expected in str(caught.value)


def test_a_list_is_not_called_too_short_because_of_what_is_in_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Example, {**GOOD, "parts": [{"kind": "small", "sise": 2}]}, "file.yaml")
    assert str(caught.value) == ("file.yaml: unknown key 'parts.0.sise'; did you mean 'size'?")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"file.yaml: 'name' is missing"):
        parse(Example, {"part": {"kind": "small"}}, "file.yaml")


def test_overrides_make_sections_and_read_numbers() -> None:
    before = {"trl": {"learning_rate": 1.0}, "seed": 0}
    after = apply_overrides(before, ["trl.learning_rate=1e-4", "a.b.c=[1, 2]", "seed=3", "n=x=y"])
    assert after == {
        "trl": {"learning_rate": 1e-4},
        "seed": 3,
        "a": {"b": {"c": [1, 2]}},
        "n": "x=y",
    }
    assert before["seed"] == 0 and before["trl"] == {"learning_rate": 1.0}


@pytest.mark.parametrize("override", ["seed", "=1", "seed.deeper=1"])
def test_a_bad_override_is_named(override: str) -> None:
    with pytest.raises(ConfigError, match=f"override '{override}'"):
        apply_overrides({"seed": 0}, [override])


@pytest.mark.parametrize(
    "text", ["a: [", "- 1\n- 2\n", "just text", "a: \x00", "a: 1\na: 2\n", "[" * 20_000]
)
def test_bad_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_shipped_recipe_is_found_by_name_and_a_near_miss_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = bundled("thinkgate_train", "recipes", "quickstart-sft")
    assert shipped.is_file()
    monkeypatch.chdir(tmp_path)
    for file in ("quickstart-sft", "quickstart-sft.yaml"):
        assert bundled("thinkgate_train", "recipes", file) == shipped
        (tmp_path / file).touch()
    # A bare name is ours whatever lies here; a path is a path.
    assert bundled("thinkgate_train", "recipes", "quickstart-sft") == shipped
    for file in ("./quickstart-sft", "quickstart-sft.yaml"):
        assert bundled("thinkgate_train", "recipes", file) == Path(file)
    with pytest.raises(ConfigError, match="did you mean 'quickstart-sft'"):
        bundled("thinkgate_train", "recipes", "quickstart-stf")
