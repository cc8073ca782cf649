"""The hidden folder of a run that is not finished: its recipe, its log, the trainer's states.

Owns whether there is something to go on from, with which recipe, and that one run at a time is at
work there. Does not know what a trainer writes into it, but for the file that it writes last.
"""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import alone, write_atomic
from thinkgate.errors import ConfigError
from thinkgate_train.recipe import Recipe

__all__ = ["COMPLETIONS", "INCIDENTAL", "METRICS", "RunState"]

METRICS, COMPLETIONS = "metrics.jsonl", "completions.jsonl"
INCIDENTAL = (
    "description",
    "hardware",
    "time",
    "moves",
    "health",
    "hang_after",
    "preflight",
    "disk_mib",
    "push_to",
    "toy",
)
"""Keys of a recipe that say nothing about what comes out of it."""
RESUMABLE = ("trl", *INCIDENTAL)
"""What may differ between a run and its resumption: how far and how it goes on."""


class RunState:
    """The hidden folder of an unfinished run; a context, at whose end it is free for others."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.training")
        self._out = out
        self._held = ExitStack()

    def __enter__(self) -> "RunState":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def hold(self) -> None:
        """Keep other runs out; CheckpointError when one is at work here. For the process that
        writes, as long as the context lasts."""
        self._held.close()
        self._held.enter_context(alone(self.folder))

    def step_to_go_on_from(self, recipe: Recipe, *, resume: bool, restart: bool) -> int:
        """0 to begin. ConfigError when a state is there and not asked for, is asked for and not
        there, or belongs to another recipe."""
        latest = self.latest()
        if resume and not latest:
            raise ConfigError(
                f"{self._out}: there is no interrupted run to resume; start it without --resume"
            )
        if latest and not resume and not restart:
            raise ConfigError(
                f"{self._out}: an interrupted run has reached step {latest}; pass --resume to go "
                "on, or --force to start over"
            )
        if resume:
            self._require_same(recipe)
        return latest if resume else 0

    def begin(self, recipe: Recipe) -> None:
        """An empty folder that knows its recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hold()  # another run may have begun since
        for old in self.folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_atomic(self.folder / "recipe.json", recipe.model_dump_json(indent=2))
        (self.folder / METRICS).touch()

    def latest(self) -> int:
        """The newest step whose state is complete, else 0."""
        # trainer_state.json is the last file the trainer writes.
        found = self.folder.glob("checkpoint-*/trainer_state.json")
        return max((int(file.parent.name.rpartition("-")[2]) for file in found), default=0)

    def checkpoint(self, step: int) -> Path:
        """The trainer's state at `step`."""
        return self.folder / f"checkpoint-{step}"

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of the run's JSONL files; none when it was never written."""
        file = self.folder / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def _require_same(self, recipe: Recipe) -> None:
        begun = json.loads((self.folder / "recipe.json").read_text(encoding="utf-8"))
        asked = recipe.model_dump(mode="json")
        changed = [k for k in asked if k not in RESUMABLE and asked[k] != begun.get(k)]
        if changed:
            raise ConfigError(
                f"{self._out}: the interrupted run had another {', '.join(changed)}; resume it "
                "with the same recipe, or pass --force to start over"
            )
