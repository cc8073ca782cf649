"""What may be served, and the command line around it."""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_checkpoint import make_checkpoint, record_decision

from thinkgate.checkpoint import GateVerdict
from thinkgate.errors import CheckpointError, ConfigError, RegistryError, ServerError
from thinkgate.registry import Registry
from thinkgate_clients.local import local_server
from thinkgate_serve.card import find_target
from thinkgate_serve.command import add_arguments
from thinkgate_serve.process import bind


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def thinkgate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [sys.executable, "-m", "thinkgate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_alias_is_served_under_its_name(checkpoint: Path, registry: Registry) -> None:
    decision = record_decision(checkpoint)
    registry.promote("production", checkpoint)
    card = find_target("production", registry=registry)
    assert (card.name, card.digest, card.decision) == ("production", decision.candidate, decision)
    assert card.gate == "pass d-test"
    assert card.describe() == f"production (digest {decision.candidate[:8]}…, gate PASS d-test)"
    assert find_target("production", registry=registry, name="mine").name == "mine"


def test_a_folder_is_served_under_its_manifests_name(checkpoint: Path, registry: Registry) -> None:
    record_decision(checkpoint)
    assert find_target(str(checkpoint), registry=registry).name == "tiny"


def test_nothing_ungated_is_served(checkpoint: Path, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"no gate decision.*--allow-ungated"):
        find_target(str(checkpoint), registry=registry)
    record_decision(checkpoint, GateVerdict.FAIL)
    with pytest.raises(CheckpointError, match="the gate said FAIL"):
        find_target(str(checkpoint), registry=registry)
    card = find_target(str(checkpoint), registry=registry, allow_ungated=True)
    assert (card.decision, card.gate) == (None, "ungated")
    assert "UNGATED" in card.describe()


def test_allowing_ungated_does_not_hide_a_pass(checkpoint: Path, registry: Registry) -> None:
    record_decision(checkpoint)
    assert find_target(str(checkpoint), registry=registry, allow_ungated=True).decision is not None


@pytest.mark.parametrize("allow", [False, True])
def test_a_changed_checkpoint_is_never_served(
    checkpoint: Path, registry: Registry, allow: bool
) -> None:
    record_decision(checkpoint)
    (checkpoint / "config.json").write_text('{"changed": true}')
    with pytest.raises(CheckpointError, match="changed"):
        find_target(str(checkpoint), registry=registry, allow_ungated=allow)


def test_an_alias_does_not_follow_its_folder(checkpoint: Path, registry: Registry) -> None:
    record_decision(checkpoint)
    registry.promote("production", checkpoint)
    other = make_checkpoint(checkpoint.parent / "other")
    (other / "extra.json").write_text("{}")
    for file in other.iterdir():
        if file.is_file():
            file.replace(checkpoint / file.name)
    with pytest.raises(CheckpointError, match="changed"):
        find_target("production", registry=registry)


def test_an_alias_whose_folder_was_replaced(checkpoint: Path, registry: Registry) -> None:
    record_decision(checkpoint)
    registry.promote("production", checkpoint)
    record_decision(make_checkpoint(checkpoint, config='{"other": 1}'))
    with pytest.raises(CheckpointError, match="promote it again"):
        find_target("production", registry=registry)


def test_an_alias_whose_folder_is_gone(checkpoint: Path, registry: Registry) -> None:
    record_decision(checkpoint)
    registry.promote("production", checkpoint)
    checkpoint.rename(checkpoint.with_name("moved"))
    with pytest.raises(RegistryError, match=r"not there any more; promote it from where it lies"):
        find_target("production", registry=registry)


def test_plain_folders_and_hub_ids_need_the_flag(tmp_path: Path, registry: Registry) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(CheckpointError, match="not a finished thinkgate checkpoint"):
        find_target(str(plain), registry=registry)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        find_target(str(plain), registry=registry, allow_ungated=True)
    (plain / "config.json").write_text("{}")
    assert find_target(str(plain), registry=registry, allow_ungated=True).name == "plain"
    hub = find_target("org/model-1.5B", registry=registry, allow_ungated=True)
    assert (hub.name, hub.source, hub.digest) == ("org/model-1.5B", "org/model-1.5B", None)
    with pytest.raises(RegistryError, match="a Hub model needs --allow-ungated"):
        find_target("org/model-1.5B", registry=registry)
    with pytest.raises(RegistryError, match="neither a checkpoint folder nor an alias"):
        find_target("nowhere", registry=registry)


@pytest.mark.parametrize("how", ["parse_args", "parse_intermixed_args"])
def test_engine_options(how: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = getattr(parser, how)(
        ["--engine.dtype", "bfloat16", "here", "--engine.max-num-seqs=8",
         "--engine.gpu_memory_utilization", "0.5", "--port", "0"]
    )  # fmt: skip
    assert args.words == ["here"]
    assert args.port == 0
    assert args.engine == {
        "dtype": "bfloat16",
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.5,
    }
    with pytest.raises(ConfigError, match=r"--engine\.dtype: give it a value"):
        parser.parse_args(["here", "--engine.dtype"])
    with pytest.raises(SystemExit):
        parser.parse_args(["here", "--no-such-option"])


def test_two_servers_cannot_have_one_port() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
        bind("127.0.0.1", port)
    first.close()
    bind("127.0.0.1", port).close()


def test_an_unknown_host() -> None:
    with pytest.raises(ServerError, match=r"--host no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


def test_a_port_in_use_is_told_before_the_engine_loads(checkpoint: Path) -> None:
    record_decision(checkpoint)  # its config.json is empty: loading it would fail
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = thinkgate("serve", checkpoint, "--port", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"thinkgate: cannot listen on 127.0.0.1:{port}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_ungated_is_a_usage_error(checkpoint: Path) -> None:
    done = thinkgate("serve", checkpoint)
    assert done.returncode == 2
    assert "no gate decision" in done.stderr


def test_without_vllm_the_fix_is_named(checkpoint: Path, tmp_path: Path) -> None:
    record_decision(checkpoint)
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'vllm' else find(name, *a); "
        "from thinkgate.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", str(checkpoint)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "make setup" in done.stderr


def test_local_server_passes_the_reason_on(tmp_path: Path, checkpoint: Path) -> None:
    with (
        pytest.raises(ServerError, match="no gate decision"),
        local_server(checkpoint, registry=tmp_path),
    ):
        pytest.fail("it must not start")


def test_local_server_shows_the_end_of_the_log(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import sys\nprint('the last words')\nsys.stdout.flush()\nsys.exit(9)\n")
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{path}")
    with (
        pytest.raises(ServerError, match=r"(?s)exit code \d+.*the last words"),
        local_server(checkpoint),
    ):
        pytest.fail("it must not start")


def test_local_server_kills_what_does_not_start(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = tmp_path / "sitecustomize.py"
    stuck.write_text(
        "import os, sys, time\n"
        f"if 'serve' in sys.argv or '-m' in sys.orig_argv:\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{path}")
    with (
        pytest.raises(ServerError, match="not ready after 3 s"),
        local_server(checkpoint, timeout=3),
    ):
        pytest.fail("it must not start")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("value", ["hot", True, None, "nan"])
def test_sampling_defaults_that_are_no_numbers_are_refused(
    checkpoint: Path, registry: Registry, value: object
) -> None:
    file = checkpoint / "thinkgate" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["template"]["sampling"] = {"temperature": float("nan") if value == "nan" else value}
    file.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"sampling\.temperature .* not a number"):
        find_target(str(checkpoint), registry=registry, allow_ungated=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_an_import_swallows_is_not_forgotten(name: str) -> None:
    code = f"""
import os, signal
from thinkgate_serve.process import stop_while_loading
stopped = stop_while_loading()
assert stopped() is None
try:
    os.kill(os.getpid(), signal.{name})
except BaseException:
    pass
assert stopped() == 128 + signal.{name}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
