"""Two replicas on a real local Ray, each with a real vLLM engine; one is killed."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

from thinkgate.errors import ConfigError

# Ray takes 127.0.0.1 for a mistake, and listens on every address, unless it may not form clusters.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray

REPLICA = "ServeReplica:default:thinkgate"
START_SECONDS = 240


@pytest.fixture(scope="module")
def replicas(gated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gated tiny checkpoint on two replicas; the address of Ray's proxy."""
    from ray import serve

    from thinkgate_serve.ray_app import app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Unix sockets lie in Ray's folder, and their paths must be short.
    scratch = Path("/tmp", f"ray-{os.getpid()}")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(scratch),
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        # As `serve run` hands words of the command line on.
        arguments = {
            "target": str(gated_checkpoint),
            "replicas": "2",
            "gpus": "0",
            "log_format": "off",
            "engine.max_num_seqs": "16",
        }
        serve.run(app(arguments))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _replica_pids() -> set[int]:
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if REPLICA in " ".join(process.info["cmdline"] or [])
    }


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # dead, and nobody has asked yet
    except psutil.NoSuchProcess:
        return False


async def _ask(base_url: str, count: int) -> list[tuple[str, str]]:
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        replies = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": "closed"}],
                    temperature=0,
                )
                for _ in range(count)
            )
        )
    return [(r.choices[0].message.reasoning_content, r.choices[0].message.content) for r in replies]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_replicas_answer_stream_and_outlive_one_of_them(replicas: str) -> None:
    client = OpenAI(base_url=replicas, api_key="none")
    [model] = client.models.list().data
    assert model.model_dump()["gate"]["verdict"] == "pass"
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "closed"}], temperature=0, stream=True
    )
    deltas = [chunk.choices[0].delta.model_dump() for chunk in stream]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "7+8=15"
    assert "".join(delta.get("content") or "" for delta in deltas) == "15"
    assert asyncio.run(_ask(replicas, 32)) == [("7+8=15", "15")] * 32

    before = _replica_pids()
    assert len(before) == 2
    victim = before.copy().pop()
    engines = psutil.Process(victim).children(recursive=True)
    assert engines
    os.kill(victim, signal.SIGKILL)
    assert asyncio.run(_ask(replicas, 32)) == [("7+8=15", "15")] * 32

    deadline = time.monotonic() + START_SECONDS
    while len(_replica_pids() - {victim}) < 2:
        assert time.monotonic() < deadline, "Ray did not replace the replica"
        time.sleep(1)
    assert not any(map(_runs, engines)), "its engine outlived it"


def test_a_wrong_argument_is_named() -> None:
    from thinkgate_serve.ray_app import app

    with pytest.raises(ConfigError, match="'replicsa'"):
        app({"target": "production", "replicsa": 2})
    with pytest.raises(ConfigError, match="max_queue"):
        app({"target": "production", "max_queue": "many"})
    with pytest.raises(ConfigError, match="max_replicas"):
        app({"target": "production", "replicas": 4, "max_replicas": 2})
