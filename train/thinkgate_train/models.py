"""Models to train: loaded, made from scratch, quantised; and an adapter merged when done."""

import json
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.checkpoint import META, Checkpoint, load_checkpoint
from thinkgate.errors import CheckpointError, ConfigError, MissingDependencyError
from thinkgate_train.recipe import Recipe
from thinkgate_train.scratch import build_model, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Start", "load_start", "load_tokenizer", "merged_model", "prepare_libraries"]


@dataclass(frozen=True, slots=True)
class Start:
    """What training starts from."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    parent: Checkpoint | None


def prepare_libraries() -> None:
    """Check that the training packages are there, and quiet them: what libraries print about
    themselves on every run hides what matters; errors stay."""
    # Where it is installed, peft imports it, and it asks for one more package at that moment.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import datasets
        import peft  # noqa: F401
        import trl  # noqa: F401
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs {error.name}, which is not installed; pip install 'thinkgate[train]'"
        ) from error
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("trl", "huggingface_hub"):  # the latter announces every try to connect
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate)\b.*")


def load_start(recipe: Recipe) -> Start:
    """Model and tokenizer a recipe starts from; CheckpointError when they cannot be loaded.

    A reward model is the same trunk with one new output; its head is random until trained.
    """
    tokenizer = load_tokenizer(recipe)
    if recipe.model.scratch is not None:
        return Start(build_model(tokenizer, recipe.model.scratch), tokenizer, None)
    source = _source(recipe)
    # A folder must be one of our finished checkpoints or a plain model folder; never half of one.
    parent = load_checkpoint(Path(source)) if (Path(source) / META).is_dir() else None
    return Start(_load(recipe, source, tokenizer, quantized=True), tokenizer, parent)


def load_tokenizer(recipe: Recipe) -> "PreTrainedTokenizerBase":
    """The tokenizer alone, with padding; CheckpointError when it cannot be loaded.

    Its chat template opens conversations with the recipe's system prompt where they have none, so
    that the trained model is measured and served under the prompt it was trained with.
    """
    if recipe.model.scratch is not None:
        tokenizer: Any = build_tokenizer()
    else:
        from transformers import AutoTokenizer

        with _explained(source := _source(recipe)):
            tokenizer = AutoTokenizer.from_pretrained(source, **_pinned(recipe))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    if recipe.prompt.system and isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = _opening(recipe.prompt.system) + tokenizer.chat_template
    return tokenizer


def _opening(system: str) -> str:
    """Jinja that puts the system prompt before messages without one; the outermost one wins."""
    return (
        "{%- if not messages or messages[0].role not in ('system', 'developer') -%}"
        "{%- set messages = [{'role': 'system', 'content': "
        + json.dumps(system, ensure_ascii=False)
        + "}] + messages | list -%}{%- endif -%}"
    )


def merged_model(recipe: Recipe, adapter: Path) -> "PreTrainedModel":
    """The recipe's starting weights with the adapter folded in.

    They are loaded anew, so that it is the same for quantised and for sharded training: merging
    into the 4-bit copy that was trained on would round the result.
    """
    from peft import PeftModel

    model = _load(recipe, _source(recipe), load_tokenizer(recipe), quantized=False)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()  # type: ignore[operator]


def _source(recipe: Recipe) -> str:
    source = str(recipe.model.path)
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise CheckpointError(
            f"model.path '{source}': no such folder, and not the id of a Hub model"
        )
    return source


def _load(recipe: Recipe, source: str, tokenizer: Any, *, quantized: bool) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    options = dict(_pinned(recipe), dtype=recipe.model.dtype)
    if quantized and recipe.model.quantization is not None:
        options["quantization_config"] = _quantization(recipe)
    with _explained(source):
        if recipe.method == "reward_model":
            model = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=1, pad_token_id=tokenizer.pad_token_id, **options
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(source, **options)
    if "quantization_config" in options:
        _keep_unpacked(model)
    return model


def _keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on CPUs with AVX512-BF16.

    It does so at the first forward pass without gradients, which in RL is a rollout, and from then
    on its matrix product has no gradient with respect to its input: every layer but the last learns
    noise, and nothing says so (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _pinned(recipe: Recipe) -> dict[str, Any]:
    return {"revision": recipe.model.revision} if recipe.model.revision else {}


@contextmanager
def _explained(source: str) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"model.path '{source}': cannot load it: {reason}; give a checkpoint folder, or the id "
            "of a Hub model where the Hub can be reached"
        ) from error


def _quantization(recipe: Recipe) -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    wanted = recipe.model.quantization
    assert wanted is not None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"{recipe.name}: model.quantization needs bitsandbytes, which is not installed; "
            "pip install bitsandbytes, or drop the key"
        )
    if recipe.model.dtype == "float16":
        raise ConfigError(
            f"{recipe.name}: model.dtype is float16, which overflows in QLoRA; use bfloat16"
        )
    if wanted.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=wanted.type,
        bnb_4bit_use_double_quant=wanted.double,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
