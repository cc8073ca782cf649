"""What a run leaves while it trains, and how the health watch acts: with a trainer's calls, and
without a trainer."""

import asyncio
import functools
import json
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from thinkgate.checkpoint import HealthVerdict
from thinkgate.console import progress
from thinkgate.errors import TrainingError
from thinkgate.format import split
from thinkgate_train.health import completions as completions_log
from thinkgate_train.health.verdict import RunFacts
from thinkgate_train.health.watch import Watch

SPLITTER = functools.partial(split, prefilled=False)
FACTS = RunFacts(
    method="grpo",
    learning_rate=0.5,
    reward_names=("correctness", "second_opinion"),
    reward_weights=(2.0, 0.0),
    max_steps=100,
)


def tokenizer(texts: Sequence[str], **_: Any) -> dict[str, list[list[str]]]:
    """One token a character."""
    return {"input_ids": [list(text) for text in texts]}


OPEN: list[Watch] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    """What `run.py` does at the end of a run, however it ends."""
    yield
    while OPEN:
        OPEN.pop().close()


class Run:
    """A trainer's calls to the callback of a watch."""

    def __init__(
        self, folder: Path, mode: Literal["strict", "warn", "off"] = "strict", **options: Any
    ) -> None:
        self.folder = folder
        with progress("run") as meter:
            options = {"facts": FACTS, "hang_after": 60, **options}
            self.watch = Watch(folder=folder, meter=meter, mode=mode, **options)
        OPEN.append(self.watch)
        self.callback: Any = self.watch.callback()
        self.arguments = SimpleNamespace(logging_nan_inf_filter=True)
        self.state = SimpleNamespace(global_step=0, max_steps=100)
        self.call("train_begin")

    def call(self, event: str, **more: Any) -> None:
        getattr(self.callback, f"on_{event}")(self.arguments, self.state, None, **more)

    def step(self, **logs: Any) -> None:
        self.call("step_begin")
        self.state.global_step += 1
        self.call("step_end")
        self.call("log", logs=logs)

    def save(self) -> None:
        state = self.folder / f"checkpoint-{self.state.global_step}"
        state.mkdir()
        (state / "weights").write_text(str(self.state.global_step))
        self.call("save")

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


def no_gradient(run: Run, steps: int) -> None:
    for _ in range(steps):
        run.step(reward=1.0, reward_std=0.0, zero_variance=1.0)
        run.save()


def test_a_row_has_trls_numbers_and_short_names(tmp_path: Path) -> None:
    run = Run(tmp_path)
    logs = {"loss": 0.5, "rewards/correctness/mean": 0.25, "rewards/format/mean": 1.0, "note": "x"}
    run.step(**logs)
    del logs["note"]
    assert run.rows() == [{"step": 1, **logs, "accuracy": 0.25, "format": 1.0}]
    assert run.arguments.logging_nan_inf_filter is False  # it would hide a NaN loss


def test_what_is_no_number_is_left_out_of_the_file(tmp_path: Path) -> None:
    """So that any JSON reader takes it, and a manifest takes the last values."""
    run = Run(tmp_path)
    run.step(reward=None, kl=float("nan"), eval_loss=float("inf"), entropy=0.1)
    assert run.rows() == [{"step": 1, "entropy": 0.1}]


@pytest.mark.parametrize("mode", ["strict", "warn", "off"])
def test_nan_always_ends_the_run(tmp_path: Path, mode: Any) -> None:
    run = Run(tmp_path, mode)
    run.step(loss=1.0)
    run.save()
    with pytest.raises(TrainingError, match=r"step 2: not a number: loss is NaN; lower trl.learn"):
        run.step(loss=float("nan"))
    assert (tmp_path / "checkpoint-1").is_dir()


