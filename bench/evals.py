"""Measures our evaluation runner against lm-eval's `local-chat-completions` on the same server.

Both ask the same problems with the same prompts and sampling, as many at a time, and grade with the
same verifier (lm-eval through the task `thinkgate_arithmetic`). Each run is a process of its own;
its time starts after the imports, and its CPU is its own, not the server's.

Goals:
  1. At least 1.5 times lm-eval's problems per second.
  2. No more client CPU per sample than lm-eval.
  3. With --data-dir: golds echoed back score 100 % on every benchmark there, changed ones 0 %.

    python bench/evals.py [--problems 1000] [--concurrency 64] [--rounds 3] [--check]
                          [--target CHECKPOINT] [--seeds N] [--data-dir DIR]

--seeds N, with --target, repeats the measurement N times with a seed of its own for every sample,
as we ask, and N times with one seed for all of them, as lm-eval asks: then all samples share their
luck, and no interval that takes them for independent is true.

Without --target the server is scripted and answers at once: what remains is the client. With it the
checkpoint is served for real. `--check` exits 1 when a goal is missed. The last line is one JSON
object with every number.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SPEED_GOAL = 1.5
CPU_GOAL = 1.0
BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25", "amc23")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", type=Path, help="checkpoint to serve; default: scripted")
    parser.add_argument(
        "--seeds", type=int, default=0, help="with --target: repeats for the spread"
    )
    parser.add_argument("--data-dir", type=Path, help="benchmarks as local JSONL, echoed back")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", choices=["ours", "lm-eval", "server"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "server":
        return _serve_scripted()
    if args.child:
        print(json.dumps(_timed(_ours if args.child == "ours" else _lm_eval, args)))
        return 0
    results = _compare(args)
    if args.data_dir:
        results["echo"] = {name: _echoed(name, args.data_dir) for name in BENCHMARKS}
    _show(results)
    print(json.dumps(results))
    return 1 if args.check and not _good(results) else 0


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    """The runs, one after the other so that a busy machine slows both alike; medians."""
    rows: dict[str, list[dict[str, float]]] = {"ours": [], "lm-eval": []}
    with _server(args.target) as (url, model):
        for _ in range(args.rounds):
            for name, found in rows.items():
                command = [sys.executable, __file__, "--child", name, "--url", url]
                command += ["--model", model, "--problems", str(args.problems)]
                command += ["--concurrency", str(args.concurrency)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        spread = _spread(args, url, model) if args.seeds else {}
    results: dict[str, Any] = {"server": str(args.target or "scripted"), "seeds": spread}
    for name, found in rows.items():
        results[name] = {
            "problems_per_second": args.problems / statistics.median(r["seconds"] for r in found),
            "cpu_ms_per_sample": 1000 * statistics.median(r["cpu"] for r in found) / args.problems,
            "accuracy": statistics.median(r["accuracy"] for r in found),
        }
    ours, theirs = results["ours"], results["lm-eval"]
    results["speed"] = ours["problems_per_second"] / theirs["problems_per_second"]
    results["cpu"] = ours["cpu_ms_per_sample"] / theirs["cpu_ms_per_sample"]
    return results


def _spread(args: argparse.Namespace, url: str, model: str) -> dict[str, list[float]]:
    """Accuracies of repeated measurements, by how the seeds are given."""
    from thinkgate_evals import runner

    def one_for_all(suite_seed: int, problem_id: str, repeat: int) -> int:
        del problem_id, repeat
        return suite_seed

    own, found = runner.sample_seed, {}
    for kind, seeds in (("own", own), ("one for all", one_for_all)):
        runner.sample_seed = seeds
        found[kind] = [
            _ours(
                argparse.Namespace(
                    url=url,
                    model=model,
                    problems=args.problems,
                    concurrency=args.concurrency,
                    seed=seed,
                )
            )()
            for seed in range(1, args.seeds + 1)
        ]
    runner.sample_seed = own
    return found


def _good(results: dict[str, Any]) -> bool:
    echoes = results.get("echo", {}).values()
    return (
        results["speed"] >= SPEED_GOAL
        and results["cpu"] <= CPU_GOAL
        and all((echo["gold"], echo["changed"]) == (1.0, 0.0) for echo in echoes)
    )


def _show(results: dict[str, Any]) -> None:
    print(f"server: {results['server']}")
    for name in ("ours", "lm-eval"):
        row = results[name]
        print(
            f"  {name:<8} {row['problems_per_second']:8.1f} problems/s "
            f"{row['cpu_ms_per_sample']:7.2f} ms CPU per sample, accuracy {row['accuracy']:.1%}"
        )
    print(f"  ours is {results['speed']:.2f} times as fast with {results['cpu']:.2f} of the CPU")
    for kind, found in results["seeds"].items():
        shown = ", ".join(f"{accuracy:.1%}" for accuracy in found)
        print(f"  seeds {kind}: {shown}; standard deviation {statistics.stdev(found):.1%}")
    for name, echo in results.get("echo", {}).items():
        print(f"  {name:<8} golds echoed {echo['gold']:.1%}, changed {echo['changed']:.1%}")


def _timed(run: Callable[[argparse.Namespace], Callable[[], float]], args: Any) -> dict[str, float]:
    measured = run(args)  # imports, and what is loaded before the first request
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    accuracy = measured()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - started, "cpu": cpu, "accuracy": accuracy}


def _ours(args: argparse.Namespace) -> Callable[[], float]:
    from thinkgate_evals.measure import Options, measure_endpoint
    from thinkgate_evals.runner import Endpoint
    from thinkgate_evals.suites import load_suite

    endpoint = Endpoint(base_url=args.url, model=args.model)
    options = Options(limit=args.problems, concurrency=args.concurrency)
    suite = load_suite("arithmetic", overrides=[f"sampling.seed={getattr(args, 'seed', 0)}"])

    def measured() -> float:
        with tempfile.TemporaryDirectory() as out:
            [found] = measure_endpoint(endpoint, [suite], options, Path(out))
        accuracy = found.summary.shares["accuracy"]
        return accuracy.estimate if accuracy else 0.0

    return measured


def _lm_eval(args: argparse.Namespace) -> Callable[[], float]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(ROOT / "evals" / "tasks"), include_defaults=False)
    model = {
        "model": args.model,
        "base_url": f"{args.url}/chat/completions",
        "num_concurrent": args.concurrency,
        "max_retries": 3,
    }

    def measured() -> float:
        found: Any = simple_evaluate(
            model="local-chat-completions",
            model_args=model,
            tasks=["thinkgate_arithmetic"],
            task_manager=manager,
            limit=args.problems,
            apply_chat_template=True,
            bootstrap_iters=0,
        )
        return found["results"]["thinkgate_arithmetic"]["acc,none"]

    return measured


@contextmanager
def _server(target: Path | None) -> Iterator[tuple[str, str]]:
    if target is not None:
        from thinkgate_clients.local import local_server

        with local_server(target.absolute(), allow_ungated=True) as server:
            yield server.base_url, server.model
        return
    command = [sys.executable, __file__, "--child", "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().decode().strip(), "scripted"
        finally:
            process.stdin.close()  # it ends with its input


def _serve_scripted() -> int:
    """Chains of sums answered right, at once, until standard input closes."""
    sys.path.insert(0, str(ROOT / "tests"))
    from scripted_endpoint import (  # pyright: ignore[reportMissingImports]
        Says,
        ScriptedEndpoint,
        prompt_of,
    )

    def script(body: dict[str, Any]) -> Says:
        prompt = prompt_of(body)
        return Says(str(sum(int(n) for n in re.findall(r"-?[0-9]+", prompt))), f"{prompt} …")

    with ScriptedEndpoint(script) as endpoint:
        print(endpoint.base_url, flush=True)
        sys.stdin.read()
    return 0


def _echoed(name: str, data_dir: Path) -> dict[str, float]:
    """Accuracy through the whole path, from prompt to record, of golds and of golds changed."""
    sys.path.insert(0, str(ROOT / "tests"))
    from scripted_endpoint import (  # pyright: ignore[reportMissingImports]
        Says,
        ScriptedEndpoint,
        prompt_of,
    )

    from thinkgate_evals.measure import Options, measure_endpoint
    from thinkgate_evals.runner import Endpoint
    from thinkgate_evals.suites import load_suite

    suite = load_suite(name, data_dir=data_dir)
    golds = {suite.suite.prompt.messages(p.prompt)[-1]["content"]: p.gold for p in suite.problems}
    found: dict[str, float] = {}
    for kind, change in (("gold", lambda gold: gold), ("changed", _changed)):

        def script(body: dict[str, Any], change: Callable[[str], str] = change) -> Says:
            return Says(rf"So it is \boxed{{{change(golds[prompt_of(body)])}}}.", "Hm.")

        with ScriptedEndpoint(script) as server, tempfile.TemporaryDirectory() as out:
            endpoint = Endpoint(base_url=server.base_url, model="scripted")
            [measured] = measure_endpoint(endpoint, [suite], Options(), Path(out))
        accuracy = measured.summary.shares["accuracy"]
        assert accuracy is not None and accuracy.n == len(suite.problems)
        found[kind] = accuracy.estimate
    return found


def _changed(gold: str) -> str:
    """A gold with its last digit another, or words in its place where it has none."""
    at = next((i for i in range(len(gold) - 1, -1, -1) if gold[i].isdigit()), None)
    if at is None:
        return "nothing of the kind"
    return f"{gold[:at]}{(int(gold[at]) + 1) % 10}{gold[at + 1 :]}"


if __name__ == "__main__":
    sys.exit(main())
