"""Does GRPO really learn? The quickstart with seeds 0, 1, 2, each from nothing.

Goals, for every seed:
  - on 1,000 held-out problems sampled at temperature 1, the candidate beats its cold-start base
    by at least 8 points, and the paired 95 % interval is above 0;
  - exit 0 within 12 minutes on 2 cores and 6 GiB (installation excluded);
  - the share of step-by-step answers rises during GRPO.

    python bench/quickstart_seeds.py [--check] [--quick] [--seeds 0 1 2]

`--quick` runs seed 0 at `--fast` size; it still trains for real, so it takes minutes, not one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from thinkgate.checkpoint import META
from thinkgate.console import console

MIN_GAIN, MAX_MINUTES, MAX_GIB = 0.08, 12.0, 6.0


def main() -> int:
    """Run the seeds, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--quick", action="store_true", help="seed 0 at --fast size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    rows = [measure(seed, args.quick) for seed in seeds]
    table = Table(
        "seed", "exit", "minutes", "peak GiB", "base", "candidate", "gain", "95 %", "steps"
    )
    for row in rows:
        table.add_row(
            str(row["seed"]),
            str(row["exit"]),
            f"{row['minutes']:.1f}",
            f"{row['peak_gib']:.1f}",
            *(f"{row[k]:.3f}" for k in ("base", "candidate", "gain")),
            f"{row['low']:+.3f} … {row['high']:+.3f}",
            f"{row['step_share'][0]:.2f} → {row['step_share'][1]:.2f}",
        )
    console.print(table)
    missed = [row["seed"] for row in rows if not reached(row)]
    print(json.dumps({"bench": "quickstart_seeds", "rows": rows, "missed": missed}))
    return 1 if args.check and missed else 0


def reached(row: dict[str, Any]) -> bool:
    """Whether every goal holds for one seed."""
    return (
        row["exit"] == 0
        and row["gain"] >= MIN_GAIN
        and row["low"] > 0
        and row["minutes"] <= MAX_MINUTES
        and row["peak_gib"] <= MAX_GIB
        and row["step_share"][1] > row["step_share"][0]
    )


def measure(seed: int, fast: bool) -> dict[str, Any]:
    """One quickstart in a folder of its own, its peak memory (all its processes) and results."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command = [sys.executable, "-m", "thinkgate", "quickstart", "--seed", str(seed)]
        command += ["--out", str(root / "run"), "--registry", str(root / "registry")]
        began = time.monotonic()
        process = subprocess.Popen([*command, *(["--fast"] if fast else [])])
        peak = PeakMemory(process.pid)
        code = process.wait()
        minutes = (time.monotonic() - began) / 60
        folder = root / "run" / "grpo" / META
        decision = json.loads((folder / "decision.json").read_text())
        gain = next(r for r in decision["rules"] if r["rule"] == "superiority")
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        share = [row["step_share"] for row in steps if "step_share" in row]
        accuracy = {
            who: _accuracy(root / "run" / who / META / "evals" / "arithmetic.jsonl")
            for who in ("base", "grpo")
        }
    return {
        "seed": seed,
        "exit": code,
        "minutes": minutes,
        "peak_gib": peak.stop() / 2**30,
        "base": accuracy["base"],
        "candidate": accuracy["grpo"],
        "gain": gain["estimate"],
        "low": gain["low"],
        "high": gain["high"],
        "step_share": [sum(share[:5]) / 5, sum(share[-5:]) / 5],
    }


def _accuracy(records: Path) -> float:
    verdicts = [json.loads(line)["verdict"] for line in records.read_text().splitlines()]
    return sum(v == "correct" for v in verdicts) / len(verdicts)


class PeakMemory:
    """The largest sum of proportional memory (PSS) over a process and its descendants, bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stop = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop watching; the peak so far."""
        self._stop.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._peak = max(self._peak, sum(map(_pss, _family(self._pid))))


def _family(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(
                    Path(f"/proc/{entry}/stat").read_text().split(") ")[1].split()[1]
                )
            except (OSError, IndexError):
                continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family)


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    sys.exit(main())
