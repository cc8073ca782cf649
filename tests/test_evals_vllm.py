"""The tiny model on the real server, evaluated: killed and resumed, and with the server gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import LESSONS

from thinkgate.answers import Verdict
from thinkgate.format import split
from thinkgate_clients.local import LocalServer
from thinkgate_evals.records import read_records

pytestmark = pytest.mark.slow

# What the model answers to these it knows by heart, so that every verdict is known beforehand.
GOLDS = {"closed": "15", "empty": "42"}
COUNT = 240


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    assert all(split(LESSONS[word]).answer == gold for word, gold in GOLDS.items())
    file = tmp_path / "lessons.jsonl"
    words = list(GOLDS)
    rows = ({"prompt": words[n % 2], "gold": GOLDS[words[n % 2]]} for n in range(COUNT))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(target: object, problems: Path, out: Path) -> list[str]:
    """`thinkgate eval` with greedy decoding, slow enough to be interrupted."""
    options = ["--out", str(out), "--concurrency", "4", "--set", "sampling.temperature=0"]
    suite = ["--suite", f"jsonl:{problems}", "--set", "sampling.max_tokens=64"]
    return [sys.executable, "-m", "thinkgate", "eval", str(target), *suite, *options]


def wait_for(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until `count` records are written; the run must still be going on."""
    deadline = time.monotonic() + 240
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_complete(path: Path) -> None:
    records = read_records(path)
    assert len(records) == len({record.key for record in records}) == COUNT
    assert {record.verdict for record in records} == {Verdict.CORRECT}


def test_kill_minus_nine_loses_and_doubles_nothing(
    served: LocalServer, problems: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = command(served.base_url, problems, out)
    for kill_at in (20, 90):
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL)
        wait_for(out / "lessons.jsonl", kill_at, process)
        process.kill()
        process.wait()
        assert kill_at <= len(read_records(out / "lessons.jsonl")) < COUNT
    done = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert_complete(out / "lessons.jsonl")


def test_a_server_that_is_killed_stops_the_run_which_goes_on_later(
    tiny_checkpoint: Path, problems: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = command(tiny_checkpoint, problems, out)
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(out / "lessons.jsonl", 20, process)
    [server] = children(process.pid)
    os.killpg(server, signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    sentence = error.decode().strip().splitlines()[-1]
    assert "nothing was counted as wrong" in sentence and "server.log" in sentence
    kept = [r for r in read_records(out / "lessons.jsonl") if r.error is None]
    assert 20 <= len(kept) < COUNT
    assert {record.verdict for record in kept} == {Verdict.CORRECT}
    done = subprocess.run(run, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert_complete(out / "lessons.jsonl")


FORWARD = """
import asyncio, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def accept(reader, writer):
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))
async def main():
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
"""A second address of the server, which can be killed."""


def test_an_address_that_is_killed_leaves_its_work_to_the_other(
    served: LocalServer, problems: Path, tmp_path: Path
) -> None:
    port = str(urlsplit(served.base_url).port)
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", FORWARD, port], stdout=subprocess.PIPE, text=True
    ) as second:
        assert second.stdout is not None
        other = f"http://127.0.0.1:{second.stdout.readline().strip()}/v1"
        run = [*command(served.base_url, problems, out), "--endpoints", other]
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wait_for(out / "lessons.jsonl", 40, process)
        second.kill()
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0
    assert other in error.decode() and "the other addresses do its work" in error.decode()
    assert_complete(out / "lessons.jsonl")
    answered = Counter(record.endpoint for record in read_records(out / "lessons.jsonl"))
    assert answered.keys() == {served.base_url, other} and answered[other] < COUNT / 2


def children(pid: int) -> list[int]:
    """Direct children that serve."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            words = entry.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended while we looked
            continue
        if int(fields[1]) == pid and b"serve" in words:
            found.append(int(entry.parent.name))
    return found
