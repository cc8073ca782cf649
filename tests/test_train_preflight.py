"""Preflight: what is said before a run, what is refused and why, and that the run does not feel it.

A model that has learned three answers by heart stands for every starting model: one question it
always answers right, one never, one half of the time.
"""

import functools
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Says, ScriptedEndpoint

from thinkgate.cli import main
from thinkgate.config import apply_overrides, parse, read_yaml
from thinkgate.errors import ThinkgateError
from thinkgate.format import split
from thinkgate_train.curriculum import by_pass_rate
from thinkgate_train.data import Rows
from thinkgate_train.models import Start
from thinkgate_train.preflight import preflight
from thinkgate_train.preflight.rewards_topic import reward_topic
from thinkgate_train.preflight.rollouts_topic import equal_share, least_hope
from thinkgate_train.preflight.trial import Rollout, Trial
from thinkgate_train.recipe import Recipe
from thinkgate_train.rewards import build
from thinkgate_train.rewards.function import RewardFunction, Splitter
from thinkgate_train.rewards.scoring import Scorer
from thinkgate_train.scratch import Scratch, build_model, build_tokenizer
from thinkgate_train.trl_options import trl_config

RECIPES = Path(__file__).parent.parent / "train" / "recipes"
ALWAYS, NEVER, SOMETIMES = "1+1", "9+9", "7+8"
SAID = [
    (ALWAYS, "2"),
    (ALWAYS, "2"),
    (NEVER, "1"),
    (NEVER, "1"),
    (SOMETIMES, "15"),
    (SOMETIMES, "14"),
]
GOLDS = {ALWAYS: "2", NEVER: "18", SOMETIMES: "15"}


