"""An engine that does not start ends the server with the cause in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from thinkgate_serve.start_failures import explain


@pytest.mark.slow
def test_the_engine_process_names_the_cause(gated_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "thinkgate", "serve", str(gated_checkpoint), "--port", "0"]
    command += ["--engine.kv_cache_memory_bytes", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"thinkgate: vLLM could not load {gated_checkpoint}: To serve at")
    assert "KV cache is needed" in sentence and "maximum model length is" in sentence
    assert "; lower --max-model-len, or raise --engine.gpu_memory_utilization" in sentence
    assert "Try increasing" not in sentence and "See " not in sentence


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of "
    "which 1.15 GiB is free. Of the allocated memory 60.00 GiB is allocated by PyTorch, and 1.00 "
    "GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
    "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
FREE_MEMORY = (
    "Free memory on device cuda:0 (20.15/79.25 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 72.91 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
    "other processes."
)
PROFILING = (
    "Error in memory profiling. Initial free memory 122.15 GiB, current free memory 139.03 GiB. "
    "This happens when other processes sharing the same container release GPU memory while vLLM "
    "is profiling during initialization."
)


@pytest.mark.parametrize(
    ("error", "begins", "ends"),
    [
        (RuntimeError(OUT_OF_MEMORY), "CUDA out of memory", "--engine.tensor_parallel_size"),
        (ValueError(FREE_MEMORY), "Free memory on", "lower --engine.gpu_memory_utilization"),
        (AssertionError(PROFILING), "Error in memory", "start again when it is done"),
        (
            ModuleNotFoundError("No module named 'flashinfer'"),
            "ModuleNotFoundError: No module named 'flashinfer'",
            "(VLLM_LOGGING_LEVEL=INFO shows where)",
        ),
        (AssertionError(), "AssertionError", "shows where)"),
        (ValueError("heads (4) must be divisible by 3."), "heads (4)", "divisible by 3."),
    ],
)
def test_a_cause_comes_with_its_fix(error: Exception, begins: str, ends: str) -> None:
    said = explain(error)
    assert said.startswith(begins) and said.endswith(ends)
    assert "\n" not in said and "Decrease GPU" not in said and "PYTORCH" not in said
