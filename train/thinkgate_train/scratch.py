"""A small tokenizer and Qwen3 model from scratch, for machines with no GPU and no network.

The files they save are those of any Hub model: transformers, vLLM and lm-eval load them unchanged.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from thinkgate.config import Config
from thinkgate.format import THINK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

__all__ = ["CHAT_TEMPLATE", "Scratch", "build_model", "build_tokenizer"]

# Earlier turns keep their answer only, as reasoning models' templates do.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "{%- set content = message.content -%}"
    "{%- if not loop.last and '</think>' in content -%}"
    "{%- set content = content.split('</think>', 1)[1] -%}"
    "{%- endif -%}"
    "{{- '<|assistant|>' + content + '<|end|>' -}}"
    "{%- else -%}"
    "{{- '<|' + message.role + '|>' + message.content -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


class Scratch(Config):
    """Size of a model to initialise at random. The defaults are about 0.8 M parameters."""

    hidden_size: Annotated[int, Field(ge=32)] = 128
    intermediate_size: Annotated[int, Field(ge=32)] = 384
    layers: Annotated[int, Field(ge=1)] = 4
    head_dim: Annotated[int, Field(ge=32)] = 32
    """vLLM's CPU attention supports 32, 64, 80, 96, 112, 128 …"""
    kv_heads: Annotated[int, Field(ge=1)] = 2
    max_length: Annotated[int, Field(ge=64)] = 8192
    """Context length in tokens."""
    initializer_range: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Standard deviation of the initial weights. Qwen3's 0.02 suits thousands of hidden units; at
    this width it leaves the first hundreds of steps without a signal to learn from."""

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.hidden_size // self.head_dim)

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> "Scratch":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} attention heads (hidden_size // head_dim) do not divide among "
                f"kv_heads {self.kv_heads}; set kv_heads to 1, or to a divisor of them"
            )
        return self


def build_tokenizer() -> "PreTrainedTokenizerBase":
    """One token per byte, so any UTF-8 text encodes, plus the chat roles and the think tags.

    The tags are ordinary added tokens, not special ones: they stay in the decoded text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([THINK.open, THINK.close])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: "PreTrainedTokenizerBase", size: Scratch) -> "Qwen3ForCausalLM":
    """A Qwen3 with random weights from torch's current seed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": size.max_length,
        "initializer_range": size.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen3ForCausalLM(Qwen3Config(**settings))
