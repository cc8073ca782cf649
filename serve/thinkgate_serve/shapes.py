"""What clients get back, for the OpenAPI document: `/docs`, and generated clients.

Describes; the writers write. Bodies are not made of these models, which would cost more than the
tokens in them: tests hold the two together, with no field more and none less.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "ERRORS",
    "ChatCompletion",
    "ChatCompletionChunk",
    "Completion",
    "Detokenized",
    "ErrorBody",
    "Models",
    "ResponseObject",
    "ServedModel",
    "Status",
    "Tokenized",
    "gives",
]


class Shape(BaseModel):
    """Base of what is sent."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorDetail(Shape):
    """Why a request was not answered."""

    message: str
    type: str
    """`invalid_request_error`, `server_error`, `requests` or `tokens`."""
    param: str | None
    """The parameter at fault, with its path."""
    code: str | None


class ErrorBody(Shape):
    """The body of every response that is not 2xx."""

    error: ErrorDetail


class TokenDetails(Shape):
    """What the completion's tokens were."""

    reasoning_tokens: int
    """Of the thought, tags included."""


class Usage(Shape):
    """Exact counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Reasoning and answer."""
    total_tokens: int
    completion_tokens_details: TokenDetails


class Likely(Shape):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(Likely):
    """A generated token, and the likeliest in its place."""

    top_logprobs: list[Likely]


class ChatLogprobs(Shape):
    """Of the answer's tokens, and of the thought's if they were asked for."""

    content: list[TokenLogprobs]
    refusal: None
    reasoning: list[TokenLogprobs] = []


class CalledFunction(Shape):
    """Which function, and with what."""

    name: str
    arguments: str
    """A JSON object, as text."""


class CallMade(Shape):
    """A function the model calls."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shape):
    """The answer, and the thought before it."""

    role: Literal["assistant"]
    content: str | None
    """Null where there is no answer: the thought was cut short, or there are calls alone."""
    refusal: None
    reasoning_content: str | None = None
    """The thought: "" an empty one, null none."""
    reasoning: str | None = None
    """The same under vLLM's name."""
    tool_calls: list[CallMade] = []


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    reasoning_truncated: bool
    """The thought did not end by itself."""


class Votes(Shape):
    """An answer and who gave it."""

    answer: str
    count: int
    indices: list[int]
    """Samples; sample i is drawn with `seed` + i."""


class Consensus(Shape):
    """How the samples voted."""

    votes: list[Votes]
    agreement: float
    samples: int
    finished: int


class ChatCompletion(Shape):
    """`POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    consensus: Consensus | None = None


class FunctionDelta(Shape):
    """More of a call."""

    name: str | None = None
    arguments: str


class CallDelta(Shape):
    """A call begins, when it has an id, or goes on."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Shape):
    """What came: of the thought or of the answer, never of both."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] = []


class ChunkChoice(Shape):
    """More of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    """Null but in the last chunk of a choice."""
    reasoning_truncated: bool | None = None
    """In the last chunk of a choice."""


class ChatCompletionChunk(Shape):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    """In one more chunk at the end, if it was asked for."""
    consensus: Consensus | None = None


class CompletionLogprobs(Shape):
    """Of all tokens, one entry each."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Shape):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Shape):
    """`POST /v1/completions`, and one event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Part(Shape):
    """The content of an item."""

    type: Literal["reasoning_text", "output_text"]
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprobs] = []


class OutputItem(Shape):
    """A thought, a message or a call."""

    id: str
    type: Literal["reasoning", "message", "function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] | None = None
    content: list[Part] = []
    summary: list[Any] = []
    encrypted_content: None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class InputDetails(Shape):
    """Kept for compatibility: always 0."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(Shape):
    """Exact counts of tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class Incomplete(Shape):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class Failure(Shape):
    """Why a streamed response failed."""

    code: str
    message: str


class ResponseObject(Shape):
    """`POST /v1/responses`; the last event of a streamed one holds it too."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: Failure | None
    incomplete_details: Incomplete | None
    model: str
    output: list[OutputItem]
    reasoning_truncated: bool
    """The thought did not end by itself."""
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    reasoning: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    text: dict[str, Any]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    top_logprobs: int
    metadata: dict[str, str]
    user: str | None
    previous_response_id: None
    store: Literal[False]
    background: Literal[False]
    truncation: Literal["disabled"]
    service_tier: Literal["default"]


class ServedModel(Shape):
    """A model and who vouches for it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    digest: str | None
    """Of its files; null where they have none."""
    gate: dict[str, Any]
    """`verdict`, and of a decision its id, policy, time and the path of its report."""
    reasoning_tags: list[str]
    sampling_defaults: dict[str, Any]


class Models(Shape):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[ServedModel]


class Tokenized(Shape):
    """`POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Shape):
    """`POST /detokenize`."""

    prompt: str


class Status(Shape):
    """Whether requests are answered now."""

    status: str


Documented = dict[int | str, dict[str, Any]]

ERRORS: Documented = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""Of every route."""


def gives(shape: type[Shape], stream: str | None = None) -> Documented:
    """A route's `responses`: `shape`, or events of `stream`."""
    good: dict[str, Any] = {"model": shape}
    if stream is not None:
        parts = {"event": {"type": "string"}, "data": {"type": "string"}}
        event = {"type": "object", "properties": parts, "description": stream}
        good["content"] = {"text/event-stream": {"schema": event}}
    return {200: good}
