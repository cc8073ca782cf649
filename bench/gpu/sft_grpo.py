"""One CUDA GPU: a from-scratch model of at least 50 M parameters, SFT then GRPO, measured.

Goals:
  - under 10 minutes in all;
  - GRPO raises the sampled accuracy on held-out sums, its 95 % interval above 0;
  - nothing is said about stale or diverging weights by the health watch.

    bench/gpu/run.sh [--check] [--quick] [--out DIR] [--start CHECKPOINT]
                     [--set sft.trl.max_steps=100 grpo.trl.use_vllm=true …]

`--quick` cuts the steps to a tenth. `--out` keeps the checkpoints, `--start` takes the SFT stage's
from an earlier run. `--tiny` shrinks the model as well, to try the script where no GPU is; its
numbers mean nothing. The last line is one JSON object with every number.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from thinkgate.answers import Verdict, check
from thinkgate.checkpoint import Checkpoint, load_checkpoint
from thinkgate.config import apply_overrides, parse, read_yaml
from thinkgate.console import console
from thinkgate.format import split
from thinkgate.problems import Arithmetic, load
from thinkgate_train.recipe import Recipe
from thinkgate_train.run import train

HERE = Path(__file__).parent
MAX_MINUTES, MIN_PARAMETERS, PROBLEMS = 10.0, 50e6, 1000
TINY = (
    "sft.model.scratch={hidden_size: 64, intermediate_size: 128, layers: 1, kv_heads: 1}",
    "sft.trl.per_device_train_batch_size=16",
    "sft.data.count=640",
    "grpo.data.count=64",
    "grpo.trl.per_device_train_batch_size=16",
    "sft.trl.bf16=false",
    "grpo.trl.bf16=false",
    "grpo.preflight.enabled=false",  # it would refuse a policy that knows nothing
)


def main() -> int:
    """Train both stages, measure before and after, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument("--tiny", action="store_true", help="a toy model, to try the script")
    parser.add_argument("--out", type=Path, help="keep both checkpoints in this folder")
    parser.add_argument("--start", type=Path, help="an SFT checkpoint: only GRPO is run")
    parser.add_argument("--set", nargs="*", default=[], metavar="stage.key=value")
    args = parser.parse_args()
    import torch

    changes = [*(TINY if args.tiny else ()), *args.set]
    problems = 64 if args.tiny else PROBLEMS
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        began = time.monotonic()
        if args.start is None:
            sft = stage("sft", out / "sft", changes, args.quick)
        else:
            sft = measured(load_checkpoint(args.start), 0.0)
        before = accuracy(sft["checkpoint"], problems)
        changes.append(f"grpo.model.path={sft['checkpoint'].path}")
        grpo = stage("grpo", out / "grpo", changes, args.quick)
        after = accuracy(grpo["checkpoint"], problems)
        minutes = (time.monotonic() - began) / 60
    gain = after - before
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / problems)
    health = grpo["checkpoint"].manifest.health
    result = {
        "bench": "gpu_sft_grpo",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "parameters": sft["parameters"],
        "minutes": minutes,
        "accuracy_before": before,
        "accuracy_after": after,
        "gain": gain,
        "gain_low": gain - 1.96 * error,
        "sft": {k: v for k, v in sft.items() if k != "checkpoint"},
        "grpo": {k: v for k, v in grpo.items() if k != "checkpoint"},
        "findings": [f.symptom for f in health.findings] if health else [],
    }
    missed = [
        name
        for name, reached in (
            ("minutes", minutes < MAX_MINUTES),
            ("parameters", sft["parameters"] >= MIN_PARAMETERS),
            ("gain", result["gain_low"] > 0),
            ("findings", not result["findings"]),
        )
        if not reached
    ]
    show(result, missed)
    return 1 if args.check and missed else 0


def stage(name: str, out: Path, changes: list[str], quick: bool) -> dict[str, Any]:
    """Run one stage; its checkpoint, seconds, tokens per second and peak GPU memory in GiB."""
    import torch

    mine = [c.removeprefix(f"{name}.") for c in changes if c.startswith(f"{name}.")]
    data = apply_overrides(read_yaml(HERE / f"{name}.yaml"), mine)
    if quick:
        data["trl"]["max_steps"] = max(2, data["trl"]["max_steps"] // 10)
        data["trl"]["warmup_steps"] = 2
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    checkpoint = train(parse(Recipe, data, name), out)
    assert checkpoint is not None
    return measured(checkpoint, time.monotonic() - began)


def measured(checkpoint: Checkpoint, seconds: float) -> dict[str, Any]:
    """The row of a stage that took `seconds`; zero for one that an earlier run made."""
    import torch

    tokens = checkpoint.manifest.metrics.get("num_tokens", 0.0)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    size = sum(f.stat().st_size for f in checkpoint.path.glob("*.safetensors"))
    return {
        "checkpoint": checkpoint,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "peak_gib": peak,
        "parameters": size // 4,  # saved in float32
    }


def accuracy(checkpoint: Checkpoint, count: int) -> float:
    """Share of held-out sums answered right at temperature 1, by the one verifier."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.path)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    model.to(device).eval()
    problems = load(
        Arithmetic(source="arithmetic", half="eval", count=count, min_terms=8, max_terms=10)
    )
    torch.manual_seed(0)
    right = 0
    for first in range(0, count, 250):
        batch = problems[first : first + 250]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": p.prompt}], tokenize=False, add_generation_prompt=True
            )
            for p in batch
        ]
        asked = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids = model.generate(
            **asked.to(device),
            max_new_tokens=128,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
        )
        said = tokenizer.batch_decode(
            ids[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            check(split(text).answer, p.gold) is Verdict.CORRECT
            for text, p in zip(said, batch, strict=True)
        )
    return right / count


def show(result: dict[str, Any], missed: list[str]) -> None:
    """The table, then the JSON."""
    table = Table("stage", "seconds", "tokens/s", "peak GiB", "accuracy")
    for name, key in (("sft", "accuracy_before"), ("grpo", "accuracy_after")):
        row = result[name]
        table.add_row(
            name,
            f"{row['seconds']:.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['peak_gib']:.1f}",
            f"{result[key]:.1%}",
        )
    console.print(table)
    print(json.dumps({**result, "missed": missed}))


if __name__ == "__main__":
    sys.exit(main())
