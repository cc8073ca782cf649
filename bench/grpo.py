"""What does it cost to be watched, and what does our generation save? GRPO beside bare TRL, on CPU.

Goals, for the quickstart's GRPO run on one thread, against GRPOTrainer built directly:
  1. watched, with TRL's generation: at least 0.97 times its samples per second;
  2. as shipped (watched, our generation): at least 1.1 times its samples per second;
  3. our generation alone: at least 1.5 times its samples per second;
  4. as shipped: at most 1.2 times its peak memory, every process counted;
  5. as shipped: after equal steps, sampled accuracy at most 0.05 below its.

    python bench/grpo.py [--base DIR] [--check] [--quick] [--steps 40] [--arms ...]

Without `--base` the cold start is trained first (`thinkgate train quickstart-sft`, some minutes).
Every arm is a process of its own, on one thread, and saves ten states. They take turns step by
step, so that each step meets the same machine as the same step of bare TRL, whose very rollouts the
watched arm draws too. Speed is judged by the processor's seconds of an arm and its children, which
other work stretches less than the clock's; the intervals, of 95 %, come from resampled steps.
`sample` is the bare trainer with our generation and its canary, `continuous` (run it with
`--arms trl continuous`) with TRL's continuous batching.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from quickstart_seeds import PeakMemory
from rich.console import Console
from rich.table import Table

from thinkgate.answers import Verdict, check_many
from thinkgate.config import bundled, read_yaml
from thinkgate.format import SplitStatus, split
from thinkgate.problems import Arithmetic, load

WATCHED_GOAL, SHIPPED_GOAL, GENERATION_GOAL = 0.97, 1.1, 1.5
MEMORY_GOAL, ACCURACY_GOAL = 1.2, -0.05
ARMS = {
    "trl": "bare TRL",
    "watched": "watched, TRL samples",
    "shipped": "thinkgate",
    "sample": "bare TRL, we sample",
    "continuous": "bare TRL, continuous",
}
DEFAULT_ARMS, QUICK_ARMS = ("trl", "watched", "shipped", "sample"), ("trl", "watched", "shipped")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
RESAMPLES = 2000


def main() -> int:
    """Run the arms, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", type=Path, help="cold-start checkpoint")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="3 steps, from a short cold start")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--run", choices=ARMS, help=argparse.SUPPRESS)  # one arm, in its process
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)  # a file descriptor
    args = parser.parse_args()
    if args.run:
        run_arm(args.run, args.base, args.steps, args.out, Connection(args.turns))
        return 0
    print("\n".join((__doc__ or "").splitlines()[2:8]), end="\n\n")
    steps = 3 if args.quick else args.steps
    names = args.arms or (QUICK_ARMS if args.quick else DEFAULT_ARMS)
    with tempfile.TemporaryDirectory() as name:
        base = args.base or cold_start(Path(name) / "base", 20 if args.quick else 600)
        arms = [Arm(arm, base.resolve(), steps, Path(name) / arm) for arm in names]
        take_turns(arms, steps)
        for arm in arms:
            arm.finish()
    rows = [summary(arm, arms) for arm in arms]
    show(rows)
    missed = missed_goals({row["arm"]: row for row in rows})
    print("goals met" if not missed else f"MISSED: {'; '.join(missed)}")
    print(json.dumps({"bench": "grpo", "steps": steps, "rows": rows, "missed": missed}))
    return 1 if args.check and missed else 0


def cold_start(out: Path, steps: int) -> Path:
    """The quickstart's base, or a beginning of it: speed hardly depends on what it knows."""
    command = [sys.executable, "-m", "thinkgate", "train", "quickstart-sft", "--out", str(out)]
    command += [f"trl.max_steps={steps}", f"data.count={64 * steps}"]
    subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD})
    return out


@dataclass(frozen=True, slots=True)
class Turn:
    """What one step took, its logs and saved states included."""

    cpu_s: float
    """Of the process and all its children."""
    generation_cpu_s: float
    wall_s: float


