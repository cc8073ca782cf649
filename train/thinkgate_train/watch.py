"""What is seen of a run while it trains: a progress bar and `metrics.jsonl`.

`metrics.jsonl` has one object per logged step: TRL's own numbers under TRL's names, and under
short names what the report draws: accuracy, format, thinking_tokens, step_share, truncated.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.console import Meter
from thinkgate.errors import TrainingError
from thinkgate.format import SplitStatus
from thinkgate_train.rewards import RewardFunction, Splitter, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

__all__ = ["metrics_callback", "observed"]

SHORT = {"rewards/correctness/mean": "accuracy", "rewards/format/mean": "format"}


def observed(
    reward: RewardFunction, splitter: Splitter, tokenizer: "PreTrainedTokenizerBase"
) -> RewardFunction:
    """`reward`, which also logs what the batch's thoughts look like, through TRL's `log_metric`."""

    def watching(
        completions: Sequence[Any], log_metric: Callable[[str, float], None], **rest: Any
    ) -> list[float | None]:
        splits = [splitter(text_of(completion)) for completion in completions]
        thoughts: Any = tokenizer([s.reasoning for s in splits], add_special_tokens=False)
        lengths = [len(ids) for ids in thoughts["input_ids"]]
        log_metric("thinking_tokens", sum(lengths) / len(lengths))
        log_metric("step_share", sum(bool(s.reasoning.strip()) for s in splits) / len(splits))
        truncated = sum(s.status is SplitStatus.TRUNCATED for s in splits)
        log_metric("truncated", truncated / len(splits))
        return reward(completions=completions, log_metric=log_metric, **rest)

    watching.__name__ = getattr(reward, "__name__", type(reward).__name__)
    return watching


def metrics_callback(file: Path, meter: Meter) -> "TrainerCallback":
    """A TRL callback that appends to `file`, moves `meter`, and stops a run whose loss is NaN."""
    from transformers import TrainerCallback

    class Metrics(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.set(state.global_step, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.set(state.global_step)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            numbers = {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}
            row = {"step": state.global_step, **numbers}
            row |= {short: numbers[name] for name, short in SHORT.items() if name in numbers}
            with file.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps(row) + "\n")
            shown = [k for k in ("loss", "reward", "accuracy", "thinking_tokens") if k in row]
            if "accuracy" in row:
                shown.remove("loss")  # GRPO's loss is near zero by construction; it tells nothing
            meter.note("  ".join(f"{k.replace('_', ' ')} {row[k]:.3g}" for k in shown))
            if math.isnan(row.get("loss", 0.0)) or math.isnan(row.get("grad_norm", 0.0)):
                raise TrainingError(
                    f"step {state.global_step}: loss or gradient is NaN; lower "
                    f"trl.learning_rate (now {args.learning_rate:g})"
                )

    return Metrics()
