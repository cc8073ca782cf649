"""Fields that requests have on other servers (vLLM's, SGLang's, DeepSeek's) and not on this one.

Owns which of their values ask for nothing, and are taken, and what to ask for here instead: a
client that comes from there is told what to change. OpenAI's own fields are `protocol`'s business.
"""

from typing import Any

__all__ = [
    "CHAT_ELSEWHERE",
    "COMPLETION_ELSEWHERE",
    "CONVERSATION_ELSEWHERE",
    "ELSEWHERE",
    "THOUGHTS",
    "Absent",
]


class Absent:
    """A field this server has not: the values that ask for nothing, and what to do instead."""

    def __init__(self, *neutral: Any, instead: str | None = None) -> None:
        self.neutral = neutral
        self.instead = instead


_BIAS = "use logit_bias, -100 for what must not come"
_OWN_TEMPLATE = "the model's own is used; chat_template_kwargs tells it what to do"
_SHAPE = "use response_format, {'type': 'json_schema', ...}"
THOUGHTS = "use thinking_budget or reasoning_effort; 0 and 'none' leave the thought out"

ELSEWHERE = {
    "allowed_token_ids": Absent(instead=_BIAS),
    "bad_words": Absent([], instead=_BIAS),
    "cache_salt": Absent(),
    "custom_logit_processor": Absent(),
    "early_stopping": Absent(False),
    "include_stop_str_in_output": Absent(False, instead="stop strings are left out; append yours"),
    "kv_transfer_params": Absent(),
    "length_penalty": Absent(1, instead="nothing is searched, answers are drawn"),
    "logits_processors": Absent([], instead=_BIAS),
    "lora_path": Absent(instead="an adapter is a model of its own: name it in 'model'"),
    "no_stop_trim": Absent(False, instead="stop strings are left out; append yours"),
    "priority": Absent(0, instead="requests are served in the order they come"),
    "prompt_logprobs": Absent(),
    "request_id": Absent(instead="send the header X-Request-Id"),
    "return_hidden_states": Absent(False),
    "return_token_ids": Absent(False, instead="POST /tokenize has those of a text"),
    "return_tokens_as_token_ids": Absent(False),
    "rid": Absent(instead="send the header X-Request-Id"),
    "skip_special_tokens": Absent(True, instead="they are left out, but for the thought's tags"),
    "spaces_between_special_tokens": Absent(True),
    "stop_regex": Absent(instead="use stop"),
    "stop_token_ids": Absent([], instead="use stop with their text"),
    "truncate_prompt_tokens": Absent(instead="shorten the prompt; POST /tokenize counts it"),
    "typical_p": Absent(1, instead="use top_p or min_p"),
    "use_beam_search": Absent(False, instead="nothing is searched; n answers are drawn"),
    "vllm_xargs": Absent({}),
}
"""Of requests of any kind."""

_SHAPES = {
    "ebnf": "",
    "guided_choice": ", with the choices as an 'enum'",
    "guided_decoding_backend": "",
    "guided_grammar": "",
    "guided_json": "",
    "guided_regex": ", with a 'pattern'",
    "guided_whitespace_pattern": "",
    "regex": ", with a 'pattern'",
    "structured_outputs": "",
}

CONVERSATION_ELSEWHERE = {
    "add_generation_prompt": Absent(True),
    "add_special_tokens": Absent(False, instead="chat templates write their own"),
    "chat_template": Absent(instead=_OWN_TEMPLATE),
    "continue_final_message": Absent(
        False, instead="turns are never gone on with; /v1/completions goes on from any text"
    ),
    "documents": Absent([], instead="write them into a message"),
    "enable_thinking": Absent(instead="use chat_template_kwargs, {'enable_thinking': ...}"),
    "max_thinking_tokens": Absent(instead="use thinking_budget"),
    "media_io_kwargs": Absent({}),
    "mm_processor_kwargs": Absent({}),
    "reasoning_format": Absent("parsed", instead="the thought is always apart from the answer"),
    "separate_reasoning": Absent(True, instead="the thought is always apart from the answer"),
    "stream_reasoning": Absent(True, instead="use include_reasoning"),
    "thinking": Absent(instead=THOUGHTS),
    "thinking_token_budget": Absent(instead="use thinking_budget"),
    **{name: Absent(instead=_SHAPE + how) for name, how in _SHAPES.items()},
}
"""Of chat and responses."""

CHAT_ELSEWHERE = {
    "echo": Absent(False),
    "reasoning": Absent({}, instead="use reasoning_effort or thinking_budget"),
}

COMPLETION_ELSEWHERE = {
    "add_special_tokens": Absent(True, instead="send token ids, from POST /tokenize"),
    **{
        name: Absent(instead="use response_format of /v1/chat/completions")
        for name in (*_SHAPES, "response_format")
    },
}
