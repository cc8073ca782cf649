"""Why vLLM did not start, in one sentence, with the fix where the cause is a common one.

Owns the way of a reason from the processes vLLM starts, which tell the server no more than that
something failed, to the server: whichever fails first leaves it in a file. It does not know how
those processes are started.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import ValidationError

__all__ = ["explain", "first_line", "report_to"]

MORE_CACHE = (
    "lower --max-model-len, or raise --engine.gpu_memory_utilization (on a CPU the environment's "
    "VLLM_CPU_KVCACHE_SPACE, in GiB)"
)
LESS_MEMORY = (
    "lower --engine.gpu_memory_utilization, --engine.max_num_seqs or --max-model-len, or cut the "
    "model over several GPUs with --engine.tensor_parallel_size"
)
FIXES = (
    # What vLLM or torch says; where its own advice (on other options) begins; ours.
    ("cache is needed", " Try increasing", MORE_CACHE),
    ("No available memory for the cache blocks", " Try increasing", MORE_CACHE),
    (
        "less than desired GPU memory",
        " Decrease GPU",
        "end the other programs on this GPU, or lower --engine.gpu_memory_utilization",
    ),
    (
        "Error in memory profiling",
        " This happens",
        "another program on this GPU freed memory meanwhile; start again when it is done",
    ),
    ("less than requested memory for kv", " Decrease --kv", "lower VLLM_CPU_KVCACHE_SPACE"),
    ("out of memory", " Of the allocated memory", LESS_MEMORY),
    (
        "Error while deserializing header",
        " (",
        "a weights file is damaged or cut short, so restore it",
    ),
    (
        "Engine core initialization failed",
        " See root cause above",
        "its process gave no reason, so see the log above, and whether memory ran out",
    ),
)


def report_to(file: Path) -> None:
    """In a process that is to be an engine: leave in `file` why it, or a worker it forks, does not
    start, and end without the traceback."""
    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor.multiproc_executor import WorkerProc

    for process in (EngineCoreProc, WorkerProc):
        process.__init__ = _reporting(process.__init__, file)


def explain(error: Exception) -> str:
    """What went wrong and what to do; the traceback is logged where vLLM's level is INFO."""
    logging.getLogger("vllm.engine").info("The engine did not start.", exc_info=error)
    said = first_line(error)
    for mark, advice, fix in FIXES:
        if mark in said:
            return f"{said.partition(advice)[0].rstrip('.')}; {fix}"
    if isinstance(error, ValueError):  # of what is given, and worded for who gave it
        return said
    return f"{type(error).__name__}: {said.rstrip('.')} (VLLM_LOGGING_LEVEL=INFO shows where)"


def first_line(error: BaseException) -> str:
    """What an error of vLLM's says, in one sentence; of several mistakes the first."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        setting = ".".join(map(str, first["loc"]))
        return f"--engine.{setting} {first['input']!r}: {reason}" if setting else reason
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) if lines else type(error).__name__


def _reporting(start: Callable[..., None], file: Path) -> Callable[..., None]:
    @wraps(start)
    def report(*args: Any, **kwargs: Any) -> None:
        try:
            start(*args, **kwargs)
        except Exception as error:
            # An engine whose worker failed fails as well, later and knowing less.
            with suppress(FileExistsError), file.open("x", encoding="utf-8") as reason:
                reason.write(explain(error))
            raise SystemExit(1) from None

    return report
