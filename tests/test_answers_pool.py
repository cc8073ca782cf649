"""The worker processes: hard limits, every kind of caller, nothing left behind."""

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from thinkgate import answer_pool
from thinkgate.answers import Verdict, check, check_many, second_opinion

SLOW = r"\sum_{k=1}^{10^{9}} k^k"
"""math-verify would compute this sum term by term."""

PATHOLOGICAL = [
    r"10^{10^{10}}",
    r"9^{9^{9^{9}}}",
    r"(10^9)!",
    r"((((9!)!)!)!)!",
    "1e999999999",
    "x+" * 50_000 + "x",
    "{" * 5000 + "5" + "}" * 5000,
    "(" * 1500 + "5" + ")" * 1500,
    r"\frac{1}{" * 300 + "2" + "}" * 300,
    r"\sqrt{\frac{" * 300,
    "2^" * 60 + "2",
    r"\sin(10^{1000})",
    r"\binom{10^9}{10^8}",
    SLOW,
]

_counter = iter(range(10**9))


def hard_pair() -> tuple[str, str]:
    """A pair nobody asked before, so that it cannot come from memory: it takes a worker."""
    n = 10_000 * os.getpid() + next(_counter)
    return f"\\sqrt{{{n}}}+x", f"x+\\sqrt{{{n}}}"


def children(pid: int) -> set[int]:
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: set[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def workers() -> Iterator[set[int]]:
    """The ids of this process's workers, at least one of them warm."""
    before = children(os.getpid())
    assert check(*hard_pair()) is Verdict.CORRECT
    found = {pid for pid in children(os.getpid()) if is_worker(pid)}
    assert found, f"no worker among {before}"
    yield found


def is_worker(pid: int) -> bool:
    try:
        return b"answer_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("expression", PATHOLOGICAL, ids=lambda e: e[:20])
def test_a_pathological_input_is_an_error_within_the_limit(expression: str) -> None:
    start = time.monotonic()
    assert check(f"\\boxed{{{expression}}}", "5", timeout=1.0) in (Verdict.ERROR, Verdict.NO_ANSWER)
    assert check(expression, "5", timeout=1.0) is Verdict.ERROR
    # Generous: a first import of math-verify, which is not the expression's time, is included.
    assert time.monotonic() - start < 30
    assert check(*hard_pair()) is Verdict.CORRECT


def test_a_pathological_gold_is_an_error_not_a_wrong_answer() -> None:
    assert check("5", r"10^{10^{10}}") is Verdict.ERROR
    assert check("5", SLOW, timeout=0.3) is Verdict.ERROR


def test_an_overrun_is_killed_and_a_longer_limit_is_tried_again(workers: set[int]) -> None:
    pair = hard_pair()
    assert check(*pair, timeout=1e-9) is Verdict.ERROR
    assert check(*pair) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("15", 15, Verdict.CORRECT),
        ("The sum is 16.", "15", Verdict.WRONG),
        (r"so it is $\boxed{\frac{1}{2}}$", "0.5", Verdict.CORRECT),
        (r"\sqrt{8}", r"2\sqrt{2}", Verdict.CORRECT),
        ("x+1", "1+x", Verdict.CORRECT),
        ("(1,2)", "(1,2)", Verdict.CORRECT),
        ("<answer>42</answer>", "#### 42", Verdict.CORRECT),
        ("She has 1,234 clips.", "1234", Verdict.CORRECT),
        ("x" * 5000 + " 7", "7", Verdict.CORRECT),
        ("no idea", "15", Verdict.NO_ANSWER),
        (" ", "15", Verdict.NO_ANSWER),
        (None, "15", Verdict.NO_ANSWER),
        ("15", "", Verdict.BAD_GOLD),
        ("red", "red", Verdict.BAD_GOLD),
        ("B", "(B)", Verdict.BAD_GOLD),
        (SLOW, "5", Verdict.ERROR),
    ],
)
def test_the_second_opinion(answer: str | None, gold: str | int, verdict: Verdict) -> None:
    assert second_opinion(answer, gold, timeout=3) is verdict


