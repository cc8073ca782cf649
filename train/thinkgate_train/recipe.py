"""A recipe: everything that decides a training run, strict, in one YAML file.

The `trl` section goes to the trainer's own config class, so all of TRL's options are reachable and
none is mirrored here. Recipes lie in `train/recipes/`; `thinkgate train NAME` finds the shipped
ones. Knows what may be written; `trl_options.py` knows what TRL takes, `run.py` what happens.
"""

from difflib import get_close_matches
from string import Formatter
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from thinkgate.config import Config
from thinkgate.errors import ConfigError
from thinkgate.format import THINK, Tags
from thinkgate_train.rewards import known
from thinkgate_train.scratch import Scratch
from thinkgate_train.sources import Data, Prepare

__all__ = [
    "RL_METHODS",
    "ColdStart",
    "Judge",
    "Model",
    "Peft",
    "Preflight",
    "Prompt",
    "Quantization",
    "Recipe",
    "Reward",
    "Sampling",
    "Toy",
]

ONLOOKER_EVERY = 32
"""Of a batch of rollouts the second verifier sees one in so many: about 1 % of a step's time."""

Method = Literal["sft", "grpo", "rloo", "ppo", "dpo", "reward_model", "sample"]
RL_METHODS = ("grpo", "rloo", "ppo")
"""Those that sample rollouts and score them with reward functions."""


OLD_KEYS = {
    "max_prompt_length": ("prepare", "max_prompt_length"),
    "warmup_ratio": ("trl", "warmup_steps"),  # a value below 1 is a share of all steps
    "evaluation_strategy": ("trl", "eval_strategy"),
}
"""Keys of older TRL and transformers that tutorials put into the `trl` section, and where their
meaning lives now. They are moved there."""


class Quantization(Config):
    """Weights in few bits while training (QLoRA, arXiv 2305.14314), through bitsandbytes."""

    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    """Quantise the quantisation constants too: about 0.4 bits less per weight."""


class Model(Config):
    """Where the weights come from: a checkpoint folder or Hub id, nowhere, or another recipe."""

    path: str | None = None
    revision: str | None = None
    """Commit, tag or branch of a Hub id; pin it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization | None = None
    scratch: Scratch | None = None
    recipe: str | None = None
    """A recipe whose result to start from; run first, beside this run, if it is not there yet."""

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if sum(source is not None for source in (self.path, self.scratch, self.recipe)) != 1:
            raise ValueError("give exactly one of 'path', 'scratch' and 'recipe'")
        return self


class Prompt(Config):
    """How a problem becomes what the model is asked."""

    system: str | None = None
    template: str = "{prompt}"
    chat: bool = True
    """False asks with the bare text: for a base model that was never shown a chat template."""

    @model_validator(mode="after")
    def _has_slot(self) -> "Prompt":
        if "{prompt}" not in self.template:
            raise ValueError("template needs {prompt} where the problem goes")
        if self.system and not self.chat:
            raise ValueError("chat: false has no system message; put it into the template")
        return self

    def ask(self, problem: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
        """The text, or the messages, the model continues; messages keep their own system one."""
        if not isinstance(problem, str):
            own = any(message["role"] == "system" for message in problem)
            return problem if own or not self.system else [*self._opening(), *problem]
        text = self.template.replace("{prompt}", problem)
        return [*self._opening(), {"role": "user", "content": text}] if self.chat else text

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []


class ColdStart(Config):
    """What the completions of supervised cold-start data look like."""

    direct_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of examples whose thought is empty: the answer comes at once."""


class Reward(Config):
    """One reward function by name or as `module:function`, its weight and its arguments; the name
    alone will do."""

    name: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _known(self) -> "Reward":
        known(self.name)
        return self


class Peft(Config):
    """LoRA (arXiv 2106.09685); the adapter is kept, and merged into the saved weights."""

    r: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"


class Preflight(Config):
    """How much is looked at before a run starts; `thinkgate train --check` does only that."""

    enabled: bool = True
    prompts: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=2)] = 8
    """Completions sampled for each prompt from the starting model."""
    suites: tuple[str, ...] = ()
    """Suites that a gate will use: training prompts found in them are listed."""


class Judge(Config):
    """An LLM that scores answers; the arguments of the reward `llm_judge`."""

    args: dict[str, Any]
    at_least: float = 0.5
    """Samples scored lower, or not scored at all, are dropped."""