def test_strict_ends_a_hopeless_run_and_keeps_the_last_healthy_state(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in range(2):
        run.step(reward=1.0, zero_variance=0.3)
    run.save()
    with pytest.raises(TrainingError) as stopped:
        no_gradient(run, 30)
    text = str(stopped.value)
    assert text.startswith("step 22: constant reward: there is no gradient")
    assert f"last healthy state is that of step 2 in {tmp_path}: change that and pass" in text
    assert "health=warn" in text and text.endswith(".") and "\n" not in text
    # What came after is set aside, so that resuming takes the healthy one, and nothing is lost.
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(list(tmp_path.glob("unhealthy-*"))) == 19
    record = run.watch.record()
    assert record and record.verdict is HealthVerdict.STOPPED


def test_the_best_state_survives_the_trainers_rotation(tmp_path: Path) -> None:
    """The trainer keeps its newest two; what ruined the run is certain only later."""
    run = Run(tmp_path)
    with pytest.raises(TrainingError, match=r"reward hacking.*healthy state is that of step 12 in"):
        for step in range(1, 60):
            accuracy = 0.6 if step <= 12 else 0.1
            run.step(**{"reward": step / 10, "rewards/correctness/mean": accuracy})
            if step % 4 == 0:
                run.save()
                (tmp_path / f"checkpoint-{step - 8}" / "weights").unlink(missing_ok=True)
                if step > 8:
                    (tmp_path / f"checkpoint-{step - 8}").rmdir()
    assert (tmp_path / "checkpoint-12" / "weights").read_text() == "12"
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


def test_without_a_healthy_state_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No healthy state was saved: change that and start"):
        no_gradient(Run(tmp_path), 30)


def test_warn_goes_on_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "warn")
    no_gradient(run, 30)
    assert capsys.readouterr().out.count("constant reward: there is no gradient") == 1
    record = run.watch.record()
    assert record and record.verdict is HealthVerdict.WARNED
    assert [f.symptom for f in record.findings] == ["constant_reward"]


def test_off_says_nothing_and_records_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, "off")
    no_gradient(run, 30)
    assert "constant" not in capsys.readouterr().out
    assert run.watch.record() is None


def test_other_processes_stop_as_well_but_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, main=False)
    rollouts(run, [1.0] * 8)
    with pytest.raises(TrainingError, match="constant reward"):
        for _ in range(30):
            run.step(reward=1.0, zero_variance=1.0)
    assert list(tmp_path.iterdir()) == [] and "constant" not in capsys.readouterr().out


def test_a_resumed_run_remembers_what_is_kept_and_forgets_the_rest(tmp_path: Path) -> None:
    run = Run(tmp_path, "warn")
    for step in range(8):
        rollouts(run, [1.0, 0.0] * 4)
        run.step(reward=0.5 + step / 100, zero_variance=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as sink:
        sink.write('{"step": 9, "rew')  # killed while writing
    again = Run(tmp_path)
    again.watch.resume(6)
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4, 5, 6]
    assert {row["step"] for row in again.rows("completions.jsonl")} == {1, 2, 3, 4, 5, 6}
    again.state.global_step = 6
    with pytest.raises(TrainingError, match="step 16: constant reward"):  # never any variance
        no_gradient(again, 30)


def test_resuming_before_the_first_log_is_fine(tmp_path: Path) -> None:
    Run(tmp_path).watch.resume(0)


