"""The gate end to end, on a real model and real vLLM: `make gate-demo`.

Three candidates go through `docs/ci/gate.sh`, as in CI, and must leave with these exit codes:

    0  GRPO against the base it was trained from: better
    3  a copy of GRPO against GRPO: not worse, and not better
    1  GRPO with noise added to its weights against GRPO: worse

    python bench/gate_demo.py [--run runs/quickstart] [--out runs/gate-demo] [--noise 0.4]

`--run` has `base` and `grpo` of a quickstart; where it has not, they are trained first.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from thinkgate.checkpoint import META, load_checkpoint, model_digest, write_manifest
from thinkgate.checkpoint import writing_checkpoint as writing
from thinkgate.console import console

CI = Path(__file__).resolve().parent.parent / "docs" / "ci"


def main() -> int:
    """Gate all three; exit 1 where one leaves with another exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("runs/gate-demo"))
    parser.add_argument("--noise", type=float, default=0.4, help="of each weight's spread")
    parser.add_argument("--limit", type=int, default=500, help="problems of each gate")
    args = parser.parse_args()
    base, grpo = args.run / "base", args.run / "grpo"
    if not (grpo / META).is_dir():
        train = [sys.executable, "-m", "thinkgate", "train", "quickstart", "--out", str(args.run)]
        subprocess.run(train, check=True)
    codes: dict[str, int] = {}
    for name, noise, incumbent in (
        ("better", 0.0, base),
        ("copy", 0.0, grpo),
        ("noised", args.noise, grpo),
    ):
        # Never the original: a signature over its folder would not hold any more.
        candidate = changed(grpo, args.out / name, noise)
        codes[name] = gate(candidate, incumbent, args.out / f"{name}-report", args.limit)
    console.print(f"exit codes: {codes}")
    print(json.dumps({"bench": "gate_demo", "exit_codes": codes}))
    return 0 if codes == {"better": 0, "copy": 3, "noised": 1} else 1


def gate(candidate: Path, incumbent: Path, report: Path, limit: int) -> int:
    """The exit code of `docs/ci/gate.sh`."""
    console.rule(f"{candidate} against {incumbent}", align="left")
    settings = {
        "THINKGATE": f"{sys.executable} -m thinkgate",
        "CANDIDATE": str(candidate),
        "AGAINST": str(incumbent),
        "POLICY": str(CI / "replace.yaml"),
        "REPORT": str(report),
        "OPTIONS": f"--no-sign --limit {limit}",
        "EVAL_OPTIONS": f"--limit {limit}",
    }
    command = ["bash", str(CI / "gate.sh")]
    return subprocess.run(command, env=os.environ | settings, check=False).returncode


def changed(source: Path, target: Path, noise: float) -> Path:
    """A checkpoint like `source`, each tensor with Gaussian noise of `noise` times its spread."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    checkpoint = load_checkpoint(source)
    shutil.rmtree(target, ignore_errors=True)
    with writing(target) as partial:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(META), dirs_exist_ok=True)
        weights = partial / "model.safetensors"
        tensors = {
            name: tensor + noise * tensor.std(correction=0) * torch.randn_like(tensor)
            for name, tensor in load_file(weights).items()
        }
        save_file(tensors, weights, metadata={"format": "pt"})
        manifest = checkpoint.manifest.model_copy(
            update={
                "name": target.name,
                "parent": checkpoint.digest,
                "model_digest": model_digest(partial),
            }
        )
        write_manifest(partial, manifest, checkpoint.seen_prompts())
    return target


if __name__ == "__main__":
    sys.exit(main())
