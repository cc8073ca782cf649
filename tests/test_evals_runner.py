"""Runs against a scripted endpoint over a real socket: what goes wrong is never a wrong answer."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.errors import ConfigError, DataError, EndpointError
from thinkgate.format import SplitStatus
from thinkgate_evals.measure import Measurement, Options, measure_endpoint
from thinkgate_evals.records import Record, Recording, header_path, read_records
from thinkgate_evals.replicas import GIVE_UP_AFTER
from thinkgate_evals.runner import Endpoint, sample_seed
from thinkgate_evals.suites import LoadedSuite, load_suite

COUNT = 30
Script = Callable[[dict[str, Any]], Says | Fails]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    file = tmp_path / "data" / "sums.jsonl"
    file.parent.mkdir()
    rows = ({"prompt": f"{n}+{n}", "gold": str(2 * n)} for n in range(COUNT))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def suite(problems: Path) -> LoadedSuite:
    return load_suite(f"jsonl:{problems}")


def right(body: dict[str, Any]) -> Says:
    number = int(prompt_of(body).partition("+")[0])
    return Says(f"The answer is {2 * number}.", f"{number} twice")


def wrong(body: dict[str, Any]) -> Says:
    return Says(f"The answer is {2 * int(prompt_of(body).partition('+')[0]) + 1}.", "hm")


def measure(
    script: Script, suite: LoadedSuite, out: Path, *, retries: int = 0, **options: Any
) -> Measurement:
    with ScriptedEndpoint(script) as server:
        # The address differs in every run; what identifies the model is its name or digest.
        endpoint = Endpoint(
            base_url=server.base_url, model="scripted", digest="d" * 64, max_retries=retries
        )
        [measured] = measure_endpoint(endpoint, [suite], Options(**options), out)
        return measured


def accuracy(measured: Measurement) -> float:
    interval = measured.summary.shares["accuracy"]
    assert interval is not None
    return interval.estimate


def test_gold_echoed_scores_everything_and_perturbed_nothing(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    assert accuracy(measure(right, suite, tmp_path / "a")) == 1.0
    assert accuracy(measure(wrong, suite, tmp_path / "b")) == 0.0


def test_records_hold_what_was_asked_and_what_came_back(suite: LoadedSuite, tmp_path: Path) -> None:
    measured = measure(right, suite, tmp_path)
    record = next(r for r in read_records(measured.path) if r.problem_id == "4")
    assert (record.prompt, record.gold, record.extracted) == ("4+4", "8", "8")
    assert (record.reasoning, record.answer) == ("4 twice", "The answer is 8.")
    assert (record.verdict, record.status) == (Verdict.CORRECT, SplitStatus.CLOSED)
    assert (record.reasoning_tokens, record.answer_tokens, record.finish_reason) == (7, 3, "stop")
    assert record.seed == sample_seed(0, "4", 0) and record.error is None
    summary = measured.summary
    assert summary.verdicts == {"correct": COUNT}
    assert summary.reasoning_tokens is not None and summary.reasoning_tokens.mean == 7
    assert summary.samples_per_second is not None and summary.tokens_per_second is not None


def test_every_sample_has_its_own_seed(problems: Path, tmp_path: Path) -> None:
    suite = load_suite(f"jsonl:{problems}", overrides=["samples=3"])
    seeds: list[int] = []

    def script(body: dict[str, Any]) -> Says:
        seeds.append(body["seed"])
        return right(body)

    measured = measure(script, suite, tmp_path / "a")
    assert len(seeds) == len(set(seeds)) == len(measured.records) == 3 * COUNT
    first = {record.key: record.seed for record in measured.records}
    again = {r.key: r.seed for r in measure(right, suite, tmp_path / "b").records}
    assert first == again


def test_what_is_not_an_answer_is_told_apart(suite: LoadedSuite, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Says:
        match int(prompt_of(body).partition("+")[0]):
            case 0:
                return Says(None, r"surely \boxed{0}", finish="length")
            case 1:
                return Says("The answer is 2.")
            case 2:
                return Says("", "no idea")
            case _:
                return right(body)

    measured = measure(script, suite, tmp_path, limit=4)
    verdicts = {r.problem_id: (r.verdict, r.status) for r in measured.records}
    assert verdicts == {
        "0": (Verdict.NO_ANSWER, SplitStatus.TRUNCATED),  # a box inside the thought never scores
        "1": (Verdict.CORRECT, SplitStatus.UNTAGGED),
        "2": (Verdict.NO_ANSWER, SplitStatus.CLOSED),
        "3": (Verdict.CORRECT, SplitStatus.CLOSED),
    }
    shares = {n: s.estimate for n, s in measured.summary.shares.items() if s is not None}
    assert shares == {
        "accuracy": 0.5,
        "format_rate": 0.5,
        "truncation_rate": 0.25,
        "step_share": 0.75,
        "reflection_rate": 0.0,
        "error_rate": 0.0,
    }


def test_an_unreadable_gold_and_a_failed_request_are_errors_and_not_wrong(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(
        '{"prompt": "1+1", "gold": ""}\n{"prompt": "2+2", "gold": "4"}\n'
        '{"prompt": "3+3", "gold": "6"}\n'
    )

    def script(body: dict[str, Any]) -> Says | Fails:
        return Fails(400, {"message": "no"}) if prompt_of(body) == "2+2" else right(body)

    measured = measure(script, load_suite(f"jsonl:{file}"), tmp_path / "out")
    assert [r.verdict for r in measured.records] == [
        Verdict.BAD_GOLD,
        Verdict.ERROR,
        Verdict.CORRECT,
    ]
    assert accuracy(measured) == 1.0
    rate = measured.summary.shares["error_rate"]
    assert rate is not None and rate.estimate == pytest.approx(2 / 3)
    assert "no" in (measured.summary.first_error or "")


def test_failures_that_pass_are_asked_again(suite: LoadedSuite, tmp_path: Path) -> None:
    tries: dict[str, int] = {}

    def script(body: dict[str, Any]) -> Says | Fails:
        prompt = prompt_of(body)
        tries[prompt] = tries.get(prompt, 0) + 1
        return Fails(429 if len(prompt) > 3 else 500) if tries[prompt] == 1 else right(body)

    assert accuracy(measure(script, suite, tmp_path, retries=1)) == 1.0
    assert set(tries.values()) == {2}


def test_a_request_that_hangs_is_an_error_and_is_asked_again_on_resuming(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    def script(body: dict[str, Any]) -> Says | Fails:
        return Fails(hang=20) if prompt_of(body) == "3+3" else right(body)

    measured = measure(script, suite, tmp_path, timeout=0.5)
    assert measured.summary.verdicts == {"correct": COUNT - 1, "error": 1}
    assert accuracy(measured) == 1.0
    asked: list[str] = []

    def healed(body: dict[str, Any]) -> Says:
        asked.append(prompt_of(body))
        return right(body)

    again = measure(healed, suite, tmp_path)
    assert asked == ["3+3"] and again.summary.verdicts == {"correct": COUNT}
    assert len(read_records(again.path)) == COUNT


def test_a_server_that_only_fails_stops_the_run(suite: LoadedSuite, tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=f"{GIVE_UP_AFTER} requests in a row failed") as caught:
        measure(lambda _: Fails(500), suite, tmp_path, concurrency=4)
    assert "; 0 samples are kept" in str(caught.value)
    assert len(read_records(tmp_path / "sums.jsonl")) < COUNT


def test_a_server_that_dies_stops_the_run_and_nothing_is_counted_wrong(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    with ScriptedEndpoint(right) as server:
        answered = 0
        lock = threading.Lock()

        def dying(body: dict[str, Any]) -> Says | Fails:
            nonlocal answered
            with lock:
                answered += 1
            if answered > 10:
                server.die()
                return Fails(hang=30)
            return right(body)

        server.script = dying
        endpoint = Endpoint(
            base_url=server.base_url, model="scripted", digest="d" * 64, max_retries=1
        )
        with pytest.raises(EndpointError, match="run the same command again") as caught:
            measure_endpoint(endpoint, [suite], Options(concurrency=4), tmp_path)
    assert "\n" not in str(caught.value)
    kept = read_records(tmp_path / "sums.jsonl")
    assert 0 < len(kept) < COUNT
    assert {record.verdict for record in kept} == {Verdict.CORRECT}
    asked: list[str] = []

    def script(body: dict[str, Any]) -> Says:
        asked.append(prompt_of(body))
        return right(body)

    assert accuracy(measure(script, suite, tmp_path)) == 1.0
    assert len(asked) == COUNT - len(kept)


def test_another_model_behind_the_same_address_stops_the_run(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    headers = {"X-Thinkgate-Model-Digest": "e" * 64}
    with ScriptedEndpoint(right, headers=headers) as server:
        endpoint = Endpoint(base_url=server.base_url, model="scripted", digest="d" * 64)
        with pytest.raises(EndpointError, match="now serves model eeeeeeeeeeee"):
            measure_endpoint(endpoint, [suite], Options(), tmp_path)


def test_a_finished_run_asks_nothing_and_a_higher_limit_only_the_rest(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    asked: list[str] = []

    def script(body: dict[str, Any]) -> Says:
        asked.append(prompt_of(body))
        return right(body)

    assert len(measure(script, suite, tmp_path, limit=10).records) == 10
    assert len(measure(script, suite, tmp_path, limit=10).records) == 10
    assert len(asked) == 10
    assert len(measure(script, suite, tmp_path).records) == COUNT
    assert len(asked) == COUNT
    assert len(measure(script, suite, tmp_path, limit=5).records) == 5
    assert len(asked) == COUNT
    measure(script, suite, tmp_path, limit=5, fresh=True)
    assert len(asked) == COUNT + 5
    assert len(read_records(tmp_path / "sums.old.jsonl")) == COUNT


def test_another_configuration_is_refused_and_named(problems: Path, tmp_path: Path) -> None:
    measure(right, load_suite(f"jsonl:{problems}"), tmp_path, limit=3)
    before = (tmp_path / "sums.jsonl").read_text()
    changed = load_suite(f"jsonl:{problems}", overrides=["sampling.temperature=0.1", "samples=2"])
    with pytest.raises(ConfigError, match=r"differs in samples, sampling\.temperature;"):
        measure(right, changed, tmp_path)
    problems.write_text('{"prompt": "1+1", "gold": "2"}\n')
    with pytest.raises(ConfigError, match="differs in problems;"):
        measure(right, load_suite(f"jsonl:{problems}"), tmp_path)
    assert (tmp_path / "sums.jsonl").read_text() == before


def test_records_of_other_weights_are_refused(suite: LoadedSuite, tmp_path: Path) -> None:
    measure(right, suite, tmp_path, limit=3)
    with ScriptedEndpoint(right) as server:
        other = Endpoint(base_url=server.base_url, model="scripted", digest="e" * 64)
        with pytest.raises(ConfigError, match=r"model \(dddddddddddd -> eeeeeeeeeeee\)"):
            measure_endpoint(other, [suite], Options(), tmp_path)


def test_answers_of_other_weights_among_the_records_are_refused(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    """As two files have that somebody joined."""
    path = measure(right, suite, tmp_path, limit=3).path
    strange = read_records(path)[-1].model_copy(update={"repeat": 1, "model_digest": "e" * 64})
    path.write_text(path.read_text() + strange.model_dump_json() + "\n")
    with pytest.raises(DataError, match="answered by model eeeeeeeeeeee, not dddddddddddd"):
        measure(right, suite, tmp_path)


def test_a_torn_last_line_is_measured_again(suite: LoadedSuite, tmp_path: Path) -> None:
    path = measure(right, suite, tmp_path, limit=6).path
    whole = path.read_text()
    path.write_text(whole[:-40])
    assert len(read_records(path)) == 5
    assert len(measure(right, suite, tmp_path, limit=6).records) == 6
    assert len(read_records(path)) == 6


def test_a_malformed_or_doubled_record_is_refused(suite: LoadedSuite, tmp_path: Path) -> None:
    path = measure(right, suite, tmp_path, limit=3).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(DataError, match="occurs twice"):
        measure(right, suite, tmp_path)
    path.write_text("".join([lines[0], "{}\n", lines[1]]))
    with pytest.raises(DataError, match="line 2: not a record"):
        measure(right, suite, tmp_path)
    path.write_text(lines[0])
    header_path(path).unlink()
    for fresh in (False, True):  # --fresh never moves away what may be somebody's problems
        with pytest.raises(DataError, match="not a recorded run"):
            measure(right, suite, tmp_path, fresh=fresh)
    assert path.read_text() == lines[0]


def test_two_processes_do_not_write_the_same_records(suite: LoadedSuite, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Says:
        with pytest.raises(ConfigError, match="being written by another process"):
            measure(right, suite, tmp_path)
        return right(body)

    measure(script, suite, tmp_path, limit=1)


def test_a_full_disk_is_one_sentence_that_says_what_to_do(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    (tmp_path / f"{suite.name}.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"jsonl cannot be written: .*run the same command again"):
        measure(right, suite, tmp_path)


def test_a_disk_that_is_full_to_the_last_byte_says_the_same(
    suite: LoadedSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the time the run took cannot be written down either."""
    (tmp_path / f"{suite.name}.jsonl").symlink_to("/dev/full")

    def full(recording: Recording, _: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(header_path(recording.path)))

    monkeypatch.setattr(Recording, "close_session", full)
    answered = threading.Event()

    def once(body: dict[str, Any]) -> Says | Fails:
        answered.set()
        return right(body)

    with pytest.raises(DataError, match=r"cannot be written: .*run the same command again"):
        measure(once, suite, tmp_path)
    assert answered.is_set()


