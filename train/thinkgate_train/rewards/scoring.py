"""What completions earn by a recipe's reward functions, outside a trainer.

Owns calling them with TRL's arguments and adding up as TRL does. They come from `rewards.build`, so
what they raise and return is in order already. Knows no completions of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinkgate_train.recipe import Reward
from thinkgate_train.rewards.function import RewardFunction
from thinkgate_train.sources import Row

__all__ = ["COSTLY", "DRAWN", "SAME", "Scored", "Scorer"]

COSTLY = ("llm_judge",)
"""Rewards that cost money: asked once."""
DRAWN = ("random",)
"""Rewards with a state of their own, which a call would move on; and there is nothing to check."""
SAME = 1e-6
"""Rewards that differ by less give no gradient."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion and what it earned."""

    values: tuple[float | None, ...]
    """Of each function; None where it could not be measured, or was not asked."""
    total: float | None
    """The weighted sum that is optimised; None when nothing could be measured."""


class Scorer:
    """Calls a recipe's reward functions with TRL's arguments, and adds up as TRL does."""

    def __init__(
        self, rewards: Sequence[Reward], functions: Sequence[RewardFunction], tokenizer: Any
    ) -> None:
        self.names = [reward.name for reward in rewards]
        self.weights = [reward.weight for reward in rewards]
        self._functions = list(functions)
        self._tokenizer = tokenizer

    @property
    def asks_all(self) -> bool:
        """Whether `score` asks every function that counts."""
        pairs = zip(self.names, self.weights, strict=True)
        return not any(weight and name in (*COSTLY, *DRAWN) for name, weight in pairs)

    def score(
        self, rows: Sequence[Row], texts: Sequence[str], ids: Sequence[Sequence[int]] | None = None
    ) -> list[Scored]:
        """What each completion earns by the functions that are free to call."""
        skipped = (*COSTLY, *DRAWN)
        columns = [
            [None] * len(texts)
            if name in skipped
            else self._call(place, rows, texts, ids or self._encode(texts))
            for place, name in enumerate(self.names)
        ]
        return [Scored(values, self._total(values)) for values in zip(*columns, strict=True)]

    def try_costly(self, row: Row, text: str) -> str | None:
        """Ask each costly function once; what it says when it gives no score."""
        silent = [
            name
            for place, name in enumerate(self.names)
            if name in COSTLY and self._call(place, [row], [text], self._encode([text])) == [None]
        ]
        if not silent:
            return None
        return f"{' and '.join(silent)} gave no score for a plain answer; its log says why"

    def _total(self, values: Sequence[float | None]) -> float | None:
        known = [w * v for w, v in zip(self.weights, values, strict=True) if v is not None]
        return sum(known) if known else None

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: Any = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*ids, self._tokenizer.eos_token_id] for ids in encoded]

    def _call(
        self, place: int, rows: Sequence[Row], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float | None]:
        from transformers import TrainerState

        keys = dict.fromkeys(key for row in rows for key in row)
        given: dict[str, Any] = {
            key: [row.get(key) for row in rows]
            for key in keys
            if key not in ("prompt", "completion", "completion_ids")
        }
        given |= {
            "prompts": [row["prompt"] for row in rows],
            "completions": [self._shaped(*pair) for pair in zip(rows, texts, ids, strict=True)],
            "completion_ids": [list(row) for row in ids],
            "trainer_state": TrainerState(),
            "log_extra": _unlogged,
            "log_metric": _unlogged,
        }
        return self._functions[place](**given)

    def _shaped(self, row: Row, text: str, ids: Sequence[int]) -> Any:
        """A completion as TRL hands it on: messages where the prompt is messages."""
        if isinstance(row["prompt"], str):
            return text
        parses = any(
            getattr(self._tokenizer, name, None)
            for name in ("response_template", "response_schema")
        )
        if parses:
            from trl.chat_template_utils import parse_response

            prefix: Any = self._tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            return [parse_response(self._tokenizer, list(ids), prefix=prefix["input_ids"])]
        return [{"role": "assistant", "content": text}]


def _unlogged(*_: Any, **__: Any) -> None:
    """TRL's `log_metric` and `log_extra`, where there is no log yet."""
