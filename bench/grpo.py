"""What does it cost to be watched, and what does our generation save? GRPO beside bare TRL, on CPU.

Goals, for the quickstart's GRPO run on one thread, against GRPOTrainer built directly:
  1. watched, with TRL's generation: at least 0.97 times its samples per second;
  2. as shipped (watched, our generation): at least 1.1 times its samples per second;
  3. our generation alone: at least 1.8 times its samples per second;
  4. as shipped: at most 1.2 times its peak memory, every process counted;
  5. as shipped: after equal steps, sampled accuracy at most 0.05 below its.

    python bench/grpo.py [--base DIR] [--check] [--quick] [--steps 20] [--repeats 3] [--arms ...]

Without `--base` the cold start is trained first (`thinkgate train quickstart-sft`, some minutes).
Every run is a process of its own, on one thread, and saves ten states. Rounds interleave the arms,
ratios are taken within a round, and the median of the rounds decides. Speed is judged by the
processor's seconds in `Trainer.train()`, which other work on the machine stretches less than the
clock's; both are shown. `sample` is the bare trainer with our generation and its canary,
`continuous` (run it with `--arms trl continuous`) with TRL's continuous batching.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quickstart_seeds import PeakMemory
from rich.console import Console
from rich.table import Table

from thinkgate.answers import Verdict, check_many
from thinkgate.config import bundled, read_yaml
from thinkgate.format import SplitStatus, split
from thinkgate.problems import Arithmetic, load

WATCHED_GOAL, SHIPPED_GOAL, GENERATION_GOAL = 0.97, 1.1, 1.8
MEMORY_GOAL, ACCURACY_GOAL = 1.2, -0.05
ARMS = {
    "trl": "bare TRL",
    "watched": "watched, TRL samples",
    "shipped": "thinkgate",
    "sample": "bare TRL, we sample",
    "continuous": "bare TRL, continuous",
}
DEFAULT_ARMS = ("trl", "watched", "shipped", "sample")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Run the arms, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", type=Path, help="cold-start checkpoint")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="one round of 5 steps")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(DEFAULT_ARMS))
    parser.add_argument("--run", choices=ARMS, help=argparse.SUPPRESS)  # one run, in its process
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run_arm(args.run, args.base, args.steps, args.out)
        return 0
    print("\n".join((__doc__ or "").splitlines()[2:8]), end="\n\n")
    steps, repeats = (5, 1) if args.quick else (args.steps, args.repeats)
    with tempfile.TemporaryDirectory() as name:
        base = args.base or cold_start(Path(name) / "base", 40 if args.quick else 600)
        rounds = [
            {arm: measure(arm, base.resolve(), steps, Path(name) / arm) for arm in args.arms}
            for _ in range(repeats)
        ]
    rows = [summary(arm, rounds) for arm in args.arms]
    show(rows)
    missed = missed_goals({row["arm"]: row for row in rows})
    print("goals met" if not missed else f"MISSED: {'; '.join(missed)}")
    print(json.dumps({"bench": "grpo", "steps": steps, "rows": rows, "missed": missed}))
    return 1 if args.check and missed else 0


def cold_start(out: Path, steps: int) -> Path:
    """The quickstart's base, or a beginning of it: speed hardly depends on what it knows."""
    command = [sys.executable, "-m", "thinkgate", "train", "quickstart-sft", "--out", str(out)]
    command.append(f"trl.max_steps={steps}")
    subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD})
    return out


