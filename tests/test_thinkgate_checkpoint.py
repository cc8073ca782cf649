"""The checkpoint folder: complete or refused, written atomically, its decision bound to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fake_checkpoint
import pytest

from thinkgate.checkpoint import (
    DECISION,
    META,
    Checkpoint,
    GateVerdict,
    gated,
    load_checkpoint,
    model_digest,
    require_space,
    writing_checkpoint,
)
from thinkgate.errors import CheckpointError


def make_checkpoint(path: Path, config: str = "{}") -> Checkpoint:
    seen = frozenset({"aa", "bb"})
    return load_checkpoint(fake_checkpoint.make_checkpoint(path, config=config, seen=seen))


def decide(checkpoint: Checkpoint, verdict: GateVerdict = GateVerdict.PASS) -> None:
    fake_checkpoint.record_decision(checkpoint.path, verdict)


def test_a_finished_checkpoint_loads_with_its_seen_prompts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    assert checkpoint.seen_prompts() == {"aa", "bb"}
    assert checkpoint.digest == model_digest(tmp_path / "c")


def test_an_interrupted_write_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing_checkpoint(tmp_path / "c") as folder:
        (folder / "config.json").write_bytes(b"half")
        raise KeyboardInterrupt
    assert not (tmp_path / "c").exists()


def test_an_interrupted_write_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    before = make_checkpoint(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt), writing_checkpoint(tmp_path / "c"):
        raise KeyboardInterrupt
    assert load_checkpoint(tmp_path / "c").digest == before.digest


def test_rewriting_replaces_the_checkpoint(tmp_path: Path) -> None:
    before = make_checkpoint(tmp_path / "c")
    after = make_checkpoint(tmp_path / "c", "other")
    assert before.digest != after.digest
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def change(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(b"changed") and None


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (change("config.json"), "was changed"),
        (change("extra.bin"), "was changed, added or removed"),
        (lambda path: (path / "config.json").unlink(), "removed"),
        (lambda path: (path / "link").symlink_to("/etc/hostname"), "symbolic link"),
        (lambda path: (path / META / "manifest.json").unlink(), "no thinkgate/manifest.json"),
        (change(f"{META}/manifest.json"), "not a valid manifest"),
        (shutil.rmtree, "no such checkpoint folder"),
    ],
)
def test_a_changed_checkpoint_is_refused(
    tmp_path: Path, tamper: Callable[[Path], None], expected: str
) -> None:
    make_checkpoint(tmp_path / "c")
    tamper(tmp_path / "c")
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "c")


def test_only_a_passing_decision_about_these_files_counts(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no gate decision"):
        gated(checkpoint)
    for verdict in (GateVerdict.FAIL, GateVerdict.INCONCLUSIVE):
        decide(checkpoint, verdict)
        with pytest.raises(CheckpointError, match=verdict.upper()):
            gated(checkpoint)
    decide(checkpoint)
    assert gated(checkpoint).verdict is GateVerdict.PASS
    other = make_checkpoint(tmp_path / "other", "other")
    shutil.copy(checkpoint.meta(DECISION), other.meta(DECISION))
    with pytest.raises(CheckpointError, match="is about"):
        gated(other)


def test_too_little_disk_is_said_before_the_run(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(CheckpointError, match=r"MiB free .* needed; free some space"):
        require_space(tmp_path, 10**9)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_checkpoint_is_never_replaced(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "mine"
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    if kind == "folder":
        (tmp_path / "work").rename(mine)
    elif kind == "file":
        mine.write_text("years")
    else:
        mine.symlink_to(tmp_path / "work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="mine exists and is not a finished checkpoint"):
        make_checkpoint(mine)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    assert make_checkpoint(tmp_path / "c").path == tmp_path / "c"


def test_two_runs_do_not_write_the_same_checkpoint(tmp_path: Path) -> None:
    with writing_checkpoint(tmp_path / "c") as folder:
        with pytest.raises(CheckpointError, match="is being written by another run"):
            make_checkpoint(tmp_path / "c")
        assert folder.is_dir()


@pytest.mark.parametrize("content", [None, "", "aa\n"])
def test_changed_seen_prompts_are_refused(tmp_path: Path, content: str | None) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    file = checkpoint.meta("seen-prompts.txt")
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(CheckpointError, match="changed or removed after training"):
        load_checkpoint(tmp_path / "c").seen_prompts()


def test_a_decision_holds_for_the_tags_it_was_made_with(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    decide(checkpoint)
    decision, file = checkpoint.meta("decision.json"), checkpoint.meta("manifest.json")
    made = json.loads(decision.read_text()) | {"template": checkpoint.manifest.template.digest}
    decision.write_text(json.dumps(made))
    assert gated(checkpoint).id == made["id"]
    manifest = json.loads(file.read_text())
    manifest["template"]["open_tag"] = "<thought>"
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"tags or sampling defaults .* are not"):
        gated(load_checkpoint(tmp_path / "c"))


def test_nothing_is_taken_unbound(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    decide(checkpoint)
    decision, manifest = checkpoint.meta("decision.json"), checkpoint.meta("manifest.json")
    decision.write_text(json.dumps(json.loads(decision.read_text()) | {"template": None}))
    with pytest.raises(CheckpointError, match=r"tags or sampling defaults .* are not"):
        gated(checkpoint)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seen_sha256": None}))
    with pytest.raises(CheckpointError, match="changed or removed after training"):
        load_checkpoint(tmp_path / "c").seen_prompts()