def test_more_connections_than_open_files_is_said_before_the_first(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 20, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"30 connections at once.* 50 files .*ulimit -n"):
            measure(right, suite, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not read_records(tmp_path / "sums.jsonl")


def test_hard_comparisons_do_not_hold_up_other_requests(
    suite: LoadedSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One comparison waits until all other samples are recorded; it would wait forever if the
    event loop waited for it."""
    path = tmp_path / "sums.jsonl"
    waited: list[int] = []

    def slow_check(answer: str | None, gold: str) -> Verdict:
        if gold == "0":
            deadline = time.monotonic() + 60
            while path.read_text().count("\n") < COUNT - 1 and time.monotonic() < deadline:
                time.sleep(0.02)
            waited.append(path.read_text().count("\n"))
        return Verdict.CORRECT

    monkeypatch.setattr("thinkgate_evals.runner.check", slow_check)
    measure(right, suite, tmp_path)
    assert waited == [COUNT - 1]


def test_a_context_too_small_for_max_tokens_is_used_as_far_as_it_goes(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    limits: list[int | None] = []

    def script(body: dict[str, Any]) -> Says | Fails:
        limits.append(body.get("max_tokens"))
        if "max_tokens" in body:
            code = {"code": "context_length_exceeded", "param": "max_tokens", "message": "long"}
            return Fails(400, code)
        return right(body)

    assert accuracy(measure(script, suite, tmp_path, limit=2, concurrency=1)) == 1.0
    assert limits == [4096, None, 4096, None]


@pytest.mark.parametrize(("used", "kept"), [(7, True), (70, True), (80, False)])
def test_a_thinking_budget_is_sent_and_an_endpoint_that_ignores_it_is_found_out(
    problems: Path, used: int, kept: bool, tmp_path: Path
) -> None:
    bound = load_suite(f"jsonl:{problems}", overrides=["sampling.thinking_budget=9"])
    usage = {
        "completion_tokens": used + 3,
        "completion_tokens_details": {"reasoning_tokens": used},
    }

    def script(body: dict[str, Any]) -> Says:
        assert body["thinking_budget"] == 9
        return Says("1", "hm", usage=usage)

    if kept:
        assert measure(script, bound, tmp_path).summary.samples == len(bound.problems)
    else:
        with pytest.raises(EndpointError, match="does not keep to thinking_budget 9"):
            measure(script, bound, tmp_path)


def test_text_that_is_not_unicode_is_stored_all_the_same(
    suite: LoadedSuite, tmp_path: Path
) -> None:
    measured = measure(lambda _: Says("\ud800 0 \u2028", "a\x00b"), suite, tmp_path, limit=1)
    [record] = read_records(measured.path)
    assert record == measured.records[0] == Record.model_validate(record.model_dump())
    assert record.answer == "? 0 \u2028"


def test_ctrl_c_is_one_line_and_keeps_what_is_done(problems: Path, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Says | Fails:
        return right(body) if prompt_of(body) < "2" else Fails(hang=60)

    out = tmp_path / "out"
    with ScriptedEndpoint(script) as server:
        command = [sys.executable, "-m", "thinkgate", "eval", server.base_url]
        command += ["--suite", f"jsonl:{problems}", "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        path = out / "sums.jsonl"
        while not path.is_file() or path.read_text().count("\n") < 12:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.decode() == "thinkgate: stopped; finished work is kept\n"
    assert len(read_records(path)) == 12


def test_kill_minus_nine_loses_and_doubles_nothing(problems: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def script(body: dict[str, Any]) -> Says:
        asked.append(prompt_of(body))
        time.sleep(0.02)
        return right(body)

    models = ({"id": "scripted", "digest": "d" * 64},)
    out = tmp_path / "out"
    with ScriptedEndpoint(script, models=models) as server:
        command = [sys.executable, "-m", "thinkgate", "eval", server.base_url]
        command += ["--suite", f"jsonl:{problems}", "--out", str(out), "--concurrency", "2"]
        for kill_at in (8, 19):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            path = out / "sums.jsonl"
            while not path.is_file() or path.read_text().count("\n") < kill_at:
                assert process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert kill_at <= len(read_records(path)) < COUNT
        finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, finished.stderr
        records = read_records(path)
        assert len(records) == len({r.key for r in records}) == COUNT
        # At most the requests in flight at each kill are asked twice.
        assert COUNT <= len(asked) <= COUNT + 2 * 2
        before = len(asked)
        again = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert again.returncode == 0 and len(asked) == before
        assert "100.0%" in again.stdout
