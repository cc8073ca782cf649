"""What a streamed token costs: our server against vLLM's own `api_server`, on the same tiny model.

Goals, in every cell of 1, 16 and 64 streams with outputs of 200 and 4,000 tokens:
  cpu         at most 0.5 times the CPU seconds of vLLM's API process per 1,000 streamed tokens
  throughput  at least 1.0 times its tokens per second
  ttft        at most 1.0 times its time to the first token
  answer      at most 1.0 times its time to the first answer token

    python bench/server.py [--quick] [--check] [--rounds 3] [--streams 1 16 64] [--tokens 200 4000]
                           [--eager] [--floor]

Both run at once with the same engine arguments and environment, vLLM's with the `deepseek_r1`
parser; one is loaded at a time, in turns, and a ratio is taken within a turn. A cell is printed as
soon as it is measured. `--eager` spares both the compilation on a GPU: a minute less to the start,
and slower engines. The model is random,
its template opens the thought, and a bias on `</think>` ends it about halfway; equal seeds give
both the same tokens. The API process is the one that holds the socket, without its engine process.
A ratio of time or throughput is met within the noise of `NOISE`, which two runs of one server show.
`--floor` measures our server alone over a scripted engine: what is left is ours, not vLLM's.
"""

import argparse
import asyncio
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkgate.format import THINK

CPU_GOAL, NOISE = 0.5, 0.05
CONTEXT = 4608
ENGINE = {
    "max_model_len": str(CONTEXT),
    "max_num_seqs": "64",
    "dtype": "float32",
    "seed": "0",
}
# Both fit on one GPU, the cache of a given size: beside a starting engine none can be measured.
ON_CUDA = {
    "dtype": "bfloat16",
    "gpu_memory_utilization": "0.3",
    "kv_cache_memory_bytes": str(2 * 2**30),
}
ON_CPU = ("--enforce-eager", "--no-enable-chunked-prefill", "--distributed-executor-backend=uni")
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
ENVIRONMENT_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True)
class Server:
    """A running server and the process whose CPU is counted."""

    port: int
    model: str
    pid: int


@dataclass
class Reply:
    """What the client saw of one stream; seconds since its request was sent."""

    first: float = math.nan
    answer: float = math.nan
    tokens: int = 0


