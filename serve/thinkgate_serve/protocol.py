"""What clients may send: strict wire models, so that nothing asked for is silently ignored.

Owns names, types and ranges of request fields. A field that OpenAI has and this server does not
support may be sent with its neutral value (`"n": 1`, `"tools": null`) and is refused otherwise.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from thinkgate_serve.elsewhere import (
    CHAT_ELSEWHERE,
    COMPLETION_ELSEWHERE,
    CONVERSATION_ELSEWHERE,
    ELSEWHERE,
    Absent,
)
from thinkgate_serve.messages import (
    MAX_KEYS,
    MAX_MESSAGES,
    Body,
    JsonObject,
    Many,
    Message,
    NamedTool,
    Refused,
    Tool,
    ToolChoice,
    Wire,
    tag_of,
)

__all__ = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "History", "TokenizeRequest"]

MAX_CHOICES = 128
MAX_SAMPLES = 64
MAX_STOPS = 32
MAX_LOGPROBS = 20
LONGEST_TOKEN_ID = 18
MAX_PROMPTS = 1024


class StreamOptions(Wire):
    """Options of a streamed response."""

    unsupported: ClassVar[dict[str, Absent]] = {
        "include_obfuscation": Absent(False),
        "continuous_usage_stats": Absent(False, instead="use include_usage, for the last chunk"),
    }

    include_usage: bool = False
    """Send one more chunk at the end, with the usage and no choices."""


class Sample(Body):
    """How to draw a completion: what all endpoints share."""

    unsupported: ClassVar[dict[str, Absent]] = ELSEWHERE

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**63)] | None = None
    """0 and -1 are off."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Choice i is drawn with seed + i."""
    stop: str | Many[str] | None = None
    """Text that ends the answer; it is left out."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Token id, as text, to bias."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    """Go on after the end-of-text token, to the limit."""
    stream: bool | None = None
    """Send the response as server-sent events while it is made."""
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

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple, whatever shape they were sent in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Generate(Sample):
    """What chat and plain completions share."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None

    asks_in: ClassVar[str] = "prompt"
    """The field that is the prompt."""

    @model_validator(mode="after")
    def _options_need_stream(self) -> "Generate":
        if self.stream_options is not None and not self.stream:
            raise Refused("stream_options", "it is only allowed when stream is true")
        return self

    @property
    def limit_name(self) -> str:
        """The field that says how many tokens may be generated."""
        return "max_tokens"

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
    json_schema: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None
    """Every schema is kept to strictly."""


class JsonSchemaFormat(Wire):
    """An answer that fits a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


FORMATS = Discriminator(
    tag_of,
    custom_error_type="format_type",
    custom_error_message="a format is of type 'text', 'json_object' or 'json_schema'",
)

ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    FORMATS,
]


class History(StrEnum):
    """What the model sees of the thoughts of earlier turns."""

    TEMPLATE = "template"
    """What its chat template shows of them."""
    STRIP = "strip"
    """Nothing."""
    KEEP = "keep"
    """All of them, also where the template would leave them out."""


Effort = Literal["none", "minimal", "low", "medium", "high"]


class Conversing(Sample):
    """What both ways to hold a conversation share."""

    unsupported: ClassVar[dict[str, Absent]] = {
        **CONVERSATION_ELSEWHERE,
        "moderation": Absent(),
        "prompt_cache_options": Absent(),
        "prompt_cache_retention": Absent(),
        "service_tier": Absent("auto", "default"),
        "store": Absent(False, instead="nothing is stored; send false, or leave it out"),
    }

    parallel_tool_calls: bool | None = None
    """False allows one call an answer."""
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    """Tokens after which the thought is closed by force and the answer begins."""
    reasoning_history: Annotated[History, Field(strict=False)] = History.TEMPLATE
    """Whether the model sees the thoughts of earlier turns."""
    chat_template_kwargs: JsonObject | None = None
    """Variables that the model's chat template reads, such as `{"enable_thinking": false}`."""
    include_reasoning: bool = True
    """False leaves the thought out of the response; it is still generated and counted."""
    stop_in_reasoning: bool = False
    """Let stop strings end the thought too; by default they bind to the answer only."""
    prompt_cache_key: str | None = None
    """Accepted for compatibility; what prompts share is found without it."""
    safety_identifier: str | None = None
    """Accepted for compatibility; nothing is stored by it."""