@pytest.fixture(scope="module")
def wavering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of that model."""
    import torch

    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer()
    size = Scratch(hidden_size=64, intermediate_size=128, layers=1, kv_heads=1)
    model = build_model(tokenizer, size)
    asked = [_encoded(tokenizer, f"<|user|>{question}<|assistant|>") for question, _ in SAID]
    said = [_encoded(tokenizer, f"<think></think>{answer}<|end|>") for _, answer in SAID]
    ids = torch.tensor([a + s + [0] * (30 - len(a + s)) for a, s in zip(asked, said, strict=True)])
    labels = [
        [-100] * len(a) + s + [-100] * (30 - len(a + s)) for a, s in zip(asked, said, strict=True)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 200)
        loss = model(input_ids=ids, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return make_checkpoint(tmp_path_factory.mktemp("wavering") / "model", model, tokenizer)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def rows_file(folder: Path, *questions: str, times: int = 32, **columns: Any) -> Path:
    file = folder / "rows.jsonl"
    rows = [{"prompt": q, "gold": GOLDS.get(q, "1"), **columns} for q in questions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * times))
    return file


def arguments(model: Path, rows: Path, out: Path, *more: str) -> list[str]:
    """A run of a few seconds on that model."""
    return [
        "train",
        "quickstart-grpo",
        f"model.path={model}",
        f"data={{source: jsonl, path: {rows}}}",
        "trl.per_device_train_batch_size=16",
        "trl.max_completion_length=12",
        "trl.max_steps=2",
        "peft.r=2",
        "--out",
        str(out),
        *more,
    ]


def check(model: Path, rows: Path, out: Path, *more: str) -> int:
    return main(arguments(model, rows, out, "--check", *more))


def test_a_healthy_run_is_described_in_few_lines(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_file(tmp_path, ALWAYS, SOMETIMES, SOMETIMES, NEVER)
    assert check(wavering, rows, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 25
    assert max(map(len, said.splitlines())) <= 80
    for expected in (
        "the model writes <think>",
        "<|user|>1+1<|assistant|>",
        "2, each 2 x 8 rollouts in about",
        "4 of 128 rows",
        "trained beside them",
        "a right answer earns 1.2",
        "100% formatted, 0% cut",
        "prompts solved never ",
    ):
        assert expected in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_run_begins_with_one_line_a_topic(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, parts = _parts(wavering, rows_file(tmp_path, ALWAYS, SOMETIMES, SOMETIMES, NEVER))
    preflight(recipe, *parts, None)
    lines = capsys.readouterr().out.splitlines()
    topics = ("prompt", "memory", "rewards", "rollouts", "steps")
    found = [line.split()[0] for line in lines if line.split()[0] in topics]
    assert found == list(topics)
    assert len(lines) <= 6 + 2  # two for a warning that this data deserves


def test_a_step_on_a_gpu_is_foretold_without_what_only_its_first_batches_cost(
    wavering: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that, as on a GPU, takes as long for many as for a few, once it is warm."""
    _, parts = _parts(wavering, rows_file(tmp_path, ALWAYS, NEVER))
    start, rows, config = parts[0], parts[1], parts[-1]
    rollouts = [Rollout(rows.train[0], [1] * length, "", cut=False) for length in (3, 11)]
    model: Any = start.model
    assert Trial(start, config).batch_seconds(rollouts, 8, passes=2) > 0  # the real model
    shapes: set[tuple[int, ...]] = set()

    def generate(input_ids: Any, generation_config: Any, **_: Any) -> Any:
        import torch

        time.sleep(0 if input_ids.shape in shapes else 1)
        shapes.add(input_ids.shape)
        new = generation_config.max_new_tokens
        time.sleep(0.03 + 0.01 * new)
        return torch.cat([input_ids, torch.ones(len(input_ids), new, dtype=torch.long)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    seconds = Trial(start, config).batch_seconds(rollouts, 64, passes=0)
    assert {shape[0] for shape in shapes} == {64}
    assert 0.1 < seconds < 0.5


Parts = tuple[Start, Rows, list[RewardFunction], Splitter, Any]


def _parts(model: Path, rows: Path, *overrides: str) -> tuple[Recipe, Parts]:
    from thinkgate_train.data import prepare_rows
    from thinkgate_train.models import load_start

    given = [item for item in arguments(model, rows, Path("x"), *overrides)[2:] if "=" in item]
    path = RECIPES / "quickstart-grpo.yaml"
    recipe = parse(Recipe, apply_overrides(read_yaml(path), given), path)
    start = load_start(recipe)
    splitter = functools.partial(split, tags=recipe.tags)
    rewards = [build(reward.name, splitter, reward.args) for reward in recipe.rewards]
    config = trl_config(recipe, str(rows.parent / "state"))
    return recipe, (start, prepare_rows(recipe, start.tokenizer), rewards, splitter, config)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (ALWAYS, "completions are right already, so there is nothing to learn here"),
        (
            NEVER,
            "none earned the reward for a right answer and the others the same (0.2): start from",
        ),
    ],
)
def test_a_hopeless_run_is_refused_with_the_reason(
    wavering: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    question: str,
    reason: str,
) -> None:
    out = tmp_path / "out"
    rows = rows_file(tmp_path, question)
    assert main(arguments(wavering, rows, out)) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not out.exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("off", ["health=off", "preflight.enabled=false"])
def test_the_refusal_can_be_turned_off_and_is_a_warning_then(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], off: str
) -> None:
    assert check(wavering, rows_file(tmp_path, ALWAYS), tmp_path / "out", off) == 0
    assert "right already" in " ".join(capsys.readouterr().out.split())


def test_a_model_that_never_ends_is_refused_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer()
    model = build_model(
        tokenizer, Scratch(hidden_size=32, intermediate_size=32, layers=1, kv_heads=1)
    )
    assert model.generation_config is not None
    untaught = make_checkpoint(tmp_path / "untaught", model, tokenizer)
    short = "trl.max_completion_length=4"
    assert check(untaught, rows_file(tmp_path, ALWAYS), tmp_path / "out", short) == 2
    assert "cut off at trl.max_completion_length and earn the same (0)" in capsys.readouterr().err