@pytest.mark.filterwarnings("error")
def test_a_hanging_step_leaves_its_stacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, hang_after=0.05)
    run.call("step_begin")
    deadline = time.monotonic() + 30
    while not (stacks := (tmp_path / "stacks.txt").read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "test_a_hanging_step_leaves_its_stacks" in stacks
    run.call("step_end")
    assert "took longer than 0.05 s" in capsys.readouterr().out
    run.step(loss=1.0)
    assert "took longer" not in capsys.readouterr().out
    run.call("train_end")
    assert (tmp_path / "stacks.txt").is_file()


def test_a_run_that_never_hangs_leaves_no_stacks(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(loss=1.0)
    run.call("train_end")
    assert not (tmp_path / "stacks.txt").exists()


TEXTS = ["<think>1+1</think>2", "<think></think>2", "3", "<think>so", "1</think>2", "", "2", "2"]


def correctness(completions: list[Any], **_: Any) -> list[float | None]:
    return correctness.values[: len(completions)]  # type: ignore[attr-defined]


async def second_opinion(completions: list[Any], **_: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [0.5] * len(completions)


def rollouts(
    run: Run,
    values: list[float | None],
    texts: Sequence[Any] = TEXTS,
    prompts: Sequence[Any] = ("a", "a", "a", "a", "b", "b", "b", "b"),
) -> dict[str, float]:
    """One batch of a step through the observed rewards, as TRL calls them; what they logged."""
    logged: dict[str, float] = {}
    correctness.values = values  # type: ignore[attr-defined]
    one, other = run.watch.observe([correctness, second_opinion], SPLITTER, tokenizer)  # type: ignore[arg-type, list-item]
    given: dict[str, Any] = {
        "prompts": list(prompts),
        "completions": list(texts),
        "completion_ids": [[0]] * len(texts),
        "gold": ["2"] * len(texts),
        "trainer_state": run.state,
        "log_metric": logged.__setitem__,
    }
    run.call("step_begin")
    assert one(**given) == values
    assert asyncio.run(other(**given)) == [0.5] * len(texts)  # type: ignore[arg-type]
    return logged


def test_the_shape_of_a_batch_is_logged(tmp_path: Path) -> None:
    logged = rollouts(Run(tmp_path), [1.0] * 8)
    assert logged == {
        "thinking_tokens": 5 / 8,
        "answer_tokens": (1 + 1 + 1 + 10 + 1 + 1) / 8,
        "step_share": 2 / 8,
        "truncated": 1 / 8,
        "untagged": 5 / 8,
        "unopened": 1 / 8,
        "zero_variance": 1.0,
    }


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([1, 0, 1, 1, 0, 0, 0, 0], 0.5),
        ([0.1 + 0.2, 0.3, 0.3, 0.3, 1, 0, 0, 0], 0.5),  # rounding is no difference
        ([None, None, 1, 1, None, None, None, None], 1.0),
        ([float("nan"), 1, 1, 1, 0, 1, 0, 1], 0.5),
        ([None] * 8, None),
    ],
)
def test_groups_with_equal_rewards_are_counted(
    tmp_path: Path, values: list[float | None], share: float | None
) -> None:
    """TRL's own share says 0 for most of them: it compares float32 deviations with zero."""
    logged: dict[str, float] = {}
    facts = RunFacts(method="grpo", reward_names=("c",), reward_weights=(0.7,))
    run = Run(tmp_path, facts=facts)
    correctness.values = values  # type: ignore[attr-defined]
    (one,) = run.watch.observe([correctness], SPLITTER, tokenizer)  # type: ignore[arg-type]
    run.call("step_begin")
    one(
        prompts=["a"] * 4 + ["b"] * 4,
        completions=TEXTS,
        trainer_state=run.state,
        log_metric=logged.__setitem__,
    )
    assert logged.get("zero_variance") == share


def test_names_and_async_stay(tmp_path: Path) -> None:
    observed = Run(tmp_path).watch.observe([correctness, second_opinion], SPLITTER, tokenizer)  # type: ignore[arg-type, list-item]
    assert [f.__name__ for f in observed] == ["correctness", "second_opinion"]
    assert [asyncio.iscoroutinefunction(f) for f in observed] == [False, True]


def test_rollouts_are_logged_with_every_reward(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rollouts(run, [1.0, 0.0, None, 0.0, 1.0, 1.0, 1.0, 1.0])
    kept = run.rows("completions.jsonl")
    assert kept[0] == {
        "step": 1,
        "prompt": "a",
        "completion": "<think>1+1</think>2",
        "reasoning": "1+1",
        "answer": "2",
        "status": "closed",
        "rewards": {"correctness": 1.0, "second_opinion": 0.5},
        "reward": 2.0,
        "gold": "2",
    }
    assert kept[2]["rewards"]["correctness"] is None and kept[2]["reward"] == 0.0
    assert (kept[3]["status"], kept[3]["answer"]) == ("truncated", None)
    assert len(kept) == 8


def test_whole_groups_are_logged_never_parts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    prompts = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    rollouts(run, [1.0] * 9, texts=["2"] * 9, prompts=prompts)
    assert [row["prompt"] for row in run.rows("completions.jsonl")] == ["a"] * 3 + ["b"] * 3
    run.state.global_step = 1
    rollouts(run, [1.0] * 12, texts=["2"] * 12, prompts=["d"] * 12)
    assert [row["prompt"] for row in run.rows("completions.jsonl")][6:] == ["d"] * 12


def test_messages_are_logged_as_text(tmp_path: Path) -> None:
    run = Run(tmp_path)
    said = [[{"role": "assistant", "content": text}] for text in TEXTS]
    asked = [{"role": "user", "content": "1+1?"}]
    system = [{"role": "system", "content": "Think."}]
    rollouts(run, [1.0] * 8, texts=said, prompts=[asked] * 4 + [system + asked] * 4)
    kept = run.rows("completions.jsonl")
    assert [row["completion"] for row in kept] == TEXTS
    assert kept[0]["prompt"] == "1+1?" and kept[4]["prompt"] == "system: Think.\n\nuser: 1+1?"


def test_held_out_rollouts_are_not_logged_as_training(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rollouts(run, [1.0] * 8)
    run.call("step_end")
    before = run.rows("completions.jsonl")
    logged: dict[str, float] = {}
    one, _ = run.watch.observe([correctness, second_opinion], SPLITTER, tokenizer)  # type: ignore[arg-type, list-item]
    one(prompts=["a"] * 8, completions=TEXTS, log_metric=logged.__setitem__)
    assert run.rows("completions.jsonl") == before
    assert "thinking_tokens" in logged and "zero_variance" not in logged


def test_hostile_and_endless_text_is_kept_within_bounds(tmp_path: Path) -> None:
    run = Run(tmp_path)
    texts = ["\ud800 half a pair", "x" * 100_000, *TEXTS[2:]]
    rollouts(run, [1.0] * 8, texts=texts)
    kept = run.rows("completions.jsonl")
    assert kept[0]["completion"] == texts[0]
    assert len(kept[1]["completion"]) < 21_000
    assert "80,000 characters left out" in kept[1]["completion"]


def test_a_long_run_is_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions_log, "THIN_EVERY", 4000)
    monkeypatch.setattr(completions_log, "LARGEST_FILE", 30_000)
    run = Run(tmp_path)
    for step in range(400):
        run.state.global_step = step
        rollouts(run, [1.0] * 8)
    steps = sorted({row["step"] for row in run.rows("completions.jsonl")})
    gaps = [b - a for a, b in pairwise(steps)]
    assert gaps[0] == 1 and gaps == sorted(gaps) and gaps[-1] >= 32
    assert (tmp_path / "completions.jsonl").stat().st_size < 33_000


def test_with_a_reward_model_the_sum_is_unknown(tmp_path: Path) -> None:
    """It is a module that TRL calls itself, so its share of the reward is not seen here."""
    run = Run(tmp_path)
    correctness.values = [1.0] * 8  # type: ignore[attr-defined]
    (one,) = run.watch.observe([correctness], SPLITTER, tokenizer)  # type: ignore[arg-type]
    run.call("step_begin")
    logged: dict[str, float] = {}
    one(
        prompts=["a"] * 8,
        completions=TEXTS,
        trainer_state=run.state,
        log_metric=logged.__setitem__,
    )
    assert run.rows("completions.jsonl")[0]["reward"] is None and "zero_variance" not in logged
