"""What is seen of a run while it trains: a progress bar, `metrics.jsonl`, and its health.

`metrics.jsonl` has one object per logged step: TRL's own numbers under TRL's names, and under
short names what reports draw. Beside it lie `completions.jsonl` (see `completions.py`) and, when a
step took too long, `stacks.txt`. Acts on what `verdict.py` finds; knows no symptom itself.
"""

import faulthandler
import json
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from rich.markup import escape

from thinkgate.checkpoint import HealthFinding, HealthRecord, write_atomic
from thinkgate.console import Meter, console, printable
from thinkgate.errors import TrainingError
from thinkgate_train.health.completions import CompletionsLog, kept_lines
from thinkgate_train.health.kept_state import KeptState
from thinkgate_train.health.verdict import HealthWatch, RunFacts
from thinkgate_train.rewards.function import RewardFunction, Splitter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

__all__ = ["Watch"]

SHORT = {"rewards/correctness/mean": "accuracy", "rewards/format/mean": "format"}
NOTED = ("loss", "reward", "accuracy", "rewards/accuracies", "thinking_tokens")
ALWAYS = "not_a_number"
"""The symptom that ends a run in every mode: weights that are NaN never recover."""


class Watch:
    """Everything that looks at a run from outside.

    `folder` is the trainer's output folder. `mode` strict ends a run that has become hopeless, warn
    only says so, off looks for NaN alone. All processes of a run watch, and stop together; only
    `main` writes and speaks.
    """

    def __init__(
        self,
        *,
        folder: Path,
        meter: Meter,
        facts: RunFacts,
        mode: Literal["strict", "warn", "off"],
        main: bool = True,
        hang_after: float = 1800,
    ) -> None:
        self._folder, self._meter, self._facts = folder, meter, facts
        self._mode, self._main = mode, main
        self._metrics = folder / "metrics.jsonl"
        self._rollouts = CompletionsLog(
            folder / "completions.jsonl" if main else None, facts.reward_weights
        )
        self._health = HealthWatch(facts)
        self._stopped = False
        self._resumed = False
        self._hang = _HangDump(folder / "stacks.txt", hang_after) if main else None
        self._states = KeptState(folder)

    def observe(
        self,
        rewards: Sequence[RewardFunction],
        splitter: Splitter,
        tokenizer: "PreTrainedTokenizerBase",
    ) -> list[RewardFunction]:
        """The reward functions for the trainer: the same, and their rollouts are seen."""
        return self._rollouts.observe(rewards, splitter, tokenizer)

    def resume(self, step: int) -> None:
        """The run goes on after `step`: later rows are dropped, earlier ones are remembered."""
        self._resumed = True
        if self._metrics.is_file():
            kept = list(kept_lines(self._metrics, step))
            for _, row in kept:
                self._health.update(row["step"], row)
            if self._main:
                write_atomic(self._metrics, "".join(line for line, _ in kept))
        self._rollouts.trim(step)
        self._health.resume()

    def record(self) -> HealthRecord | None:
        """What goes into the manifest; None when the watch was off."""
        return None if self._mode == "off" else self._health.record(self._stopped)

    def callback(self) -> "TrainerCallback":
        """What the trainer calls: moves the meter, appends to `metrics.jsonl`, checks health."""
        from transformers import TrainerCallback

        watch = self

        class Watching(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                # It would replace a NaN loss with the mean of those before, and hide the fault.
                args.logging_nan_inf_filter = False
                watch._begin(state.global_step, state.max_steps)

            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch._step_begin()

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch._saved(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch._step_end(state.global_step)

            def on_log(
                self,
                args: Any,
                state: Any,
                control: Any,
                logs: dict[str, Any] | None = None,
                **_: Any,
            ) -> None:
                watch._log(state.global_step, logs or {})

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.close()

        return Watching()

    def close(self) -> None:
        """Disarm the step watchdog at once."""
        if self._hang:
            self._hang.close()

    def _begin(self, step: int, max_steps: int) -> None:
        self._rollouts.training = False
        self._health.expect(max_steps)
        self._meter.set(step, max_steps)

    def _saved(self, step: int) -> None:
        if self._main and self._mode != "off":
            self._states.saved(step, self._health.standing())

    def _step_begin(self) -> None:
        self._rollouts.training = True
        self._states.settle()
        if self._hang:
            self._hang.arm()

    def _step_end(self, step: int) -> None:
        self._rollouts.training = False
        self._meter.set(step)
        if self._hang and self._hang.disarm():
            console.print(
                f"  step {step} took longer than {self._hang.after:g} s; what every thread was "
                f"doing then is in {escape(str(self._hang.file))}",
                soft_wrap=True,
            )

    def _log(self, step: int, logs: dict[str, Any]) -> None:
        # TRL logs None for what no completion gave; the health watch counts those.
        numbers = {k: v for k, v in logs.items() if v is None or isinstance(v, int | float)}
        if self._resumed:  # the loss since then, divided by all steps
            numbers.pop("train_loss", None)
        row = {"step": step}
        row |= {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
        row |= {short: row[name] for name, short in SHORT.items() if name in row}
        if self._main:
            with self._metrics.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps(row) + "\n")
            # The loss of a policy gradient is near zero by construction; it tells nothing.
            shown = [k for k in NOTED if k in row and not (k == "loss" and "reward" in row)]
            if shown:
                self._meter.note("  ".join(f"{_plain(k)} {row[k]:.3g}" for k in shown))
        self._act(self._health.update(step, numbers | row))

    def _act(self, findings: list[HealthFinding]) -> None:
        stops = [f for f in findings if f.symptom == ALWAYS]
        if self._mode != "off":
            if self._mode == "strict":
                stops = [f for f in findings if f.stop]
            if self._main:
                for finding in findings:
                    if finding not in stops[:1]:  # that one becomes the error
                        _tell(finding)
        if stops:
            self._stopped = True
            self.close()
            raise TrainingError(self._farewell(stops[0]))

    def _farewell(self, finding: HealthFinding) -> str:
        """Why the run ends and how to go on, after making the last healthy state the newest."""
        said = f"step {finding.step}: {_sentence(finding)}"
        if not self._main:
            return said
        healthy = self._states.go_back(self._health.since(finding))
        if healthy is not None:
            how = (
                f"The last healthy state is that of step {healthy} in {self._folder}: change that "
                "and pass --resume to go on from it"
            )
        else:
            how = "No healthy state was saved: change that and start again"
        regardless = "" if finding.symptom == ALWAYS else ", or go on regardless with health=warn"
        return f"{said}. {how}{regardless}."


class _HangDump:
    """Writes the stacks of all threads to a file when a step takes longer than `after` seconds."""

    def __init__(self, file: Path, after: float) -> None:
        self.file, self.after = file, after
        self._sink: TextIO | None = None
        self._size = 0

    def arm(self) -> None:
        if self._sink is None:
            self._sink = self.file.open("a", encoding="utf-8")
            self._size = os.fstat(self._sink.fileno()).st_size
            # A run that ends inside a step, by an exception, calls nothing here any more.
            self._end = weakref.finalize(self, _disarmed, self._sink, self.file)
        faulthandler.dump_traceback_later(self.after, file=self._sink)

    def disarm(self) -> bool:
        """Whether stacks were written since the last time."""
        faulthandler.cancel_dump_traceback_later()
        if self._sink is None:
            return False
        before, self._size = self._size, os.fstat(self._sink.fileno()).st_size
        return self._size > before

    def close(self) -> None:
        if self._sink is not None:
            self._sink = None
            self._end()


def _disarmed(sink: TextIO, file: Path) -> None:
    faulthandler.cancel_dump_traceback_later()
    empty = not os.fstat(sink.fileno()).st_size
    sink.close()
    if empty:
        file.unlink(missing_ok=True)


def _tell(finding: HealthFinding) -> None:
    """One finding, above the progress bar."""
    colour = "red" if finding.stop else "yellow"
    text = escape(printable(_sentence(finding)))
    console.print(f"  [{colour}]step {finding.step}[/] {text}", soft_wrap=True)


def _sentence(finding: HealthFinding) -> str:
    return f"{_plain(finding.symptom)}: {finding.why}"


def _plain(name: str) -> str:
    return name.replace("_", " ")