def main() -> int:
    """Run what the command line asks for, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 tokens, 1 and 16 streams, once")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, nargs="+", default=[200, 4000])
    parser.add_argument("--eager", action="store_true", help="no compilation, for either")
    parser.add_argument("--floor", action="store_true", help="ours over a scripted engine")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return serve_scripted()
    if args.quick:
        args.streams, args.tokens, args.rounds = [1, 16], [200], 1
    return floor(args) if args.floor else compare(args)


def compare(args: argparse.Namespace) -> int:
    """Ours and vLLM's, in turns."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and both servers stop
    os.environ.pop("THINKGATE_ENGINE", None)  # vLLM's own server does not read it
    os.environ.update(ENVIRONMENT if has_cuda() else ENVIRONMENT | ENVIRONMENT_ON_CPU)
    settings = ENGINE | (ON_CUDA if has_cuda() else {})
    cells: list[dict[str, Any]] = []
    with ExitStack() as stack:
        model, close_id = make_model(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        started = time.monotonic()
        vllm = stack.enter_context(vllm_server(model, settings, args.eager))
        ours = stack.enter_context(our_server(model, settings, args.eager))
        servers = {"thinkgate": ours, "vllm": vllm()}
        print(f"both started in {time.monotonic() - started:.0f} s", flush=True)
        for server in servers.values():  # what only the first requests pay for
            asyncio.run(load(server, 4, 32, 0, close_id))
        for tokens in args.tokens:
            for streams in args.streams:
                turns = [
                    {
                        name: measure(server, streams, tokens, turn, close_id)
                        for name, server in in_turn(servers, turn)
                    }
                    for turn in range(args.rounds)
                ]
                cells.append(summary(streams, tokens, turns))
                show(cells[-1])
    missed = [f"{goal} {cell['cell']}" for cell in cells for goal in missed_goals(cell)]
    print("goals met" if not missed else f"MISSED: {'; '.join(missed)}")
    print(json.dumps({"bench": "server", "cells": cells, "missed": missed}))
    return 1 if args.check and missed else 0


def floor(args: argparse.Namespace) -> int:
    """Our server over a scripted engine: CPU per 1,000 tokens, by streams."""
    command = [sys.executable, __file__, "--child"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        server = Server(int(process.stdout.readline()), "m", process.pid)
        found = {
            streams: statistics.median(
                measure(server, streams, 1000, turn, 0)["cpu"] for turn in range(args.rounds)
            )
            for streams in args.streams
        }
        process.stdin.close()  # it ends with its input
    for streams, cpu in found.items():
        print(f"{streams:>3} streams: {cpu:.1f} ms CPU per 1,000 tokens")
    print(json.dumps({"bench": "server", "floor": found}))
    return 0


def serve_scripted() -> int:
    """Our server over an engine that says 1,000 tokens at once, until standard input closes."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from fake_engine import CARD, FakeEngine, characters  # pyright: ignore[reportMissingImports]

    from thinkgate_serve.app import create_app
    from thinkgate_serve.model import Deployment
    from thinkgate_serve.process import bind, end_with_stdin, make_server, serve

    said = f"{THINK.open}{'a' * 492}{THINK.close}{'b' * 493}"
    engine = FakeEngine(characters(said))
    sock = bind("127.0.0.1", 0)
    end_with_stdin()
    port = sock.getsockname()[1]
    server = make_server(
        create_app(Deployment(engine, CARD)),
        announce=lambda: print(port, flush=True),
        drain_seconds=1,
    )
    return serve(server, sock)


def in_turn(servers: dict[str, Server], turn: int) -> list[tuple[str, Server]]:
    """Neither is always the first."""
    order = list(servers.items())
    return order if turn % 2 == 0 else order[::-1]


def measure(server: Server, streams: int, tokens: int, turn: int, close_id: int) -> dict[str, Any]:
    """Load one server; short outputs are repeated so that a second or more is measured."""
    repeats = max(1, round(800 / tokens)) if streams < 64 else 1
    cpu, started = cpu_seconds(server.pid), time.perf_counter()
    replies: list[Reply] = []
    for repeat in range(repeats):
        seed = 1000 * (turn * repeats + repeat)
        replies += asyncio.run(load(server, streams, tokens, seed, close_id))
    seconds, cpu = time.perf_counter() - started, cpu_seconds(server.pid) - cpu
    streamed = sum(reply.tokens for reply in replies)
    if streamed != repeats * streams * tokens:
        raise SystemExit(f"{server}: {streamed} tokens, not {repeats * streams * tokens}")
    answers = [reply.answer for reply in replies if not math.isnan(reply.answer)]
    return {
        "cpu": 1e6 * cpu / streamed,
        "throughput": streamed / seconds,
        "ttft": 1000 * statistics.median(reply.first for reply in replies),
        "answer": 1000 * statistics.median(answers) if answers else math.nan,
    }


async def load(server: Server, streams: int, tokens: int, seed: int, close_id: int) -> list[Reply]:
    """That many streams at once."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "count"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        "logit_bias": {str(close_id): math.log(2 * 260 / tokens)},
    }
    asked = (stream(server.port, body | {"seed": seed + index}) for index in range(streams))
    return await asyncio.gather(*asked)


async def stream(port: int, body: dict[str, Any]) -> Reply:
    """One request over a socket of its own, read with as little work as can be."""
    raw = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    reply = Reply()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(head.encode() + raw)
    try:
        async for line in reader:
            if not line.startswith(b"data: {"):
                if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                    raise SystemExit((line + await reader.read()).decode())
                continue
            if math.isnan(reply.answer):
                now = time.perf_counter() - started
                delta = json.loads(line[6:])["choices"]
                delta = delta[0]["delta"] if delta else {}
                answered = bool(delta.get("content"))
                if math.isnan(reply.first) and (answered or delta.get("reasoning")):
                    reply.first = now
                if answered:
                    reply.answer = now
            if b'"completion_tokens":' in line:
                reply.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    finally:
        writer.close()
    return reply


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, without its children, to the nanosecond.

    The clock of another process: clock_getcpuclockid(3). /proc counts in hundredths of a second.
    """
    return time.clock_gettime(~pid << 3 | 2)


def summary(streams: int, tokens: int, turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of both, and the median and range of their ratio within a turn."""
    cell: dict[str, Any] = {"cell": f"{streams} x {tokens}"}
    for key in ("cpu", "throughput", "ttft", "answer"):
        ratios = [turn["thinkgate"][key] / turn["vllm"][key] for turn in turns]
        cell[key] = {
            name: statistics.median(turn[name][key] for turn in turns)
            for name in ("thinkgate", "vllm")
        } | {"ratio": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}
    return cell


def missed_goals(cell: dict[str, Any]) -> list[str]:
    """Names of the goals a cell misses."""
    met = {
        "cpu": cell["cpu"]["ratio"] <= CPU_GOAL,
        "throughput": cell["throughput"]["ratio"] >= 1 - NOISE,
        "ttft": cell["ttft"]["ratio"] <= 1 + NOISE,
        "answer": not cell["answer"]["ratio"] > 1 + NOISE,
    }
    return [goal for goal, good in met.items() if not good]


def show(cell: dict[str, Any]) -> None:
    """One cell, as soon as it is known: a run that is cut off has shown what it measured."""
    print(f"\n{cell['cell']:<30}{'thinkgate':>12}{'vllm':>12}   ratio (range)")
    labels = {
        "cpu": "API CPU, ms per 1,000 tokens",
        "throughput": "tokens/s",
        "ttft": "TTFT, ms",
        "answer": "first answer token, ms",
    }
    for key, label in labels.items():
        row = cell[key]
        spread = f"{row['ratio']:.2f} ({row['from']:.2f} to {row['to']:.2f})"
        print(f"{label:<30}{row['thinkgate']:>12.1f}{row['vllm']:>12.1f}   {spread}", flush=True)


def make_model(folder: Path) -> tuple[Path, int]:
    """A random Qwen3 whose template opens the thought, and the id of its closing tag."""
    import torch

    from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>" + THINK.open + "{% endif %}"
    )
    model = build_model(tokenizer, Scratch(layers=2, max_length=CONTEXT, initializer_range=0.02))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.convert_tokens_to_ids(THINK.close)