class Sampling(Config):
    """Method `sample`: completions worth learning from (rejection sampling, distillation)."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible API, for a teacher; default: the recipe's model, here."""
    teacher: str | None = None
    """The model's name at the endpoint."""
    api_key_env: str = "OPENAI_API_KEY"
    samples: Annotated[int, Field(ge=1)] = 4
    temperature: Annotated[float, Field(ge=0)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    concurrency: Annotated[int, Field(ge=1)] = 16
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions sampled at once where the model runs here."""
    keep: Annotated[int, Field(ge=1)] = 1
    """At most so many accepted completions of one problem, the shortest first."""
    verify: bool = True
    """Keep only what the verifier finds correct; false where problems have no gold."""
    judge: Judge | None = None
    trace: str = "{open}\n{thought}\n{close}\n\n{answer}"
    """How the student writes what an endpoint returned in two parts; the default is R1's form."""

    @field_validator("trace")
    @classmethod
    def _has_all_parts(cls, trace: str) -> str:
        parts = [name for _, name, _, _ in Formatter().parse(trace) if name is not None]
        if parts != ["open", "thought", "close", "answer"]:
            raise ValueError("write {open}, {thought}, {close} and {answer} in it, in that order")
        return trace


class Toy(Config):
    """What `--toy` puts in the place of model and data, and how far to go at that size.

    Method, prompt, rewards, adapter and health watch stay the recipe's own.
    """

    model: Model
    data: Data | None = None
    prepare: Prepare = Prepare()
    trl: dict[str, Any] = Field(default_factory=dict)
    """Numbers that go with size: steps, batch, lengths, learning rate."""
    sampling: dict[str, Any] = Field(default_factory=dict)
    """Of method `sample`: how much to sample at that size."""


class Recipe(Config):
    """One training run."""

    name: str
    method: Method
    description: str = ""
    hardware: str = ""
    """What it needs."""
    time: str = ""
    """How long it takes there, and whether that was measured."""
    moves: dict[str, Literal["up", "down"]] = Field(default_factory=dict)
    """Which way each metric goes when the run works, said again at its end."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: Model
    data: Data
    prepare: Prepare = Prepare()
    prompt: Prompt = Prompt()
    open_tag: str = THINK.open
    close_tag: str = THINK.close
    cold_start: ColdStart | None = None
    """SFT only: build completions from the problems' worked steps."""
    rewards: tuple[Reward, ...] = ()
    peft: Peft | None = None
    preflight: Preflight = Preflight()
    health: Literal["strict", "warn", "off"] = "warn"
    """strict ends a run that has become hopeless and keeps the last healthy state."""
    hang_after: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds one step may take before the stacks of all threads are written down."""
    sampling: Sampling | None = None
    push_to: str | None = None
    """Hub repository `user/name` that the finished checkpoint is uploaded to; created private."""
    disk_mib: int = 200
    """Free disk space the run needs, checked before it starts."""
    trl: dict[str, Any] = Field(default_factory=dict)
    """Options of the trainer's own config class (SFTConfig, GRPOConfig, DPOConfig …)."""
    toy: Toy | None = None

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, data: Any) -> Any:
        options = data.get("trl") if isinstance(data, dict) else None
        if not isinstance(options, dict) or not OLD_KEYS.keys() & options.keys():
            return data
        moved = {**data, "trl": dict(options)}
        for old, (section, new) in OLD_KEYS.items():
            if old in options:
                value = moved["trl"].pop(old)
                moved[section] = {new: value, **(moved.get(section) or {})}
        return moved

    @model_validator(mode="before")
    @classmethod
    def _misplaced(cls, data: Any) -> Any:
        method: Any = data.get("method") if isinstance(data, dict) else None
        if method not in get_args(Method) or method == "sample":
            return data
        for key in map(str, data.keys() - cls.model_fields.keys()):
            if get_close_matches(key, cls.model_fields, cutoff=0.75):
                continue  # a slip of the pen; TRL takes seconds to load
            from thinkgate_train.trl_options import is_option

            if is_option(key, method):
                raise ValueError(f"'{key}' is an option of the trainer: write trl.{key}")
        return data

    @model_validator(mode="after")
    def _fits_method(self) -> "Recipe":
        rl = self.method in RL_METHODS
        if rl and not self.rewards:
            raise ValueError(
                f"method '{self.method}' needs 'rewards'; start with [{{name: correctness}}]"
            )
        if rl and not any(reward.weight for reward in self.rewards):
            raise ValueError(
                "all 'rewards' have weight 0, so nothing is learned; give one a weight"
            )
        if not rl and self.rewards:
            raise ValueError(f"method '{self.method}' takes no 'rewards'")
        if self.cold_start is not None and self.method != "sft":
            raise ValueError(f"method '{self.method}' takes no 'cold_start'")
        if (self.sampling is not None) != (self.method == "sample"):
            raise ValueError("'sampling' goes with method 'sample', and only with it")
        if self.method == "sample" and (self.trl or self.peft):
            raise ValueError("method 'sample' trains nothing, so it takes no 'trl' and no 'peft'")
        if self.prepare.dynamic_sampling and self.method not in ("grpo", "rloo"):
            raise ValueError("prepare.dynamic_sampling goes with methods 'grpo' and 'rloo'")
        if self.model.scratch and self.peft:
            raise ValueError("a model from scratch has nothing to adapt; drop 'peft'")
        if self.model.quantization and self.peft is None:
            raise ValueError("quantised weights cannot be trained themselves; add 'peft'")
        Tags(self.open_tag, self.close_tag)  # raises ConfigError itself
        return self

    @property
    def tags(self) -> Tags:
        """The tag pair of this recipe."""
        return Tags(self.open_tag, self.close_tag)

    def watched(self) -> "Recipe":
        """The same run with a verifier looking on that is never optimised, where there is none: a
        reward that rises while its verdict falls is being gamed."""
        names = [reward.name for reward in self.rewards]
        if self.health == "off" or "correctness" not in names or "second_opinion" in names:
            return self
        onlooker = Reward(name="second_opinion", weight=0.0, args={"every": ONLOOKER_EVERY})
        return self.model_copy(update={"rewards": (*self.rewards, onlooker)})

    def toy_sized(self) -> "Recipe":
        """The same run on the from-scratch model and data of its `toy` section."""
        if self.toy is None:
            if self.model.path is None:
                return self  # from scratch, or from a recipe that is: toy-sized as it is
            raise ConfigError(f"{self.name}: it has no 'toy' section; run it without --toy")
        changed: dict[str, Any] = {
            "model": self.toy.model,
            "prepare": self.toy.prepare,
            "trl": self.trl | self.toy.trl,
            "disk_mib": 200,
            "push_to": None,
            "toy": None,
        }
        if self.toy.data is not None:
            changed["data"] = self.toy.data
        if self.sampling is not None:
            changed["sampling"] = self.sampling.model_copy(update=self.toy.sampling)
        # Validated again: model_copy would let a mistake in the section through.
        return Recipe.model_validate(self.model_copy(update=changed).model_dump())
