"""What clients may send: strict wire models, so that nothing asked for is silently ignored.

Owns names, types and ranges of request fields. A field that OpenAI has and this server does not
support may be sent with its neutral value (`"n": 1`, `"tools": null`) and is refused otherwise.
"""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "Message", "TokenizeRequest"]

MAX_CHOICES = 128
MAX_SAMPLES = 64
MAX_STOPS = 32
MAX_LOGPROBS = 20
LONGEST_TOKEN_ID = 18
MAX_MESSAGES = 10_000
MAX_PROMPTS = 1024
MAX_KEYS = 1024
"""Of one object, and tokens with a bias."""

T = TypeVar("T")

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list that is refused at its first bad item: to report each of a million takes gigabytes."""


class Wire(BaseModel):
    """Base of request bodies: unknown fields are errors, and "1" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """OpenAI fields this endpoint lacks, with the values that ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > MAX_KEYS:
            raise ValueError(f"an object with {len(data)} keys, {MAX_KEYS} at most")
        kept: dict[str, Any] = {}
        for key, value in data.items():
            neutral = cls.unsupported.get(key)
            if neutral is None:
                kept[key] = value
            elif value is not None and value not in neutral:
                raise Unsupported(key)
        return kept


class Unsupported(ValueError):
    """A known OpenAI field that this server does not implement was set."""

    def __init__(self, field: str) -> None:
        super().__init__(f"'{field}' is not supported by this server")
        self.field = field


class TextPart(Wire):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """One turn of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "type": ("text",),  # lm-eval writes it
        "name": (),
        "refusal": (),
        "audio": (),
        "annotations": ([],),
        "function_call": (),
        "tool_calls": ([],),
        "tool_call_id": (),
        "reasoning_details": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[TextPart] | None = None
    reasoning_content: str | None = None
    """An earlier turn's thought; whether the model sees it is the chat template's decision."""
    reasoning: str | None = None
    """The same under vLLM's name."""

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates expect it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        turn: dict[str, Any] = {"role": self.role, "content": content or ""}
        thought = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        if thought is not None:
            turn |= {"reasoning_content": thought, "reasoning": thought}
        return turn


class StreamOptions(Wire):
    """Options of a streamed response."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False
    """Send one more chunk at the end, with the usage and no choices."""


class Generate(Wire):
    """What chat and plain completions share."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 and -1 are off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Choice i is drawn with seed + i."""
    stop: str | Many[str] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Token id, as text, to bias."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted for compatibility; nothing is stored by user."""

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if any(not text for text in stops):
            raise ValueError("a stop string must not be empty")
        if len(stops) > MAX_STOPS:
            raise ValueError(f"{len(stops)} stop strings, {MAX_STOPS} at most")
        return stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _token_ids(cls, bias: Any) -> Any:
        if not isinstance(bias, dict):
            return bias
        if len(bias) > MAX_KEYS:
            raise ValueError(f"{len(bias)} tokens have a bias, {MAX_KEYS} at most")
        for key in bias:
            if not (key.isascii() and key.isdigit() and len(key) <= LONGEST_TOKEN_ID):
                raise ValueError(f"'{key[:40]}' is not a token id")
        return bias

    @model_validator(mode="after")
    def _options_need_stream(self) -> "Generate":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple, whatever shape they were sent in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextFormat(Wire):
    """Any answer."""

    type: Literal["text"]


class JsonObjectFormat(Wire):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Wire):
    """A JSON schema and what it is called."""

    name: str
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Every schema is kept to strictly."""


class JsonSchemaFormat(Wire):
    """An answer that fits a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ChatRequest(Generate):
    """`POST /v1/chat/completions`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none",),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none",),
        "verbosity": ("medium",),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "store": (False,),
        "metadata": ({},),
        "service_tier": ("auto", "default"),
        "web_search_options": (),
    }

    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`; reasoning counts in both."""
    logprobs: bool | None = None
    """Report how likely each token of the answer was; the thought's are left out."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    """The shape of the answer; the thought is free."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    """A thinking budget as a share of the tokens that may be generated."""
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    """Tokens after which the thought is closed by force and the answer begins."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Passed to the chat template, such as `{"enable_thinking": false}`."""
    include_reasoning: bool = True
    """False leaves the thought out of the response; it is still generated and counted."""
    stop_in_reasoning: bool = False
    """Let stop strings end the thought too; by default they bind to the answer only."""
    consensus: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    """Draw so many samples and return one whose answer most of them gave."""

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        a, b = self.max_tokens, self.max_completion_tokens
        if a is not None and b is not None and a != b:
            raise ValueError("max_tokens and max_completion_tokens are both set and differ")
        return self

    @model_validator(mode="after")
    def _asks_one_thing(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.thinking_budget is not None and self.reasoning_effort is not None:
            raise ValueError("give either thinking_budget or reasoning_effort")
        return self

    @model_validator(mode="after")
    def _can_be_voted_on(self) -> "ChatRequest":
        if self.consensus is None:
            return self
        if (self.n or 1) > 1:
            raise ValueError("consensus returns one choice; leave n out, or at 1")
        if self.response_format is not None and self.response_format.type != "text":
            raise ValueError(
                "consensus votes with the verifier of final answers, which reads no JSON; "
                "leave response_format out"
            )
        return self

    @property
    def limit(self) -> int | None:
        """How many tokens may be generated, if the client said so."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Generate):
    """`POST /v1/completions`: raw text in, raw text out, tags included."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "echo": (False,),
        "best_of": (1,),
        "suffix": (),
    }

    prompt: str | Many[str] | Many[int] | Many[Many[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many of the likeliest tokens to list beside each generated one."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _not_too_many(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if not prompt or any(item in ("", []) for item in prompt):
                raise ValueError("the prompt must not be empty")
            if not isinstance(prompt[0], int) and len(prompt) > MAX_PROMPTS:
                raise ValueError(f"{len(prompt)} prompts, {MAX_PROMPTS} at most")
        return prompt


class TokenizeRequest(Wire):
    """`POST /tokenize`: a conversation as the model sees it, or plain text."""

    model: str | None = None
    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    """For `prompt` only; chat templates write their own."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_input(self) -> "TokenizeRequest":
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        return self


class DetokenizeRequest(Wire):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Many[Annotated[int, Field(ge=0)]]
