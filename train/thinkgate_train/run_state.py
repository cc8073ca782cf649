"""The hidden folder of a run that is not finished: its recipe, its log, the trainer's states.

Owns whether there is something to go on from, with which recipe, and that one run at a time is at
work there. Does not know what a trainer writes into it, but for the file that it writes last.
"""

import json
import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import alone, write_atomic
from thinkgate.errors import CheckpointError, ConfigError
from thinkgate_train.recipe import Recipe

__all__ = ["COMPLETIONS", "INCIDENTAL", "METRICS", "RunState"]

METRICS, COMPLETIONS, RECIPE = "metrics.jsonl", "completions.jsonl", "recipe.json"
LAST_WRITTEN = "trainer_state.json"
"""Of a state, by the trainer."""
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
        write_atomic(self.folder / RECIPE, recipe.model_dump_json(indent=2))
        (self.folder / METRICS).touch()

    def latest(self) -> int:
        """The newest step whose state is complete, else 0. What a power cut or a full disk has
        torn is passed over, for the one before."""
        found = [file.parent for file in self.folder.glob(f"checkpoint-*/{LAST_WRITTEN}")]
        newest = sorted(((int(s.name.rpartition("-")[2]), s) for s in found), reverse=True)
        return next((step for step, folder in newest if _whole(folder)), 0)

    def checkpoint(self, step: int) -> Path:
        """The trainer's state at `step`."""
        return self.folder / f"checkpoint-{step}"

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of the run's JSONL files; none when it was never written."""
        file = self.folder / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def _require_same(self, recipe: Recipe) -> None:
        try:
            begun = json.loads((self.folder / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder / RECIPE} cannot be read ({error}), so nobody knows what was begun; "
                "pass --force to start over"
            ) from error
        asked = recipe.model_dump(mode="json")
        changed = [k for k in asked if k not in RESUMABLE and asked[k] != begun.get(k)]
        if changed:
            raise ConfigError(
                f"{self._out}: the interrupted run had another {', '.join(changed)}; resume it "
                "with the same recipe, or pass --force to start over"
            )


def _whole(folder: Path) -> bool:
    """Whether the files of a state end where they should; what is inside them is not read."""
    try:
        json.loads((folder / LAST_WRITTEN).read_bytes())
        weights = all(
            _safetensors_size(f) == f.stat().st_size for f in folder.glob("*.safetensors")
        )
    except (OSError, ValueError, KeyError):
        return False
    # torch saves zip archives, whose directory stands at their end.
    pickled = (file for file in folder.iterdir() if file.suffix in (".pt", ".pth"))
    return weights and all(map(zipfile.is_zipfile, pickled))


def _safetensors_size(file: Path) -> int:
    """Bytes that the header asks for (github.com/huggingface/safetensors, "Format")."""
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError(f"{file} is cut off")
        header = json.loads(source.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