class Arm:
    """A run in a process of its own that takes one step at a time."""

    def __init__(self, name: str, base: Path, steps: int, out: Path) -> None:
        self.name = name
        self.turns: list[Turn] = []
        self.samples, self.peak_mib = 0, 0.0
        self.accuracy: list[float] = []
        self._run, child = Pipe()
        command = [sys.executable, __file__, "--run", name, "--base", str(base), "--out", str(out)]
        command += ["--steps", str(steps), "--turns", str(child.fileno())]
        chosen = {"THINKGATE_GENERATION": "trl"} if name == "watched" else {}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **ONE_THREAD, **chosen},
            stdout=subprocess.DEVNULL,
            pass_fds=[child.fileno()],
        )
        child.close()
        self._peak = PeakMemory(self._process.pid)
        self._spent = (0.0, 0.0)

    def load(self) -> None:
        """Wait until its first step can begin."""
        self._spent = self._said()

    def step(self) -> None:
        """Let it take the next step, and wait until it has."""
        began, before = time.perf_counter(), self._spent
        self._run.send("go")
        self._spent = self._said()
        cpu, generation = (b - a for a, b in zip(before, self._spent, strict=True))
        self.turns.append(Turn(cpu, generation, time.perf_counter() - began))

    def finish(self) -> None:
        """After its last step: its accuracies, samples per step and peak memory."""
        self._run.send("go")
        self.accuracy, self.samples = self._said()
        code, self.peak_mib = self._process.wait(), self._peak.stop() / 2**20
        if code:
            raise SystemExit(f"{ARMS[self.name]}: exit {code}")

    def _said(self) -> Any:
        try:
            return self._run.recv()
        except EOFError:
            raise SystemExit(f"{ARMS[self.name]}: exit {self._process.wait()}") from None


