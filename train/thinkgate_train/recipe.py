"""A recipe: everything that decides a training run, strict, in one YAML file.

The `trl` section goes to TRL's own config class, so all of TRL's options are reachable and none is
mirrored here. Recipes lie in `train/recipes/`; `thinkgate train NAME` finds the shipped ones.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field, model_validator

from thinkgate.config import Config, nearest
from thinkgate.errors import ConfigError
from thinkgate.format import THINK, Tags
from thinkgate.problems import ProblemSet
from thinkgate_train.rewards import REWARDS
from thinkgate_train.scratch import Scratch

if TYPE_CHECKING:
    from trl import GRPOConfig, SFTConfig

__all__ = ["ColdStart", "Model", "Peft", "Prompt", "Recipe", "Reward", "trl_config"]

# Keys of older TRL and transformers that tutorials still use, and what to write instead.
REMOVED = {
    "max_prompt_length": "put it in 'data': data.max_prompt_length drops longer prompts",
    "warmup_ratio": "use warmup_steps; a value below 1 is a share of all steps",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "drop it; a finished run is replaced",
    "evaluation_strategy": "use eval_strategy",
    "output_dir": "use --out on the command line",
    "seed": "set 'seed' at the top of the recipe",
}


class Model(Config):
    """Where the weights come from: a checkpoint folder, a Hub id, or nowhere (`scratch`)."""

    path: str | None = None
    revision: str | None = None
    """Commit, tag or branch of a Hub id; pin it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    scratch: Scratch | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of 'path' and 'scratch'")
        return self


class Prompt(Config):
    """How a problem becomes the messages the chat template renders."""

    system: str | None = None
    template: str = "{prompt}"

    @model_validator(mode="after")
    def _has_slot(self) -> "Prompt":
        if "{prompt}" not in self.template:
            raise ValueError("template needs {prompt} where the problem goes")
        return self

    def messages(self, problem: str) -> list[dict[str, str]]:
        """The conversation so far: an optional system message and one user message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.template.replace("{prompt}", problem)}]


class ColdStart(Config):
    """What the completions of supervised cold-start data look like."""

    direct_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of examples whose thought is empty: the answer comes at once."""


class Reward(Config):
    """One reward function by name, its weight in the sum, and its arguments."""

    name: str
    weight: float = 1.0
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> "Reward":
        if self.name not in REWARDS:
            raise ValueError(f"unknown reward '{self.name}'; {nearest(self.name, REWARDS)}")
        return self


class Peft(Config):
    """LoRA; merged into the weights when training ends."""

    r: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class Recipe(Config):
    """One training run."""

    name: str
    method: Literal["sft", "grpo"]
    description: str = ""
    seed: int = 0
    model: Model
    data: ProblemSet
    prompt: Prompt = Prompt()
    open_tag: str = THINK.open
    close_tag: str = THINK.close
    cold_start: ColdStart | None = None
    """SFT only: build completions from the problems' worked steps."""
    rewards: tuple[Reward, ...] = ()
    peft: Peft | None = None
    disk_mib: int = 200
    """Free disk space the run needs, checked before it starts."""
    trl: dict[str, Any] = Field(default_factory=dict)
    """Options of TRL's SFTConfig or GRPOConfig."""

    @model_validator(mode="after")
    def _fits_method(self) -> "Recipe":
        if self.method == "grpo" and not self.rewards:
            raise ValueError("method 'grpo' needs 'rewards'; start with [{name: correctness}]")
        if self.method == "sft" and self.cold_start is None:
            raise ValueError("method 'sft' needs 'cold_start'; start with {direct_share: 0.5}")
        if self.method == "sft" and self.rewards:
            raise ValueError("method 'sft' takes no 'rewards'")
        Tags(self.open_tag, self.close_tag)  # raises ConfigError itself
        return self

    @property
    def tags(self) -> Tags:
        """The tag pair of this recipe."""
        return Tags(self.open_tag, self.close_tag)


def trl_config(recipe: Recipe, output_dir: str) -> "SFTConfig | GRPOConfig":
    """TRL's own config object; ConfigError names an unknown key or what TRL says is wrong."""
    import torch
    from trl import GRPOConfig, SFTConfig

    kind = {"sft": SFTConfig, "grpo": GRPOConfig}[recipe.method]
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    for key in recipe.trl:
        if key in REMOVED:
            raise ConfigError(f"{recipe.name}: trl.{key} is not an option here: {REMOVED[key]}")
        if key not in known:
            raise ConfigError(f"{recipe.name}: unknown key 'trl.{key}'; {nearest(key, known)}")
    _check_types(recipe, kind)
    _check_batch(recipe)
    # Where there is no accelerator, TRL's bf16 default and its device choice would fail later.
    cpu = not torch.cuda.is_available()
    defaults: dict[str, Any] = {"use_cpu": True, "bf16": False} if cpu else {}
    fixed: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": recipe.seed,
        "disable_tqdm": True,
    }
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_steps": 1}
    try:
        return kind(**{**defaults, **quiet, **recipe.trl, **fixed})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{recipe.name}: trl: {' '.join(str(error).split())}") from error


PLAIN = {int, float, bool, str, type(None)}


def _check_types(recipe: Recipe, kind: type) -> None:
    """Numbers where numbers belong: transformers does not look, and fails later in the middle."""
    hints = get_type_hints(kind)
    for key, value in recipe.trl.items():
        allowed = set(get_args(hints[key])) or {hints[key]}
        if not allowed <= PLAIN:
            continue
        accepted = allowed | ({int} if float in allowed else set())
        if not isinstance(value, tuple(accepted)):
            names = " or ".join(sorted(t.__name__ for t in allowed - {type(None)}))
            raise ConfigError(f"{recipe.name}: trl.{key} is {value!r}; it must be {names}")


def _check_batch(recipe: Recipe) -> None:
    """GRPO compares the rollouts of one prompt, so a batch must hold whole groups."""
    if recipe.method != "grpo":
        return
    group = recipe.trl.get("num_generations", 8)
    batch = recipe.trl.get("generation_batch_size") or (
        recipe.trl.get("per_device_train_batch_size", 8)
        * recipe.trl.get("gradient_accumulation_steps", 1)
    )
    if not (isinstance(group, int) and isinstance(batch, int)) or group < 2:
        raise ConfigError(
            f"{recipe.name}: trl.num_generations is {group!r}; use a whole number, 2 or more"
        )
    if batch % group:
        raise ConfigError(
            f"{recipe.name}: a batch of {batch} rollouts cannot be divided into groups of "
            f"{group}; set trl.per_device_train_batch_size to a multiple of "
            f"trl.num_generations, for example {max(group, batch // group * group)}"
        )
