"""A reward that asks a model trained on preferences.

Owns loading a sequence classifier and scoring with it. Rejection sampling uses `RewardModel`
without TRL. How one is trained is `preference.py`'s.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from thinkgate.config import Config, parse
from thinkgate.errors import CheckpointError
from thinkgate_train.rewards.function import RewardFunction, Splitter, judged_part, last_question

__all__ = ["RewardModel", "reward_model"]


class RewardModel(Config):
    """A sequence classifier with one output, trained on preferences, that scores answers.

    Loaded at `load`, scores without gradients; on the GPU where there is one.
    """

    path: str
    """A checkpoint folder or the id of a Hub model."""

    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] = 16
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens; what is longer gets None, for half a text is not what is to be judged. The default
    is what the model can take."""

    def load(self) -> None:
        """Fail now rather than at the first score."""
        _ = self._loaded

    def score(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float | None]:
        """The model's output for each answer, unbounded; None for one too long for it.

        `prompts` are texts or conversations; the tokenizer's chat template renders them.
        """
        import torch

        tokenizer, model, limit = self._loaded
        texts = [
            _rendered(tokenizer, prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # A chat template writes the special tokens itself.
        special = not tokenizer.chat_template
        rows: list[list[int]] = (
            tokenizer(texts, add_special_tokens=special)["input_ids"] if texts else []
        )
        order = sorted(
            (i for i, ids in enumerate(rows) if 0 < len(ids) <= limit), key=lambda i: len(rows[i])
        )
        # Not where it was loaded: only now has the trainer chosen this process's GPU.
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        values: list[float | None] = [None] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            padded = tokenizer.pad(
                {"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt"
            ).to(model.device)
            with torch.inference_mode():
                outputs: list[float] = model(**padded).logits[:, 0].float().tolist()
            for i, value in zip(batch, outputs, strict=True):
                values[i] = value if value == value else None  # NaN
        return values

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        pinned: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self.path, **pinned)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                self.path,
                num_labels=1,
                dtype=self.dtype,
                use_safetensors=True,
                output_loading_info=True,
                **pinned,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"reward model '{self.path}': cannot load it: {reason}; give a folder, or the id "
                "of a Hub model where the Hub can be reached"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(
                f"reward model '{self.path}' has no weights for {missing[0]}: it is not a reward "
                "model, and its scores would be random"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The score is read at the last token that is not padding.
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return tokenizer, model.eval(), self.max_length or room or tokenizer.model_max_length


class RewardModelArguments(RewardModel):
    """Arguments of the `reward_model` reward."""

    on: Literal["answer", "completion"] = "answer"
    """What is scored: the answer part only, or the thought with it."""

    clip: Annotated[float, Field(gt=0)] | None = None
    """Scores are cut off at plus and minus this."""


def reward_model(splitter: Splitter, **args: Any) -> RewardFunction:
    """The output of a model trained on preferences, for the answer part; unbounded unless clipped.

    Arguments: those of `RewardModel`, `on` and `clip`. A completion without an answer is scored as
    an empty one. Logs the share it could not take as `reward_model/too_long`. Ouyang et al. 2022
    (arXiv 2203.02155); what DeepSeek-R1 uses in its fourth phase (arXiv 2501.12948, 2.3.4).
    """
    scorer = parse(RewardModelArguments, args, "reward 'reward_model'")
    scorer.load()
    part = judged_part(splitter, scorer.on)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        scores = scorer.score(prompts, [part(c) or "" for c in completions])
        if log_metric is not None and scores:
            log_metric("reward_model/too_long", scores.count(None) / len(scores))
        bound = scorer.clip
        if bound is None:
            return scores
        return [None if s is None else max(-bound, min(bound, s)) for s in scores]

    reward.__name__ = "reward_model"
    return reward


def _rendered(tokenizer: Any, prompt: Any, answer: str) -> str:
    if not tokenizer.chat_template:
        return f"{prompt if isinstance(prompt, str) else last_question(prompt)}{answer}"
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": answer}], tokenize=False
    )