def test_cut_completions_that_are_masked_teach_nothing(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_file(tmp_path, SOMETIMES)
    masked = ("trl.max_completion_length=2", "trl.mask_truncated_completions=true")
    length = "rewards=[{name: unique_characters}]"
    assert check(wavering, rows, tmp_path / "out", *masked, length) == 2
    assert "mask_truncated_completions leaves those out" in capsys.readouterr().err


def test_a_collapsed_model_is_refused_though_prompts_differ(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_file(tmp_path, ALWAYS, NEVER)
    assert check(wavering, rows, tmp_path / "out", "trl.temperature=0.4") == 2
    assert "those of one prompt earn the same" in capsys.readouterr().err


def test_a_run_that_cannot_fit_is_refused_with_a_plan(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    rows = rows_file(tmp_path, SOMETIMES)
    monkeypatch.setattr("thinkgate_train.preflight.memory_topic.room", lambda _: 2**20)
    assert check(wavering, rows, tmp_path / "out", "trl.max_completion_length=60") == 2
    said = capsys.readouterr().err
    assert "1 MiB are free; trl.gradient_checkpointing=True" in said
    monkeypatch.setattr("thinkgate_train.preflight.memory_topic.room", lambda _: 5 * 2**20)
    assert check(wavering, rows, tmp_path / "out", "trl.max_completion_length=60") == 0
    assert "would fit" in capsys.readouterr().out


def test_a_device_too_full_to_sample_is_no_reason_to_stop(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import torch

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("thinkgate_train.preflight.trial.Trial._generate", full)
    assert check(wavering, rows_file(tmp_path, SOMETIMES), tmp_path / "out") == 0
    assert "not sampled: the device has not enough memory" in capsys.readouterr().out


def test_little_evidence_warns_and_does_not_refuse(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from thinkgate_train.preflight import checks as module

    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("thinkgate_train.preflight.trial.time", clock)
    monkeypatch.setattr(module, "TRIAL_SECONDS", 8.0)  # a few batches, however fast the machine is
    monkeypatch.setattr("thinkgate_train.preflight.trial.AT_ONCE", 2)
    # So cold that the few completions there is time for are alike.
    cold = "trl.temperature=0.1"
    assert check(wavering, rows_file(tmp_path, NEVER), tmp_path / "out", cold) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "start from a better model" in said or "no completion was finished" in said


@pytest.mark.slow
def test_the_run_is_the_same_with_and_without(wavering: Path, tmp_path: Path) -> None:
    rows = rows_file(tmp_path, SOMETIMES)
    logs = []
    for number, enabled in enumerate(("true", "false")):
        out = tmp_path / f"out{number}"
        assert main(arguments(wavering, rows, out, f"preflight.enabled={enabled}")) == 0
        lines = (out / "thinkgate" / "metrics.jsonl").read_text().splitlines()
        logs.append([_without_times(json.loads(line)) for line in lines])
    assert logs[0] == logs[1]
    assert any(row.get("grad_norm", 0.0) > 0 for row in logs[0])


def test_random_states_and_the_model_are_left_as_they_were(wavering: Path, tmp_path: Path) -> None:
    import numpy
    import torch

    recipe, parts = _parts(wavering, rows_file(tmp_path, SOMETIMES))
    model = parts[0].model.train()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state(legacy=False))
    preflight(recipe, *parts, None)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(numpy.random.get_state(legacy=False)) == states[2]
    assert model.training
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(parameter.grad is None for parameter in model.parameters())


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    timed = ("time", "runtime", "per_second", "flos", "speed")
    return {key: value for key, value in row.items() if not any(word in key for word in timed)}


def test_the_random_control_tosses_the_same_coins_after_a_preflight(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_file(tmp_path, ALWAYS)
    recipe, parts = _parts(wavering, rows, "rewards=[{name: random, args: {seed: 3}}]")
    preflight(recipe, *parts, None)
    assert "coin flips, a control" in capsys.readouterr().out
    coin, untouched = parts[2][0], build("random", split, {"seed": 3})
    assert coin(completions=["x"] * 64) == untouched(completions=["x"] * 64)


HOSTILE = """
def longer(completions, **kwargs):
    return [float(len(c)) for c in completions]

def constant(completions, **kwargs):
    return [1.0] * len(completions)

def wants_tag(completions, **kwargs):
    return [float(c.startswith("<think>")) for c in completions]

def broken(completions, **kwargs):
    return [1 / 0 for c in completions]

def wrong_friendly(completions, gold, **kwargs):
    return [0.0 if g in c else 1.0 for c, g in zip(completions, gold)]
"""


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    file = tmp_path / "hostile.py"
    file.write_text(HOSTILE)
    return str(file)


def rewards_said(
    rewards: str, *, prefilled: bool = False, rows: Sequence[dict[str, Any]] = ()
) -> Any:
    """The topic for a recipe's `rewards`, on two rows."""
    path = RECIPES / "quickstart-grpo.yaml"
    recipe = parse(Recipe, apply_overrides(read_yaml(path), [f"rewards={rewards}"]), path)
    splitter = functools.partial(split, prefilled=prefilled, tags=recipe.tags)
    functions = [build(reward.name, splitter, reward.args) for reward in recipe.rewards]
    scorer = Scorer(recipe.rewards, functions, build_tokenizer())
    own = [
        {"prompt": [{"role": "user", "content": "How many is 3+39?"}], "gold": "42"},
        {"prompt": [{"role": "user", "content": "How many is 3+16?"}], "gold": "19"},
    ]
    return reward_topic(scorer, rows or own, splitter, recipe.tags)


def test_a_right_answer_must_be_worth_more_than_a_wrong_one(hostile: str) -> None:
    topic = rewards_said(f"[{{name: correctness}}, {{name: '{hostile}:longer'}}]")
    assert "longer', which makes the difference" in str(topic.refusal)
    assert "earns as much as the right one" in topic.summary
    topic = rewards_said(f"[{{name: correctness}}, {{name: '{hostile}:wrong_friendly'}}]")
    assert "without a right answer" in str(topic.refusal)
    mended = f"[{{name: correctness}}, {{name: '{hostile}:longer', weight: 0.001}}]"
    assert rewards_said(mended).refusal is None


def test_without_correctness_nothing_is_ranked(hostile: str) -> None:
    topic = rewards_said(f"[{{name: '{hostile}:longer'}}]")
    assert topic.refusal is None
    assert "no reward knows the right answer" in topic.summary
    without = [{"prompt": "Write."}, {"prompt": "Write more."}]
    assert rewards_said("[{name: unique_characters}]", rows=without).refusal is None


def test_a_constant_reward_is_named(hostile: str) -> None:
    topic = rewards_said(f"[{{name: correctness}}, {{name: '{hostile}:constant'}}]")
    assert any("constant' is the same (1) for all" in warning for warning in topic.warnings)
    assert topic.refusal is None


def test_a_reward_that_raises_ends_it(hostile: str) -> None:
    with pytest.raises(ThinkgateError, match="broken' raised ZeroDivisionError"):
        rewards_said(f"[{{name: correctness}}, {{name: '{hostile}:broken'}}]")


def test_a_reward_for_the_tag_that_the_template_writes_is_named(hostile: str) -> None:
    rewards = f"[{{name: correctness}}, {{name: '{hostile}:wants_tag'}}]"
    assert not rewards_said(rewards).warnings
    (warning,) = [w for w in rewards_said(rewards, prefilled=True).warnings if "opens with" in w]
    assert "the chat template has written it already" in warning


def test_copying_an_expression_is_named_where_it_counts_as_right() -> None:
    chain = [{"prompt": "7+8-6+3", "gold": "12"}, {"prompt": "1+1", "gold": "2"}]
    topic = rewards_said("[{name: correctness}, {name: format, weight: 0.2}]", rows=chain)
    copied = [warning for warning in topic.warnings if "copying the prompt" in warning]
    assert len(copied) == (1 if _copy_is_right() else 0)
    assert topic.refusal is None


def _copy_is_right() -> bool:
    reward = build("correctness", split, {})
    return reward(prompts=["7+8-6+3"], completions=["7+8-6+3"], gold=["12"]) == [1.0]


def test_golds_that_are_no_answers_are_refused_or_counted() -> None:
    prose = [{"prompt": f"q{n}", "gold": "Take 3, then add 4, or 5, so 7 or 8?"} for n in range(4)]
    assert "data.fields.gold" in str(rewards_said("[{name: correctness}]", rows=prose).refusal)
    mixed = [*prose[:1], *({"prompt": f"q{n}", "gold": str(n)} for n in range(3))]
    (warning,) = [
        w for w in rewards_said("[{name: correctness}]", rows=mixed).warnings if "golds" in w
    ]
    assert "1 of 4 golds" in warning


@pytest.mark.parametrize("gold", ["42", "-0.50", "\\frac{3}{4}", "Paris", "9", "B"])
def test_the_right_answer_wins_for_any_kind_of_gold(gold: str) -> None:
    rows = [{"prompt": "Which?", "gold": gold}, {"prompt": "What?", "gold": "7"}]
    topic = rewards_said("[{name: correctness}, {name: format, weight: 0.2}]", rows=rows)
    assert topic.refusal is None and "more than" in topic.summary


def test_an_endpoint_that_cannot_be_reached_is_said_before_the_hours() -> None:
    judge = "{name: llm_judge, args: {base_url: 'http://127.0.0.1:9/v1', model: m, retries: 0}}"
    with pytest.raises(ThinkgateError, match="cannot reach"):
        rewards_said(f"[{{name: correctness}}, {judge}]")


def test_a_judge_is_asked_once() -> None:
    with ScriptedEndpoint(lambda _: Says('{"score": 0.5}')) as endpoint:
        judge = f"{{name: llm_judge, args: {{base_url: '{endpoint.base_url}', model: m}}}}"
        topic = rewards_said(f"[{{name: correctness}}, {judge}]")
        assert len(endpoint.requests) == 1
    assert topic.refusal is None and not topic.warnings


def test_a_judge_that_was_not_asked_may_still_tell_completions_apart(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(lambda _: Says('{"score": 0.5}')) as endpoint:
        judge = f"{{name: llm_judge, args: {{base_url: '{endpoint.base_url}', model: m}}}}"
        rewards = f"rewards=[{{name: correctness}}, {judge}]"
        assert check(wavering, rows_file(tmp_path, ALWAYS), tmp_path / "out", rewards) == 0
    assert "groups" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prepare.limit=1", "1 rows are fewer than the 2 prompts sampled at once"),
        ("trl.learning_rate=0", "trl.learning_rate is 0, so nothing would change"),
        ("peft.target_modules=[qkv]", "it has down_proj, gate_proj, k_proj, o_proj, q_proj"),
    ],
)
def test_runs_that_would_do_nothing_are_refused(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    rows = rows_file(tmp_path, SOMETIMES)
    assert check(wavering, rows, tmp_path / "out", override) == 2
    assert expected in capsys.readouterr().err


def test_a_tokenizer_without_chat_template_is_said_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: Any = build_tokenizer()
    model = build_model(
        tokenizer, Scratch(hidden_size=32, intermediate_size=32, layers=1, kv_heads=1)
    )
    tokenizer.chat_template = None
    bare = make_checkpoint(tmp_path / "bare", model, tokenizer)
    rows = rows_file(tmp_path, ALWAYS)
    assert check(bare, rows, tmp_path / "out") == 2
    assert "has no chat template; set prompt.chat to false" in capsys.readouterr().err
    rewards = "rewards=[{name: unique_characters}]"
    assert check(bare, rows, tmp_path / "out", "prompt.chat=false", rewards) == 0
    assert "'1+1'" in capsys.readouterr().out


def test_completions_that_repeat_a_prefilled_tag_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer: Any = build_tokenizer()
    model = build_model(
        tokenizer, Scratch(hidden_size=32, intermediate_size=32, layers=1, kv_heads=1)
    )
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{- '<|assistant|>' -}}{%- endif -%}", "{{- '<|assistant|><think>' -}}{%- endif -%}"
    )
    opened = make_checkpoint(tmp_path / "opened", model, tokenizer)
    rows = rows_file(tmp_path, ALWAYS, completion="<think>so</think>2")
    sft = ["train", "quickstart-sft", "--check", "--out", str(tmp_path / "out"), "cold_start=null"]
    sft += ["model.scratch=null", f"model.path={opened}", f"data={{source: jsonl, path: {rows}}}"]
    assert main(sft) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "<think> is already written" in said
    assert "32 of 32 completions open with <think>" in said
    rows_file(tmp_path, ALWAYS, completion="so</think>2")
    assert main(sft) == 0
    assert "completions open with" not in " ".join(capsys.readouterr().out.split())


def test_problems_of_a_gate_suite_are_listed_and_refused(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "7+8-6+3", "gold": "12"}\n{"prompt": "9-8+7+1", "gold": "9"}\n')
    suite = tmp_path / "gate.yaml"
    suite.write_text(f"data: {{source: jsonl, path: {asked}}}\n")
    missing = tmp_path / "missing.yaml"
    missing.write_text("data: {source: jsonl, path: nowhere.jsonl}\n")
    rows = rows_file(tmp_path, SOMETIMES, "9-8+7+1", ALWAYS)
    suites = f"preflight.suites=[{suite}, {missing}]"
    assert check(wavering, rows, tmp_path / "out", suites) == 2
    said = capsys.readouterr()
    assert "1 of 2 problems" in said.err and "prepare.decontaminate: [" in said.err
    assert "is not compared" in said.out
    cleaned = f"prepare.decontaminate=[{suite}]"
    assert check(wavering, rows, tmp_path / "out", f"preflight.suites=[{suite}]", cleaned) == 0
    assert "0 of 2 problems are in the training data" in capsys.readouterr().out


def test_the_curriculum_keeps_what_is_solved_sometimes(wavering: Path, tmp_path: Path) -> None:
    file = rows_file(tmp_path, ALWAYS, SOMETIMES, NEVER, times=4)
    kept = "prepare.curriculum={samples: 16}"
    recipe, (start, rows, _, splitter, config) = _parts(wavering, file, kept)
    chosen = by_pass_rate(recipe, start, rows, splitter, config)
    assert chosen.problems == [SOMETIMES] * 4
    assert [row["gold"] for row in chosen.train] == ["15"] * 4
    assert "4 of 12 problems are solved between 5% and 95%" in chosen.notes[-1]
    assert by_pass_rate(recipe, start, rows, splitter, config) == chosen
    everything = "prepare.curriculum={samples: 16, lowest: 0, highest: 1, easy_first: true}"
    recipe, (start, rows, _, splitter, config) = _parts(wavering, file, everything)
    ordered = by_pass_rate(recipe, start, rows, splitter, config)
    assert ordered.problems == [ALWAYS] * 4 + [SOMETIMES] * 4 + [NEVER] * 4
    assert config.shuffle_dataset is False


def test_a_curriculum_that_leaves_nothing_says_so(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_file(tmp_path, ALWAYS, NEVER, times=2)
    assert check(wavering, rows, tmp_path / "out", "prepare.curriculum={}") == 2
    assert "0 of 4 problems are solved between 5% and 95% of 4 times" in capsys.readouterr().err


@given(
    st.lists(st.sampled_from([0.0, 0.2, 1.2]), min_size=2, max_size=12),
    st.integers(min_value=2, max_value=16),
)
def test_the_share_of_equal_groups_is_that_of_all_subsets(totals: list[float], group: int) -> None:
    subsets = list(itertools.combinations(totals, min(group, len(totals))))
    expected = sum(len(set(subset)) == 1 for subset in subsets) / len(subsets)
    assert equal_share(totals, group) == pytest.approx(expected)


def test_the_bound_on_hope_is_the_rule_of_three() -> None:
    # At most 3/300 = 1% of completions differ: 1 - 0.99^8 = 7.7% of groups of eight.
    assert least_hope([[0.0] * 100] * 3, 8) == pytest.approx(1 - 0.99**8)
    # Of 210 pairs at most 3/210 differ; a group of eight is unequal at most seven times as often.
    assert least_hope([[0.0, 0.0], [1.0, 1.0]] * 105, 8) == pytest.approx(7 * 3 / 210)
    # One that differs among 474: at most 4.74/474.
    assert least_hope([[0.0] * 473, [1.0]], 8) == pytest.approx(1 - 0.99**8)
    assert least_hope([[0.0] * 8], 8) == pytest.approx(1 - (1 - 3 / 8) ** 8)
    assert least_hope([[0.0, 1.0]] * 4 + [[0.0] * 8], 8) == math.inf
    assert least_hope([[]], 8) == math.inf


@given(
    st.lists(st.floats(min_value=0, max_value=0.02), min_size=1, max_size=50),
    st.integers(min_value=2, max_value=16),
)
def test_no_mixture_of_prompts_beats_the_bound(rates: list[float], group: int) -> None:
    def unequal(rate: float) -> float:
        return 1 - (1 - rate) ** group - rate**group

    mean = sum(rates) / len(rates)
    mixture = sum(map(unequal, rates)) / len(rates)
    assert mixture <= 1 - (1 - mean) ** group + 1e-12
    # And a group is at most (group - 1) times as often unequal as a pair.
    assert mixture <= (group - 1) * sum(2 * r * (1 - r) for r in rates) / len(rates) + 1e-12


def test_a_puzzle_is_right_by_its_solution_not_by_its_gold(
    wavering: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A countdown gold says how to tell a right answer; all of them were refused as unreadable."""
    data = "data={source: countdown, half: train, count: 32, numbers: 3}"
    assert check(wavering, rows_file(tmp_path, ALWAYS), tmp_path / "out", data) in (0, 2)
    said = capsys.readouterr()
    assert "a right answer earns" in said.out and "golds" not in said.err
