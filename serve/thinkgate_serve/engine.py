"""What the server needs of an inference engine, and vLLM behind it.

Knows nothing of HTTP, of reasoning or of the gate: token ids go in, text and token ids come out.
vLLM's server modules move every few releases, so only its engine, inputs and sampling-params
modules are imported, inside functions. How its process starts is `launch.py`'s.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from thinkgate.errors import ServerError
from thinkgate_serve.launch import is_cpu_build, launch, require_vllm
from thinkgate_serve.outlet import Outlet
from thinkgate_serve.start_failures import first_line
from thinkgate_serve.trials import Trials, TrialsFailed

__all__ = [
    "SCHEMA_SECONDS",
    "BoundCalls",
    "Constraint",
    "Delta",
    "Engine",
    "EngineDead",
    "Finish",
    "NoSchema",
    "RequestFailed",
    "RequestRefused",
    "Sampling",
    "TokenLogprob",
    "Tokenizer",
    "VLLMEngine",
]


SCHEMA_SECONDS = 30
"""Processor time that trying a client's schema may take."""


class Finish(StrEnum):
    """Why the engine stopped generating."""

    STOP = "stop"
    LENGTH = "length"


class EngineDead(Exception):
    """The engine process is gone; it does not come back, the server must be restarted."""


class RequestFailed(Exception):
    """The engine gave up on this request alone; another may well succeed."""


class RequestRefused(Exception):
    """The engine cannot run this request; the message says which value is at fault."""


class NoSchema(RequestRefused):
    """What was given for a JSON schema is none."""


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


@dataclass(frozen=True, slots=True)
class BoundCalls:
    """A text that is free but for the calls in it, whose arguments have a shape."""

    format: Mapping[str, Any]
    """Of such a text, as a format of xgrammar's structural tags."""
    arguments: Mapping[str, Mapping[str, Any]]
    """The JSON schemas in it, by function."""

    def unless_begun_with(self, opening: str) -> "BoundCalls":
        """The same, or any text at all that begins with `opening`."""
        begun = [
            {"type": "regex", "pattern": r"\s*"},
            {"type": "const_string", "value": opening},
            {"type": "any_text"},
        ]
        either = [{"type": "sequence", "elements": begun}, self.format]
        return BoundCalls({"type": "or", "elements": either}, self.arguments)


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
    constraint: Constraint | BoundCalls | None = None
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

    async def check_constraint(self, constraint: Constraint | BoundCalls) -> None:
        """RequestRefused when texts cannot be held to this shape, or not at a bearable price;
        RequestFailed when that cannot be told."""
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

    def __init__(self, llm: Any, trials: Trials) -> None:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import (
            RequestOutputKind,
            SamplingParams,
            StructuredOutputsParams,
        )
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm, self._trials = llm, trials
        self._prompt = tokens_input
        self._params = SamplingParams
        self._structured = StructuredOutputsParams
        self._delta = RequestOutputKind.DELTA
        self._dead_error = EngineDeadError
        self._skip_special = True
        self._shutdown_seconds = 5.0
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
        schema_seconds: int = SCHEMA_SECONDS,
        fork: bool = True,
    ) -> "VLLMEngine":
        """Load a folder or Hub id; `options` are fields of vLLM's `AsyncEngineArgs`.

        Text of the tokens in `visible` is kept even where the tokenizer calls them special.
        `schema_seconds` of processor time may go into trying a client's schema.
        Call it outside any event loop; for a second engine, from a thread that outlives it.
        """
        require_vllm()
        engine = cls(*launch(model, options, schema_seconds=schema_seconds, fork=fork))
        if is_cpu_build():
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
                f"vLLM cannot load the adapter {self._lora.lora_path}: {first_line(error)}"
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
        try:
            prompt = self._prompt(prompt_ids)
            queue = await self._llm.add_request(request_id, prompt, params, lora_request=self._lora)
            outlet = Outlet(self._llm, queue)
            try:
                finish: Finish | None = None
                while finish is None:
                    text, token_ids, reason, logprobs = await outlet.next()
                    finish = None if reason is None else _finish(reason, sampling)
                    top = _logprobs(token_ids, logprobs, sampling.logprobs) if logprobs else ()
                    yield Delta(text, token_ids, finish, top)
            finally:
                await outlet.close()
        except self._dead_error as error:
            raise EngineDead from error
        except Exception as error:
            if _is_clients_fault(error):
                raise RequestRefused(str(error)) from error
            raise

    async def check_constraint(self, constraint: Constraint | BoundCalls) -> None:
        if isinstance(constraint, BoundCalls):
            shape = _structural_tag(constraint)
        elif constraint.schema is not None:
            shape = {"schema": constraint.schema}
        else:
            return
        try:
            finding = await self._trials.find(shape)
        except TrialsFailed as error:
            raise RequestFailed(str(error)) from error
        if finding.problem is not None:
            raise (NoSchema if finding.no_schema else RequestRefused)(finding.problem)
        await asyncio.to_thread(self._validate, constraint)

    def _validate(self, constraint: Constraint | BoundCalls) -> None:
        """As vLLM does when the request comes, and before anything is generated for it."""
        from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

        try:
            sampling = Sampling(max_tokens=1, constraint=constraint)
            validate_xgrammar_grammar(self._to_params(sampling))
        except Exception as error:
            if _is_clients_fault(error):
                raise RequestRefused(first_line(error)) from error
            raise

    def shutdown(self) -> None:
        self._trials.stop()
        self._llm.shutdown(timeout=self._shutdown_seconds)

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
            # To vLLM a seed of -1 is none.
            seed=None if sampling.seed is None else sampling.seed % 2**63,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            logit_bias=None if bias is None else dict(bias),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            structured_outputs=self._shape(sampling.constraint),
            skip_special_tokens=self._skip_special and not sampling.keep_special,
            output_kind=self._delta,
            skip_clone=True,  # nobody else holds it
        )

    def _shape(self, constraint: Constraint | BoundCalls | None) -> Any:
        if constraint is None:
            return None
        if isinstance(constraint, BoundCalls):
            return self._structured(structural_tag=json.dumps(_structural_tag(constraint)))
        if constraint.schema is None:
            return self._structured(json_object=True)
        return self._structured(json=dict(constraint.schema))


def _structural_tag(calls: BoundCalls) -> dict[str, Any]:
    return {"type": "structural_tag", "format": calls.format}


def _finish(reason: str, sampling: Sampling) -> Finish:
    if reason in (Finish.STOP, Finish.LENGTH):
        return Finish(reason)
    if reason == "abort":
        raise EngineDead("the engine is being stopped")
    if sampling.constraint is not None:
        # Grammars are compiled in the engine, and not all that can be parsed can be compiled.
        raise RequestRefused("the schema cannot be used: vLLM cannot compile it")
    raise RequestFailed(reason)


def _logprobs(
    token_ids: Sequence[int], given: Sequence[Any], top: int | None
) -> Sequence[TokenLogprob]:
    found: list[TokenLogprob] = []
    for token_id, ranked in zip(token_ids, given, strict=True):
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