@contextmanager
def our_server(model: Path, settings: dict[str, str], eager: bool) -> Iterator[Server]:
    from thinkgate_clients.local import local_server

    extra = [word for key, value in settings.items() for word in (f"--engine.{key}", value)]
    extra += ["--engine.enforce_eager", "true"] if eager else []
    extra += ["--log-format", "off"]
    with local_server(model, allow_ungated=True, extra=extra) as server:
        port = int(server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
        yield Server(port, server.model, server.process.pid)


@contextmanager
def vllm_server(
    model: Path, settings: dict[str, str], eager: bool
) -> Iterator[Callable[[], Server]]:
    """vLLM's own, starting; what is yielded waits until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--served-model-name", "m", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--reasoning-parser", "deepseek_r1"]
    command += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    for key, value in settings.items():
        command += [f"--{key.replace('_', '-')}", value]
    if not has_cuda():
        command += ON_CPU
    elif eager:
        command += ["--enforce-eager"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        def ready() -> Server:
            until(lambda: healthy(port), process, log)
            return Server(port, "m", process.pid)

        try:
            yield ready
        finally:
            process.terminate()
            process.wait()


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Any) -> None:
    """Wait for `ready`, five minutes at most; SystemExit with the log's end when it dies."""
    deadline = time.monotonic() + 300
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise SystemExit(log.read()[-3000:].decode(errors="replace"))
        time.sleep(0.2)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