class ChatRequest(Generate, Conversing):
    """`POST /v1/chat/completions`."""

    unsupported: ClassVar[dict[str, Absent]] = {
        **CHAT_ELSEWHERE,
        "functions": Absent([], instead="use tools"),
        "function_call": Absent("none", instead="use tool_choice"),
        "verbosity": Absent("medium", instead="say in a message how long the answer is to be"),
        "modalities": Absent(["text"]),
        "audio": Absent(),
        "prediction": Absent(),
        "metadata": Absent({}, instead="nothing is stored"),
        "web_search_options": Absent(),
    }

    asks_in: ClassVar[str] = "messages"
    strict_by_default: ClassVar[bool] = False
    """Whether functions that do not say are strict where that can be kept to."""

    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`; reasoning counts in both."""
    logprobs: bool | None = None
    """Report how likely each token of the answer was; the thought's are left out."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    logprobs_in_reasoning: bool = False
    """Report those of the thought's tokens as well, apart, as `logprobs.reasoning`."""
    response_format: ResponseFormat | None = None
    """The shape of the answer; the thought is free."""
    reasoning_effort: Effort | None = None
    """A thinking budget as a share of the tokens that may be generated."""
    tools: Many[Tool] | None = None
    """Functions the model may call."""
    tool_choice: ToolChoice | None = None
    """Whether it must call one, and which; with tools the default is `auto`."""
    consensus: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    """Draw so many samples and return one whose answer most of them gave."""

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        a, b = self.max_tokens, self.max_completion_tokens
        if a is not None and b is not None and a != b:
            raise Refused("max_completion_tokens", f"it is {b} and max_tokens is {a}; give one")
        return self

    @model_validator(mode="after")
    def _asks_one_thing(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise Refused("top_logprobs", "it needs logprobs to be true")
        if self.logprobs_in_reasoning and not self.logprobs:
            raise Refused("logprobs_in_reasoning", "it needs logprobs to be true")
        if self.thinking_budget is not None and self.reasoning_effort is not None:
            raise Refused("reasoning_effort", "give either it or thinking_budget")
        return self

    @model_validator(mode="after")
    def _can_be_voted_on(self) -> "ChatRequest":
        if self.consensus is None:
            return self
        if (self.n or 1) > 1:
            raise Refused("n", "consensus returns one choice; leave n out, or at 1")
        if self.response_format is not None and self.response_format.type != "text":
            raise Refused(
                "response_format",
                "consensus votes with the verifier of final answers, which reads no JSON; "
                "leave response_format out",
            )
        if self.tools and self.tool_choice != "none":
            raise Refused(
                "tools", "consensus votes on final answers, not on calls; leave tools out"
            )
        return self

    @field_validator("tools")
    @classmethod
    def _names_differ(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or []]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two functions are called '{name}'")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _choice_is_there(cls, choice: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        names = {tool.function.name for tool in info.data.get("tools") or []}
        if choice not in (None, "none") and not names:
            raise ValueError("there are no tools to choose from")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(f"'{choice.function.name}' is none of the tools")
        return choice

    @property
    def limit(self) -> int | None:
        """How many tokens may be generated, if the client said so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_name(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


class CompletionRequest(Generate):
    """`POST /v1/completions`: raw text in, raw text out, tags included."""

    unsupported: ClassVar[dict[str, Absent]] = {
        **COMPLETION_ELSEWHERE,
        "echo": Absent(False),
        "best_of": Absent(1, instead="use n, or consensus of /v1/chat/completions"),
        "suffix": Absent(),
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


class TokenizeRequest(Body):
    """`POST /tokenize`: a conversation as the model sees it, or plain text."""

    model: str | None = None
    messages: Annotated[Many[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Many[Tool] | None = None
    """Functions the model is shown; for `messages` only."""
    prompt: str | None = None
    chat_template_kwargs: JsonObject | None = None
    """For `messages` only, as in chat."""
    add_special_tokens: bool | None = None
    """For `prompt` only, where the default is true; chat templates write their own."""
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_input(self) -> "TokenizeRequest":
        if (self.messages is None) == (self.prompt is None):
            raise Refused("prompt", "give either messages or prompt")
        if self.tools and self.messages is None:
            raise Refused("tools", "they are shown with messages only")
        if self.chat_template_kwargs and self.messages is None:
            raise Refused("chat_template_kwargs", "a prompt is taken as it is, without a template")
        if self.add_special_tokens and self.messages is not None:
            raise Refused("add_special_tokens", "chat templates write their own")
        return self


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Many[Annotated[int, Field(ge=0)]]