def test_the_second_opinion_is_not_taken_for_the_first() -> None:
    """Both remember what a worker said of the same pair."""
    pair = (r"\text{red}", r"\text{blue}")
    first, second = check(*pair), second_opinion(*pair)
    assert (first, second) == (Verdict.WRONG, Verdict.BAD_GOLD)
    assert (check(*pair), second_opinion(*pair)) == (first, second)


def test_a_machine_that_is_busy_elsewhere_costs_no_verdict(workers: set[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    wake = threading.Timer(1.0, lambda: [os.kill(pid, signal.SIGCONT) for pid in workers])
    wake.start()
    try:
        assert check(*hard_pair(), timeout=0.5) is Verdict.CORRECT
    finally:
        wake.join()


def test_a_worker_that_stands_still_is_given_up(workers: set[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    assert check(*hard_pair(), timeout=0.5) is Verdict.ERROR
    assert 1.9 < time.monotonic() - start < 20
    assert gone(workers, 10) or len(workers) > 1
    for pid in workers:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def test_a_large_caller_keeps_its_worker() -> None:
    """The kernel lets a child inherit its parent's peak of memory."""
    script = """
import os, sys
sys.path.insert(0, {tests!r})
from test_answers_pool import children, hard_pair, is_worker
from thinkgate.answers import check
large = b"x" * (1 << 30)
seen = set()
for _ in range(3):
    assert check(*hard_pair()) == "correct"
    seen |= {{pid for pid in children(os.getpid()) if is_worker(pid)}}
print(len(seen))
"""
    script = script.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1\n", done.stderr


def test_a_worker_killed_while_idle_costs_nothing(workers: set[int]) -> None:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert gone(workers, 5)
    assert check(*hard_pair()) is Verdict.CORRECT


def test_a_worker_killed_at_work_is_an_error(workers: set[int]) -> None:
    before = children(os.getpid())

    def kill_all() -> None:
        for pid in children(os.getpid()):
            if is_worker(pid):
                os.kill(pid, signal.SIGKILL)

    killer = threading.Timer(1.5, kill_all)
    killer.start()
    verdict = check(SLOW, "7", timeout=60)
    killer.join()
    assert verdict is Verdict.ERROR, before
    assert check(*hard_pair()) is Verdict.CORRECT


def test_an_exception_in_the_caller_does_not_leave_a_stale_reply(workers: set[int]) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Interrupt):
            check(SLOW, "8", timeout=60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert [check(*hard_pair()) for _ in range(5)] == [Verdict.CORRECT] * 5
    assert check("x+1", "x+2") is Verdict.WRONG


def test_many_threads_share_the_pool() -> None:
    def judge(i: int) -> bool:
        answer, gold = hard_pair()
        wanted = Verdict.CORRECT if i % 2 else Verdict.WRONG
        return check(answer, gold if i % 2 else gold + "+1") is wanted

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(judge, range(200)))
    mine = [pid for pid in children(os.getpid()) if is_worker(pid)]
    assert len(mine) <= answer_pool.shared_pool().size


def test_check_many_keeps_order_and_isolates_the_slow_one() -> None:
    pairs: list[tuple[str | None, str | int | float]] = [("42", 42), (None, 1), hard_pair()]
    pairs += [(SLOW, "9"), ("41", "42"), ("x", "x+1"), ("1", ""), hard_pair()]
    wanted = [Verdict.CORRECT, Verdict.NO_ANSWER, Verdict.CORRECT, Verdict.ERROR]
    wanted += [Verdict.WRONG, Verdict.WRONG, Verdict.BAD_GOLD, Verdict.CORRECT]
    assert check_many(pairs, workers=3, timeout=1.0) == wanted
    assert check_many(iter(pairs), timeout=1.0) == wanted


def test_asyncio_callers_are_not_serialised_by_a_slow_one() -> None:
    async def grade() -> list[Verdict]:
        jobs = [asyncio.to_thread(check, *hard_pair()) for _ in range(20)]
        return await asyncio.gather(asyncio.to_thread(check, SLOW, "10", timeout=1.0), *jobs)

    slow, *others = asyncio.run(grade())
    assert slow is Verdict.ERROR
    assert set(others) == {Verdict.CORRECT}


def grade_elsewhere(queue: "multiprocessing.Queue[tuple[str, list[int]]]") -> None:
    verdict = check(*hard_pair())
    queue.put((verdict, [pid for pid in children(os.getpid()) if is_worker(pid)]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_child_processes_have_workers_of_their_own(method: str, workers: set[int]) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    processes = [context.Process(target=grade_elsewhere, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    theirs = {pid for _, pids in results for pid in pids}
    assert [verdict for verdict, _ in results] == [Verdict.CORRECT] * 2
    assert len(theirs) >= 2 and not theirs & workers
    assert gone(theirs, 10), "a child's worker outlived it"
    assert check(*hard_pair()) is Verdict.CORRECT


def test_a_fork_while_another_thread_is_comparing() -> None:
    slow = threading.Thread(target=check, args=(SLOW, "11"), kwargs={"timeout": 2.0})
    slow.start()
    time.sleep(0.3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=grade_elsewhere, args=(queue,))
    process.start()
    verdict, _ = queue.get(timeout=60)
    process.join(60)
    slow.join()
    assert verdict is Verdict.CORRECT
    assert check(*hard_pair()) is Verdict.CORRECT


SCRIPT = """
import os, sys, threading, time
sys.path.insert(0, {tests!r})
from test_answers_pool import SLOW, children, hard_pair, is_worker
from thinkgate.answers import check
assert check(*hard_pair()) == "correct"
busy = {busy}
if busy:
    threading.Thread(target=check, args=(SLOW, "12"), kwargs=dict(timeout=3.0), daemon=True).start()
    time.sleep(1.0)
print(*[pid for pid in children(os.getpid()) if is_worker(pid)], flush=True)
if {wait}:
    time.sleep(60)
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("end", ["exit", "kill -9", "SIGTERM"])
def test_no_worker_outlives_its_process(busy: bool, end: str) -> None:
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, busy=busy, wait=end != "exit")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = {int(pid) for pid in process.stdout.readline().split()}
    if end == "kill -9":
        process.kill()
    elif end == "SIGTERM":
        process.terminate()
    process.wait(30)
    process.stdout.close()
    assert pids
    # The limit of the busy one (3 s) and its grace bound how long a killed parent's worker lives.
    assert gone(pids, 15)


def test_workers_hold_none_of_the_callers_files(tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    server.set_inheritable(True)
    with server, (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        pool = answer_pool.AnswerPool(1)
        before = {pid for pid in children(os.getpid()) if is_worker(pid)}
        job = {"gold": "x+1", "answer": "1+x", "tolerance": None, "limit": 5.0}
        assert pool.compare(job, 5.0) == "correct"
        (worker,) = {pid for pid in children(os.getpid()) if is_worker(pid)} - before
        targets = [os.readlink(fd) for fd in Path(f"/proc/{worker}/fd").iterdir()]
        pool.close()
    assert not any(target.startswith("socket:") for target in targets)
    assert str(tmp_path / "open") not in targets
    assert gone({worker}, 5)


def test_importing_and_plain_grading_start_nothing_and_import_nothing() -> None:
    script = (
        "import sys\n"
        "from thinkgate.answers import check\n"
        "assert check('The answer is 42.', '42') == 'correct'\n"
        "heavy = {'sympy', 'mpmath', 'math_verify', 'torch', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import os; from pathlib import Path\n"
        "assert not Path(f'/proc/self/task/{os.getpid()}/children').read_text().strip()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_signal_handlers_are_left_alone() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGALRM, signal.SIGINT, signal.SIGCHLD)]
    check(SLOW, "13", timeout=0.5)
    assert before == [signal.getsignal(s) for s in (signal.SIGALRM, signal.SIGINT, signal.SIGCHLD)]


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_meaningless_limit_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        check(*hard_pair(), timeout=timeout)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_meaningless_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        check("1", "2", tolerance=tolerance)
