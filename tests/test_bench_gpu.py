"""bench/gpu for a CUDA host without network: everything it lacks is packed, and the script runs."""

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GPU = Path(__file__).parent.parent / "bench" / "gpu"
HOST = ("torch", "transformers", "peft", "accelerate")
"""What the host has, with all that these need."""
OURS = ("trl", "datasets", "math-verify", "pydantic", "rich", "jinja2", "pyyaml", "regex")
"""What training imports beside that."""
SERVING = (
    "fastapi",
    "uvicorn",
    "openai",
    "aiosqlite",
    "prometheus-client",
    "model-signing",
    "pyopenssl",
)
"""What serving, asking and signing import beside vLLM, which has its own needs."""


def needed(*names: str) -> set[str]:
    """The packages and everything they require on this platform."""
    found: set[str] = set()
    queue = [(canonicalize_name(name), frozenset[str]()) for name in names]
    while queue:
        name, extras = queue.pop()
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or ():
            one = Requirement(line)
            asked = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if one.marker is None or any(one.marker.evaluate(extra) for extra in asked):
                queue.append((canonicalize_name(one.name), frozenset(one.extras)))
    return found


def test_every_package_that_the_host_lacks_is_packed() -> None:
    text = (GPU / "pack.sh").read_text()
    listed = re.search(r"wanted=\(([^)]*)\)", text)
    assert listed
    packed = {canonicalize_name(name) for name in listed[1].split()}
    # fsspec's [http] is for remote files; `datasets` imports it when it opens one.
    assert needed(*OURS) - needed(*HOST) - needed("aiohttp") <= packed


def test_what_serving_leaves_out_is_nothing_it_needs() -> None:
    text = (GPU / "pack.sh").read_text()
    left_out = dict(re.findall(r"local (spared|lm_eval)='([^']*)'", text))
    pins = (GPU.parent.parent / "requirements" / "cuda.txt").read_text()
    names = re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)
    skipped = {
        canonicalize_name(name)
        for pattern in left_out.values()
        for name in names
        if re.fullmatch(pattern, name)
    }
    assert {"flashinfer-python", "lm-eval"} <= skipped
    assert not skipped & needed(*OURS, *SERVING)


@pytest.mark.slow
def test_the_script_trains_and_measures_at_a_tiny_size() -> None:
    settings = ["--set", "sft.trl.max_steps=4", "grpo.trl.max_steps=2"]
    done = subprocess.run(
        [sys.executable, GPU / "sft_grpo.py", "--tiny", *settings],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["device"] == "cpu" and "parameters" in result["missed"]
    for stage in ("sft", "grpo"):
        assert result[stage]["tokens_per_second"] > 0
    assert 0 <= result["accuracy_after"] <= 1
