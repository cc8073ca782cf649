"""Ctrl-C and SIGTERM while training: the step ends, the state is saved, and the run can go on."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["Interruption"]


class Interruption:
    """Remembers that the run was asked to stop; a second time stops it at once, unsaved.

    SIGTERM counts too: it is what a cluster sends before it takes the machine away.
    """

    def __init__(self) -> None:
        self.happened = False

    @contextmanager
    def watching(self) -> Generator[None]:
        """Take the signals for the length of the block. Off the main thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def callback(self, *, learning_rate: float) -> "TrainerCallback":
        """The part that acts between steps. On a resumed run it also sets the recipe's learning
        rate, where the saved state would bring back the old one."""
        from transformers import TrainerCallback

        interruption = self

        class Stop(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
                scheduler, optimizer = parts.get("lr_scheduler"), parts.get("optimizer")
                if scheduler is not None and optimizer is not None:
                    _set_rate(scheduler, optimizer, learning_rate)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if _anywhere(interruption.happened):
                    interruption.happened = True
                    control.should_save = True
                    control.should_training_stop = True

        return Stop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.happened:
            raise KeyboardInterrupt
        self.happened = True


def _set_rate(scheduler: Any, optimizer: Any, rate: float) -> None:
    """Scale a schedule that was saved with another peak learning rate."""
    before = scheduler.base_lrs[0]
    if before in (0, rate):
        return
    scheduler.base_lrs = [rate for _ in scheduler.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] *= rate / before
    # What is logged before the scheduler's next step.
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _anywhere(flag: bool) -> bool:
    """Whether the flag is up in any process: all must leave the loop at the same step."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    votes = torch.tensor(
        int(flag), device="cuda" if torch.cuda.is_available() else "cpu", dtype=torch.int32
    )
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return bool(votes.item())
