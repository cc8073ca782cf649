"""What is looked at before a run starts, so that hopeless ones end before the hours are spent.

One topic after the other: what the model is asked, how many rows make a step, memory, rewards,
rollouts of the starting model, overlap with suites. Each is a line, and `--check` shows more;
warnings are always shown. What cannot work is an error here instead of later; what would be in vain
is refused while `health` is on and `preflight.enabled`. The run is as it would be without it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkgate.contamination import Kind, overlaps
from thinkgate.errors import ConfigError, DataError
from thinkgate_train.data import Rows, render
from thinkgate_train.models import Start
from thinkgate_train.preflight.memory_topic import adapter_parameters, memory_topic
from thinkgate_train.preflight.report import Topic, clipped, complain, show
from thinkgate_train.preflight.rewards_topic import reward_topic
from thinkgate_train.preflight.rollouts_topic import Plan, judge_with, rollout_topic
from thinkgate_train.preflight.trial import Trial, obstacle, without_a_trace
from thinkgate_train.recipe import RL_METHODS, Recipe
from thinkgate_train.rewards.function import RewardFunction, Splitter, text_of
from thinkgate_train.rewards.scoring import Scorer
from thinkgate_train.sources import prompt_text, suite_prompts

__all__ = ["preflight", "require_chat_template"]

TRIAL_SECONDS = 120.0
"""Generation may take so long, all looks together; on a GPU it is a small part of that."""
SHOWN_END = 24
"""Characters of the prompt that are always shown: what the model continues from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is about to be trained."""

    recipe: Recipe
    start: Start
    rows: Rows
    rewards: list[RewardFunction]
    splitter: Splitter
    config: Any
    """TRL's config object."""
    data_dir: Path | None

    @property
    def processes(self) -> int:
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def per_step(self) -> int:
        """Rows, or rollouts, that are new in one optimiser step."""
        config = self.config
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        return max(1, batch * self.processes // getattr(config, "num_iterations", 1))

    @property
    def group(self) -> int:
        """Rollouts of one prompt; 1 for a method that does not compare them."""
        return getattr(self.config, "num_generations", None) or 1


def preflight(
    recipe: Recipe,
    start: Start,
    rows: Rows,
    rewards: list[RewardFunction],
    splitter: Splitter,
    config: Any,
    data_dir: Path | None,
    *,
    detailed: bool = False,
) -> None:
    """Show what is to be expected of the run; a ThinkgateError where it cannot work or is in vain.

    For one process of several: the main one.
    """
    run = Run(
        recipe=recipe,
        start=start,
        rows=rows,
        rewards=rewards,
        splitter=splitter,
        config=config,
        data_dir=data_dir,
    )
    refusals = []
    for topic in _topics(run):
        show(topic, detailed=detailed)
        if topic.refusal is not None:
            refusals.append(topic.refusal)
    heeded = recipe.preflight.enabled and recipe.health != "off"
    for refusal in refusals[1 if heeded else 0 :]:
        complain(str(refusal))
    if refusals and heeded:
        raise refusals[0]


def require_chat_template(recipe: Recipe, tokenizer: Any) -> None:
    """ConfigError where messages are to be rendered and the tokenizer has no template for them."""
    if recipe.prompt.chat and not tokenizer.chat_template:
        raise ConfigError(
            f"{recipe.name}: the tokenizer of this model has no chat template; set prompt.chat to "
            "false to ask with the bare text, or start from a model that was trained on chats"
        )


def _topics(run: Run) -> Iterator[Topic]:
    _require_rows(run)
    if "prompt" in run.rows.train[0]:
        yield _prompt_topic(run)
    yield memory_topic(run.recipe, run.start, run.rows.train, run.config)
    seconds = None
    if run.recipe.method in RL_METHODS:
        scorer = Scorer(run.recipe.rewards, run.rewards, run.start.tokenizer)
        with without_a_trace(run.start, None, run.recipe.seed):
            topic = reward_topic(scorer, run.rows.train, run.splitter, run.recipe.tags)
        yield topic
        topic, seconds = _rollout_topic(run, scorer)
        yield topic
    if run.recipe.preflight.suites:
        yield _suites_topic(run)
    yield _steps_topic(run, seconds)


def _prompt_topic(run: Run) -> Topic:
    """What the model continues from, and whether the tags fit together."""
    tokenizer: Any = run.start.tokenizer
    prompt = run.rows.train[0]["prompt"]
    if not isinstance(prompt, str) and not tokenizer.chat_template:
        raise ConfigError(
            f"{run.recipe.name}: the data's prompts are messages and the tokenizer of this model "
            "has no chat template; take a model that has one, or a column with plain text"
        )
    text = render(tokenizer, prompt)
    tags, prefilled = run.recipe.tags, _prefilled(run)
    opened = f"{tags.open} is already written" if prefilled else f"the model writes {tags.open}"
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    repeated = _repeated_tag(run) if prefilled else None
    return Topic(
        name="prompt",
        summary=f"{count} tokens, ends '{clipped(text[-SHOWN_END:], SHOWN_END)}'; {opened}",
        details=(f"'{clipped(text, 300, tail=60)}'",) if len(text) > SHOWN_END else (),
        warnings=(repeated,) if repeated else (),
    )


def _prefilled(run: Run) -> bool:
    return run.splitter("x").answer is None


def _repeated_tag(run: Run) -> str | None:
    """What supervised completions look like behind a prompt that opened the thought."""
    if run.recipe.method != "sft":
        return None
    opening = run.recipe.tags.open
    rows = run.rows.train
    count = len(rows)
    if run.recipe.cold_start is None:
        count = sum(
            text_of(r["completion"], run.recipe.tags).lstrip().startswith(opening) for r in rows
        )
    if not count:
        return None
    return (
        f"{count:,} of {len(rows):,} completions open with {opening}, which the chat template has "
        "written already: the model would learn to write it twice; take the tag out of the "
        "completions, or use a template without it"
    )


def _require_rows(run: Run) -> None:
    """ConfigError where there are too few rows for one step: the trainer would end at once."""
    if run.recipe.method not in RL_METHODS:
        return
    rows, at_once = len(run.rows.train), run.config.generation_batch_size // run.group
    if rows < at_once:
        raise ConfigError(
            f"{run.recipe.name}: {rows} rows are fewer than the {at_once} prompts sampled at "
            "once, so there would be no step at all; give more data, or lower "
            "trl.per_device_train_batch_size or trl.gradient_accumulation_steps"
        )


def _steps_topic(run: Run, seconds: float | None) -> Topic:
    """How far the run goes through the data, and about how long it takes."""
    config, rows = run.config, len(run.rows.train)
    prompts = max(1, run.per_step // run.group)
    steps = config.max_steps
    if steps <= 0:
        steps = max(1, round(config.num_train_epochs * rows / prompts))
    used = steps * prompts
    each = f"{prompts:,} x {run.group} rollouts" if run.group > 1 else f"{prompts:,} rows"
    share = f"{used / rows:.1f} passes over" if used > rows else f"{used:,} of"
    took = f" in about {_time(seconds)}" if seconds is not None else ""
    total = f"; {_time(steps * seconds)} in all" if seconds is not None else ""
    trained = adapter_parameters(run.recipe, run.start.model)
    parameters: int = run.start.model.num_parameters()
    refusal = None
    if config.learning_rate == 0:
        refusal = ConfigError(
            f"{run.recipe.name}: trl.learning_rate is 0, so nothing would change; give one above 0"
        )
    return Topic(
        name="steps",
        summary=f"{steps:,}, each {each}{took}{total}",
        details=(
            f"{share} {rows:,} rows; {parameters:,} parameters, "
            + ("all trained" if trained is None else f"{trained:,} trained beside them"),
        ),
        refusal=refusal,
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def _rollout_topic(run: Run, scorer: Scorer) -> tuple[Topic, float | None]:
    """What the starting model earns, and the seconds that a step may take."""
    import torch

    recipe, config = run.recipe, run.config
    if reason := obstacle(run.start):
        return Topic(name="rollouts", summary=f"not sampled: {reason}"), None
    plan = Plan(
        prompts=recipe.preflight.prompts,
        samples=recipe.preflight.samples,
        group=run.group if run.group > 1 else recipe.preflight.samples,
        compared=run.group > 1,
        all_asked=scorer.asks_all,
        per_process=run.per_step / run.processes,
        passes=_passes(run),
        masks_cut=bool(config.mask_truncated_completions),
        rollouts_elsewhere=bool(config.use_vllm),
    )
    trial = Trial(run.start, config, seconds=TRIAL_SECONDS)
    judge = judge_with(scorer, run.splitter)
    try:
        with without_a_trace(run.start, config.device, recipe.seed):
            return rollout_topic(trial, judge, run.rows.train, plan, recipe)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Topic(
            name="rollouts",
            summary="not sampled: the device has not enough memory for it",
            warnings=("training needs more than sampling; see the memory line",),
        ), None


def _passes(run: Run) -> int:
    """Forward passes that one new rollout costs while it is trained on."""
    config = run.config
    updates: int = config.num_iterations
    reference = bool(getattr(config, "kl_coef", getattr(config, "beta", 0.0)))
    # A backward pass costs two; with more than one update the old log-probabilities are needed.
    return updates * (3 + bool(config.gradient_checkpointing)) + reference + (updates > 1)


def _suites_topic(run: Run) -> Topic:
    """Training problems that a gate will ask; word for word ones are refused."""
    names = run.recipe.preflight.suites
    benchmark: list[tuple[str, str]] = []
    unread: list[str] = []
    for name in names:
        try:
            benchmark += suite_prompts(name, run.data_dir)
        except DataError as error:
            unread.append(f"suite {name} is not compared: {error}")
    texts = [prompt_text({"prompt": problem}) for problem in run.rows.problems]
    found = overlaps(texts, benchmark)
    exact = sum(overlap.kind is Kind.EXACT for overlap in found)
    fix = f"prepare.decontaminate: [{', '.join(names)}]"
    listed = [
        f"{o.problem_id} ({o.kind.value}, {o.share:.0%}): '{clipped(o.excerpt, 60)}'"
        for o in found[:5]
    ]
    warnings = list(unread)
    if found and not exact:
        warnings.append(
            f"{len(found)} of {len(benchmark)} problems of {', '.join(names)} are nearly or partly "
            f"in the training data; {fix} takes them out"
        )
    return Topic(
        name="suites",
        summary=f"{len(found)} of {len(benchmark):,} problems are in the training data",
        details=tuple(listed),
        warnings=tuple(warnings),
        refusal=ConfigError(
            f"{run.recipe.name}: {exact} of {len(benchmark)} problems of {', '.join(names)} are "
            f"training problems word for word, such as {listed[0]}; the gate would measure memory: "
            f"set {fix}"
        )
        if exact
        else None,
    )