def take_turns(arms: list[Arm], steps: int) -> None:
    """Every arm's first step, every arm's second, and so on; another arm begins each time."""
    for arm in arms:
        arm.load()
    for number in range(steps):
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            arm.step()
        print(f"\rstep {number + 1} of {steps}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def run_arm(arm: str, base: Path, steps: int, out: Path, parent: Connection) -> None:
    """In its own process: train, taking each step when the parent says so."""
    from thinkgate_train.models import prepare_libraries

    prepare_libraries()
    from transformers import Trainer, TrainerCallback
    from trl import GRPOTrainer

    out.mkdir(exist_ok=True)
    train: Any = Trainer.train
    generate: Any = GRPOTrainer._generate
    generation = 0.0

    def hand_over() -> None:
        parent.send((cpu_seconds(), generation))
        parent.recv()

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            hand_over()

    def taking_turns(self: Any, *args: Any, **named: Any) -> Any:
        self.add_callback(Turns())
        result = train(self, *args, **named)
        hand_over()
        accuracy = [row[ACCURACY] for row in self.state.log_history if ACCURACY in row]
        parent.send((accuracy, self.args.generation_batch_size))
        return result

    def timed_generation(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal generation
        before = cpu_seconds()
        result = generate(self, *args, **named)
        generation += cpu_seconds() - before
        return result

    Trainer.train, GRPOTrainer._generate = taking_turns, timed_generation
    if arm in ("watched", "shipped"):
        from thinkgate.cli import main as thinkgate

        given = ["quickstart-grpo", f"model.path={base}", f"trl.max_steps={steps}"]
        if code := thinkgate(["train", *given, "--out", str(out / "checkpoint"), "--force"]):
            raise SystemExit(code)
    else:
        train_bare(arm, base, steps, out)


def cpu_seconds() -> float:
    """Processor time of this process and its children so far: verifiers are children."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


ACCURACY = "rewards/correctness/mean"


def train_bare(arm: str, base: Path, steps: int, out: Path) -> None:
    """The recipe's run as a user of TRL would write it."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.trainer_callback import PrinterCallback
    from transformers.utils.logging import disable_progress_bar
    from trl import GRPOConfig, GRPOTrainer

    from thinkgate_train.rollouts import with_rollouts

    recipe = read_yaml(bundled("thinkgate_train", "recipes", "quickstart-grpo"))
    disable_progress_bars()
    disable_progress_bar()
    set_seed(recipe["seed"])
    rows = [
        {"prompt": [{"role": "user", "content": problem.prompt}], "gold": problem.gold}
        for problem in load(Arithmetic(**recipe["data"]))
    ]
    settings: dict[str, Any] = {
        **recipe["trl"],
        "max_steps": steps,
        "seed": recipe["seed"],
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 2,
        "disable_tqdm": True,
        "reward_weights": [reward["weight"] for reward in recipe["rewards"]],
        "use_transformers_continuous_batching": arm == "continuous",
    }
    lora = recipe["peft"]
    trainer_class: Any = with_rollouts(GRPOTrainer) if arm == "sample" else GRPOTrainer
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(base),
        processing_class=AutoTokenizer.from_pretrained(base),
        args=GRPOConfig(output_dir=str(out), **settings),
        train_dataset=Dataset.from_list(rows),
        reward_funcs=[correctness, closed],
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def correctness(completions: Sequence[Any], gold: Sequence[str], **_: Any) -> list[float]:
    """1 for a right answer."""
    answers = [split(completion[0]["content"]).answer for completion in completions]
    verdicts = check_many(list(zip(answers, gold, strict=True)))
    return [float(verdict is Verdict.CORRECT) for verdict in verdicts]


def closed(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for a closed thought and an answer."""
    splits = [split(completion[0]["content"]) for completion in completions]
    return [float(s.status is SplitStatus.CLOSED and bool(s.answer)) for s in splits]


def summary(arm: Arm, arms: list[Arm]) -> dict[str, Any]:
    """Rates over all steps, and ratios to bare TRL's in the same steps."""
    count = arm.samples * len(arm.turns)
    cpu, wall, generation = (
        [getattr(turn, name) for turn in arm.turns]
        for name in ("cpu_s", "wall_s", "generation_cpu_s")
    )
    # The last quarter of the steps: a single one is 128 coin flips.
    last = arm.accuracy[-max(1, len(arm.accuracy) // 4) :]
    row: dict[str, Any] = {
        "arm": arm.name,
        "per_cpu_s": round(count / sum(cpu), 1),
        "per_s": round(count / sum(wall), 1),
        "generated_per_cpu_s": round(count / sum(generation), 1),
        "peak_mib": round(arm.peak_mib, 1),
        "accuracy": round(statistics.fmean(last), 3),
    }
    bare = next((other for other in arms if other.name == "trl"), None)
    if bare is None:
        return row
    row["memory"] = round(arm.peak_mib / bare.peak_mib, 3)
    for ratio, own, theirs in (
        ("speed", cpu, [turn.cpu_s for turn in bare.turns]),
        ("wall_speed", wall, [turn.wall_s for turn in bare.turns]),
        ("generation", generation, [turn.generation_cpu_s for turn in bare.turns]),
    ):
        row[ratio], row[f"{ratio}_interval"] = paired_ratio(theirs, own)
    return row


def paired_ratio(theirs: Sequence[float], own: Sequence[float]) -> tuple[float, list[float]]:
    """Sum over sum, and its 95 % interval: both are resampled together, pair by pair."""
    pairs, draw = list(zip(theirs, own, strict=True)), random.Random(0)
    ratios = sorted(
        sum(a for a, _ in sample) / sum(b for _, b in sample)
        for sample in (draw.choices(pairs, k=len(pairs)) for _ in range(RESAMPLES))
    )
    low, high = ratios[RESAMPLES // 40], ratios[-RESAMPLES // 40]
    return round(sum(theirs) / sum(own), 3), [round(low, 3), round(high, 3)]


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "", "per CPU s", "x TRL", "95 %", "per s", "generation", "95 %", "peak MiB", "accuracy"
    )
    missing = float("nan")
    for row in rows:
        low, high = row.get("speed_interval", (missing, missing))
        slowest, fastest = row.get("generation_interval", (missing, missing))
        table.add_row(
            ARMS[row["arm"]],
            f"{row['per_cpu_s']:.1f}",
            f"{row.get('speed', missing):.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['per_s']:.1f} (x {row.get('wall_speed', missing):.2f})",
            f"x {row.get('generation', missing):.2f}",
            f"{slowest:.2f}-{fastest:.2f}",
            f"{row['peak_mib']:.0f} (x {row.get('memory', missing):.2f})",
            f"{row['accuracy']:.3f}",
        )
    Console(width=130).print(table)


def missed_goals(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Name every goal the numbers do not meet; arms that were not run have none."""
    missed: list[str] = []
    if "trl" not in rows:
        return missed
    if "watched" in rows and rows["watched"]["speed"] < WATCHED_GOAL:
        missed.append(f"watched: {rows['watched']['speed']} < {WATCHED_GOAL}")
    if "shipped" in rows:
        shipped, lost = rows["shipped"], rows["shipped"]["accuracy"] - rows["trl"]["accuracy"]
        if shipped["speed"] < SHIPPED_GOAL:
            missed.append(f"shipped: {shipped['speed']} < {SHIPPED_GOAL}")
        if shipped["generation"] < GENERATION_GOAL:
            missed.append(f"generation: {shipped['generation']} < {GENERATION_GOAL}")
        if shipped["memory"] > MEMORY_GOAL:
            missed.append(f"memory: {shipped['memory']} > {MEMORY_GOAL}")
        if lost < ACCURACY_GOAL:
            missed.append(f"accuracy: {lost:+.3f} < {ACCURACY_GOAL}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