def measure(arm: str, base: Path, steps: int, out: Path) -> dict[str, Any]:
    """One run in a process of its own: samples per second, peak MiB, accuracy by step."""
    command = [sys.executable, __file__, "--run", arm, "--base", str(base), "--out", str(out)]
    chosen = {"THINKGATE_GENERATION": "trl"} if arm == "watched" else {}
    process = subprocess.Popen(
        [*command, "--steps", str(steps)],
        env={**os.environ, **ONE_THREAD, **chosen},
        stdout=subprocess.DEVNULL,
    )
    peak = PeakMemory(process.pid)
    code, peak_bytes = process.wait(), peak.stop()
    if code:
        raise SystemExit(f"{ARMS[arm]}: exit {code}")
    seen: dict[str, Any] = json.loads((out / "seen.json").read_text())
    run = {
        "per_cpu_s": seen["samples"] / seen["cpu_s"],
        "per_s": seen["samples"] / seen["wall_s"],
        "generated_per_cpu_s": seen["samples"] / seen["generation_cpu_s"],
        "peak_mib": peak_bytes / 2**20,
        "accuracy": seen["accuracy"],
    }
    print(
        f"{ARMS[arm]}: {run['per_cpu_s']:.1f} samples a CPU second, {run['per_s']:.1f} a second",
        file=sys.stderr,
    )
    return run


def run_arm(arm: str, base: Path, steps: int, out: Path) -> None:
    """In its own process: train, and leave what was measured in `seen.json`."""
    from thinkgate_train.models import prepare_libraries

    prepare_libraries()
    from transformers import Trainer
    from trl import GRPOTrainer

    out.mkdir(exist_ok=True)
    trained: list[Any] = []
    original: Any = Trainer.train

    def timed(self: Any, *args: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = original(self, *args, **named)
        trained[:] = [self, time.perf_counter() - wall, time.process_time() - cpu]
        return result

    generation = 0.0
    generate: Any = GRPOTrainer._generate

    def timed_generation(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal generation
        cpu = time.process_time()
        result = generate(self, *args, **named)
        generation += time.process_time() - cpu
        return result

    Trainer.train, GRPOTrainer._generate = timed, timed_generation
    if arm in ("watched", "shipped"):
        from thinkgate.cli import main as thinkgate

        given = ["quickstart-grpo", f"model.path={base}", f"trl.max_steps={steps}"]
        if code := thinkgate(["train", *given, "--out", str(out / "checkpoint"), "--force"]):
            raise SystemExit(code)
    else:
        train_bare(arm, base, steps, out)
    trainer, wall_s, cpu_s = trained
    seen = {
        "samples": steps * trainer.args.generation_batch_size,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "generation_cpu_s": generation,
        "accuracy": [row[ACCURACY] for row in trainer.state.log_history if ACCURACY in row],
    }
    (out / "seen.json").write_text(json.dumps(seen))


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


def summary(arm: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, and ratios to bare TRL of the same round."""
    runs = [one[arm] for one in rounds]
    row: dict[str, Any] = {
        "arm": arm,
        **{
            name: round(statistics.median(run[name] for run in runs), 1)
            for name in ("per_cpu_s", "per_s", "generated_per_cpu_s", "peak_mib")
        },
        # The last quarter of the steps: a single one is 128 coin flips.
        "accuracy": round(
            statistics.fmean(
                x for run in runs for x in run["accuracy"][-max(1, len(run["accuracy"]) // 4) :]
            ),
            3,
        ),
    }
    for ratio, name in (
        ("speed", "per_cpu_s"),
        ("wall_speed", "per_s"),
        ("generation", "generated_per_cpu_s"),
        ("memory", "peak_mib"),
    ):
        ratios = [one[arm][name] / one["trl"][name] for one in rounds if "trl" in one]
        if ratios:
            row[ratio] = round(statistics.median(ratios), 3)
            row[f"{ratio}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        "", "per CPU s", "x TRL", "rounds", "per s", "generation", "rounds", "peak MiB", "accuracy"
    )
    missing = float("nan")
    for row in rows:
        low, high = row.get("speed_range", (missing, missing))
        slowest, fastest = row.get("generation_range", (missing, missing))
        table.add_row(
            ARMS[row["arm"]],
            f"{row['per_cpu_s']:.1f}",
            f"{row.get('speed', missing):.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['per_s']:.1f}",
            f"x {row.get('generation', missing):.2f}",
            f"{slowest:.2f}-{fastest:.2f}",
            f"{row['peak_mib']:.0f} (x{row.get('memory', missing):.2f})",
            f"{row['accuracy']:.3f}",
        )
    Console(width=120).print(table)


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
