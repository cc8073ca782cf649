"""The registry: every change is proven, atomic and kept; whatever dies, it stays readable."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from fake_checkpoint import make_checkpoint, record_decision

from thinkgate.checkpoint import GateVerdict, load_checkpoint
from thinkgate.cli import main
from thinkgate.errors import CheckpointError, RegistryError
from thinkgate.provenance import verify
from thinkgate.provenance.keys import trusted_keys
from thinkgate.registry import Action, Registry


def passed(path: Path, config: str = "{}") -> Path:
    record_decision(make_checkpoint(path, config=config))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def test_promote_resolve_rollback(tmp_path: Path, registry: Registry) -> None:
    first, second, third = (passed(tmp_path / name, name) for name in ("1", "2", "3"))
    with pytest.raises(RegistryError, match="nothing promoted yet"):
        registry.resolve("production")
    registry.promote("production", first)
    with pytest.raises(RegistryError, match="no earlier checkpoint"):
        registry.rollback("production")
    registry.promote("production", second, "better")
    registry.promote("production", third)
    assert registry.resolve("production") == third
    assert registry.rollback("production", "loops").model_digest == load_checkpoint(second).digest
    assert registry.rollback("production").model_digest == load_checkpoint(first).digest
    assert registry.resolve("production") == first
    with pytest.raises(RegistryError, match="no earlier checkpoint"):
        registry.rollback("production")
    registry.promote("production", third)
    assert registry.resolve("production") == third
    history = registry.history("production")
    up, back = Action.PROMOTE, Action.ROLLBACK
    assert [entry.action for entry in history] == [up, up, up, back, back, up]
    assert [entry.why for entry in history] == ["", "better", "", "loops", "", ""]
    assert all(entry.by and entry.when and entry.signed_by for entry in history)
    with pytest.raises(RegistryError, match="did you mean 'production'"):
        registry.resolve("prodution")


def test_only_what_passed_is_promoted(tmp_path: Path, registry: Registry) -> None:
    folder = make_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match="no gate decision"):
        registry.promote("production", folder)
    for verdict in (GateVerdict.FAIL, GateVerdict.INCONCLUSIVE):
        record_decision(folder, verdict)
        with pytest.raises(CheckpointError, match=f"the gate said {verdict.upper()}"):
            registry.promote("production", folder)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        registry.promote("production", tmp_path / "nowhere")
    assert registry.aliases() == []


def test_a_rollback_verifies_where_it_goes(tmp_path: Path, registry: Registry) -> None:
    first, second = passed(tmp_path / "1", "1"), passed(tmp_path / "2", "2")
    registry.promote("production", first)
    registry.promote("production", second)
    (first / "extra").touch()
    with pytest.raises(CheckpointError, match=r"1 is refused: .*added"):
        registry.rollback("production")
    shutil.rmtree(first)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        registry.rollback("production")
    passed(first, "another model of that name")
    with pytest.raises(RegistryError, match=r"held .* when 'production' pointed at it and holds"):
        registry.rollback("production")
    assert registry.resolve("production") == second


def test_registry_and_checkpoints_can_be_moved_together(tmp_path: Path) -> None:
    checkpoint = passed(tmp_path / "a" / "ünï code [1]")
    Registry(tmp_path / "a" / "registry").promote("production", checkpoint)
    (tmp_path / "a").rename(tmp_path / "b c")
    moved = Registry(tmp_path / "b c" / "registry").resolve("production")
    assert moved == tmp_path / "b c" / "ünï code [1]"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed(tmp_path / "deep" / "c")
    monkeypatch.chdir(tmp_path / "deep" / "c")
    monkeypatch.setenv("THINKGATE_REGISTRY", "../../registry")
    assert main(["promote", "."]) == 0
    monkeypatch.chdir("/")
    assert Registry(tmp_path / "registry").resolve("production") == tmp_path / "deep" / "c"


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path, registry: Registry) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with pytest.raises(CheckpointError, match="is not UTF-8; rename it"):
        registry.promote("production", make_checkpoint(folder))
    with pytest.raises(CheckpointError, match="is not UTF-8; rename it"):
        record_decision(folder)
    inside = passed(tmp_path / "c")
    Path(os.fsdecode(os.fsencode(inside) + b"/\xff")).touch()
    with pytest.raises(CheckpointError, match="is not UTF-8; rename it"):
        registry.promote("production", inside)


@pytest.mark.parametrize("alias", ["", "../x", "a/b", ".hidden", "x" * 65])
def test_an_alias_is_a_plain_name(tmp_path: Path, alias: str) -> None:
    for act in (lambda r: r.promote(alias, tmp_path), lambda r: r.rollback(alias)):
        with pytest.raises(RegistryError, match="use letters, digits"):
            act(Registry(tmp_path))


@pytest.mark.parametrize("damage", [b"", b"\xff\n", b"[]\n", b'{"action": "promote"', b"\0" * 99])
def test_a_damaged_file_is_named_and_rollback_recovers(
    tmp_path: Path, registry: Registry, damage: bytes
) -> None:
    first, second = passed(tmp_path / "1", "1"), passed(tmp_path / "2", "2")
    registry.promote("production", first)
    file = registry.root / "production.jsonl"
    kept = file.read_bytes()
    file.write_bytes(kept + damage if damage else b"")
    act = [registry.history, registry.resolve, lambda alias: registry.promote(alias, second)]
    if not damage:
        act.append(registry.rollback)
    for each in act:
        with pytest.raises(RegistryError, match=r"production\.jsonl, line \d: not a registry entry|"
                           "no earlier checkpoint"):  # fmt: skip
            each("production")
    if damage:
        assert registry.rollback("production").model_digest == load_checkpoint(first).digest
        assert registry.resolve("production") == first


def test_names_and_notes_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = passed(tmp_path / "a [" / "b]")
    registry = ["--registry", str(tmp_path / "registry")]
    assert main(["promote", str(checkpoint), "--reason", "[/x]", *registry]) == 0
    assert main(["list", *registry]) == 0
    assert "[/x]" in capsys.readouterr().out


def test_a_registry_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = passed(tmp_path / "c")
    (tmp_path / "file").touch()
    assert main(["promote", str(checkpoint), "--registry", str(tmp_path / "file" / "r")]) == 2
    assert "file/r: not a directory; name a folder" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_alias(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = passed(tmp_path / "1", "1"), passed(tmp_path / "2", "2")
    registry.promote("production", first)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            registry.promote("production", second)
    assert registry.resolve("production") == first
    assert [p.name for p in registry.root.iterdir()] == [".lock", "production.jsonl"]


def test_show_says_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = passed(tmp_path / "c")
    where = ["--registry", str(tmp_path / "registry")]
    assert main(["promote", str(checkpoint), "--reason", "first [one]", *where]) == 0
    capsys.readouterr()
    for target in ("production", str(checkpoint)):
        assert main(["show", target, *where]) == 0
        said = " ".join(capsys.readouterr().out.split())
        for words in ("d-test of", "by default (", "all that was signed matches", "first [one]"):
            assert words in said
    (checkpoint / "notes").touch()
    assert main(["show", "production", *where]) == 1
    assert "refused" in capsys.readouterr().out
    assert main(["show", "prod", *where]) == 2
    assert "no alias 'prod' in" in capsys.readouterr().err


def test_prune_forgets_and_deletes_only_what_no_alias_needs(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [passed(tmp_path / f"c{n}", str(n)) for n in range(5)]
    for folder in folders:
        registry.promote("production", folder)
    registry.promote("staging", folders[0])
    passed(folders[2], "another model by now")
    command = ["prune", "--keep", "2", "--checkpoints", "--registry", str(registry.root)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("forget ") == 3 and said.count("delete ") == 1
    assert f"delete   {folders[1]}" in said and "nothing was done" in said
    assert all(folder.is_dir() for folder in folders)
    assert len(registry.history("production")) == 5
    assert main([*command, "--yes"]) == 0
    assert [folder.is_dir() for folder in folders] == [True, False, True, True, True]
    assert registry.resolve("staging") == folders[0]
    assert registry.rollback("production").model_digest == load_checkpoint(folders[3]).digest
    with pytest.raises(RegistryError, match="keep 1 at least"):
        registry.prune(0)


def test_prune_follows_links_to_what_is_needed_and_deletes_none(
    tmp_path: Path, registry: Registry
) -> None:
    real, old = passed(tmp_path / "real", "1"), passed(tmp_path / "old", "2")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "other").symlink_to(old)
    for folder in (real, tmp_path / "other", tmp_path / "link"):
        registry.promote("production", folder)
    dropped, folders = registry.prune(1, checkpoints=True, really=True)
    assert len(dropped) == 2 and folders == []
    assert load_checkpoint(registry.resolve("production")).path.resolve() == real
    assert old.is_dir()


def test_an_alias_stands_for_its_folder(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = passed(tmp_path / "c")
    where = ["--registry", str(registry.root)]
    registry.promote("staging", folder)
    assert main(["verify", "staging", *where]) == 0
    assert main(["promote", "staging", "--alias", "production", *where]) == 0
    assert registry.resolve("production") == folder
    assert main(["push", "staging", "me/reasoner", "--dry-run", "--allow-ungated", *where]) == 2
    assert "report.json is not there" in capsys.readouterr().err  # the folder's own shortcoming
    passed(folder, "another model by now")
    assert main(["verify", str(folder), *where]) == 0
    assert main(["verify", "staging", *where]) == 2
    assert "'staging' was promoted with digest" in capsys.readouterr().err
    assert main(["promote", "stagin", *where]) == 2
    assert "did you mean 'staging'" in capsys.readouterr().err


# What follows is the promise of the registry: 8 processes, 200 changes, kill -9 among them.
ALIASES = ("production", "staging")
CHANGES = 200
WORKERS = 8


def change_for_ever(root: Path, checkpoints: list[Path], log: Path, seed: int) -> None:
    """Promote and roll back at random; a byte in the log for each change that went through."""
    chosen, registry = random.Random(seed), Registry(root)
    with log.open("ab", buffering=0) as done:
        while True:
            alias = chosen.choice(ALIASES)
            try:
                if chosen.random() < 0.4:
                    registry.rollback(alias)
                else:
                    registry.promote(alias, chosen.choice(checkpoints), f"worker {seed}")
                done.write(b".")
            except RegistryError as error:  # nothing to roll back to, yet
                assert "no earlier checkpoint" in str(error) or "no alias" in str(error)
            except CheckpointError as error:
                assert "unproven" in str(error)


def watch_for_ever(root: Path, proven: set[str], problems: Path) -> None:
    """A reader without a lock, as a server is one: at every moment all of it is in order."""
    reader = Registry(root)
    while True:
        for alias in reader.aliases():
            try:
                path = reader.resolve(alias)
                checkpoint, _, _ = verify(path, trusted_keys(root)).require()
                assert checkpoint.digest in proven
                assert {entry.model_digest for entry in reader.history(alias)} <= proven
            except Exception as error:
                with problems.open("a") as file:
                    file.write(f"{alias}: {error!r}\n")
        time.sleep(0.002)


@pytest.mark.slow
def test_two_hundred_changes_by_eight_processes_that_are_killed(tmp_path: Path) -> None:
    checkpoints = [passed(tmp_path / f"c{n}", str(n)) for n in range(4)]
    proven = {load_checkpoint(path).digest for path in checkpoints}
    unproven = make_checkpoint(tmp_path / "unproven", config="5")
    record_decision(unproven, signed=False)
    root, log, problems = tmp_path / "registry", tmp_path / "log", tmp_path / "problems"
    log.touch()
    problems.touch()
    context = multiprocessing.get_context("fork")  # a new interpreter for each would take minutes
    seeds, chosen, deaths = iter(range(10_000)), random.Random(0), 0

    def start() -> multiprocessing.process.BaseProcess:
        worker = context.Process(
            target=change_for_ever, args=(root, [*checkpoints, unproven], log, next(seeds))
        )
        worker.start()
        return worker

    workers = [start() for _ in range(WORKERS)]
    watcher = context.Process(target=watch_for_ever, args=(root, proven, problems))
    watcher.start()
    deadline = time.monotonic() + 120
    try:
        while log.stat().st_size < CHANGES or deaths < WORKERS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            n = chosen.randrange(WORKERS)
            assert workers[n].is_alive(), "a worker met what it must never meet"
            os.kill(workers[n].pid or 0, signal.SIGKILL)
            workers[n].join()
            workers[n] = start()
            deaths += 1
    finally:
        assert watcher.is_alive()
        for process in (*workers, watcher):
            process.kill()
            process.join()
    assert problems.read_text() == ""
    registry = Registry(root)
    entries = [entry for alias in registry.aliases() for entry in registry.history(alias)]
    # A change that was killed between writing the alias and the log counts in one of them alone.
    assert log.stat().st_size <= len(entries) <= log.stat().st_size + deaths + WORKERS
    assert {entry.model_digest for entry in entries} <= proven
    registry.promote("production", checkpoints[0])
    assert sorted(p.name for p in root.iterdir()) == [".lock", "production.jsonl", "staging.jsonl"]
