"""lm-eval's tasks through our runner. Each trap of lm-eval's own client is sprung once with plain
lm-eval, on the same scripted endpoint, and then not with ours."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint
from lm_eval_task import SUMS, answers_of, plain_lm_eval, write_task
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main
from thinkgate.errors import EndpointError
from thinkgate.format import SplitStatus
from thinkgate_clients.local import LocalServer
from thinkgate_evals import lm_harness
from thinkgate_evals.lm_scores import LmMeasurement
from thinkgate_evals.measure import Options
from thinkgate_evals.records import read_records
from thinkgate_evals.runner import Endpoint, sample_seed

Script = Callable[[dict[str, Any]], Says | Fails]
SAMPLED: dict[str, Any] = {"generation_kwargs": {"until": [], "temperature": 1.0}}
QUIET = [{"metric": "quiet", "aggregation": "mean", "higher_is_better": True}]


@pytest.fixture(autouse=True)
def quick_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval looks the machine over after each run, which takes a second."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")


def right(body: dict[str, Any]) -> Says:
    return Says(f"It is {2 * int(prompt_of(body)[0])}.", "twice")


def ours(
    task: Path | str, url: str, out: Path, *overrides: str, retries: int = 1, **options: Any
) -> LmMeasurement:
    """What our harness makes of a task."""
    endpoint = Endpoint(base_url=url, model="scripted", max_retries=retries)
    [measured] = lm_harness.plan([str(task)], overrides, None).measure(
        # The address is another in each test: what the records are of is the model's name.
        Options(**options),
        model="scripted",
        folder=out,
        endpoint=lambda: endpoint,
        ours=False,
    )
    return measured


def score(measured: LmMeasurement, name: str = "exact_match,number") -> float:
    return {score.name: score.value for score in measured.scores}[name]


def test_a_task_is_measured_by_lm_eval_and_recorded_by_us(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    with ScriptedEndpoint(lambda b: Says("no: 0") if prompt_of(b) == "3+3" else right(b)) as server:
        plain = plain_lm_eval(str(task), server.base_url)["results"]["sums"]
        measured = ours(task, server.base_url, tmp_path / "out")
    for key in ("exact_match,number", "exact_match,strict"):
        assert score(measured, key) == plain[key]
    number, strict = measured.scores
    assert (number.value, number.stderr) == (0.75, plain["exact_match_stderr,number"])
    assert strict.value == 0.0
    accuracy = measured.summary.shares["accuracy"]
    assert accuracy is not None and accuracy.estimate == 0.75
    first = next(r for r in read_records(measured.path) if r.problem_id == "0")
    assert (first.prompt, first.gold) == ("1+1", "2")
    assert (first.reasoning, first.answer, first.extracted) == ("twice", "It is 2.", "2")
    assert (first.verdict, first.status) == (Verdict.CORRECT, SplitStatus.CLOSED)
    assert (first.reasoning_tokens, first.seed) == (7, sample_seed(0, "0", 0))
    log = json.loads(measured.path.with_suffix(".lm_eval.json").read_text())
    assert log["results"]["exact_match,number"] == 0.75
    assert {
        (s["problem_id"], s["filter"], s["metrics"]["exact_match"]) for s in log["samples"]
    } == {
        (str(n), name, float(name == "number" and n != 2))
        for n in range(4)
        for name in ("number", "strict")
    }


def test_trap_repeats_have_seeds_of_their_own(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", repeats=3, **SAMPLED)
    with ScriptedEndpoint(lambda body: Says(f"seed {body['seed']}")) as server:
        plain = answers_of(plain_lm_eval(str(task), server.base_url))
        assert [len(set(repeats)) for repeats in plain] == [1] * 4  # the trap
        measured = ours(task, server.base_url, tmp_path / "out")
    assert len({record.answer for record in measured.records}) == 3 * 4
    assert {r.seed for r in measured.records} == {
        sample_seed(0, str(n), repeat) for n in range(4) for repeat in range(3)
    }


def test_identical_samples_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task", **SAMPLED)
    with ScriptedEndpoint(right) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "out")]
        assert main([*command, "--samples", "2"]) == 0
    assert "ignores seeds" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["suites"]["lm-sums"]["summary"]["duplicate_rate"]["estimate"] == 1.0


def test_trap_a_thought_cut_short_is_no_answer_and_earns_nothing(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", filter_list=None, metric_list=QUIET)
    with ScriptedEndpoint(lambda _: Says(None, "Let me see", finish="length")) as server:
        plain = plain_lm_eval(str(task), server.base_url)
        assert answers_of(plain) == [[""]] * 4
        assert plain["results"]["sums"]["quiet,none"] == 1.0  # the trap: no digit in an empty text
        measured = ours(task, server.base_url, tmp_path / "out")
    assert score(measured, "quiet,none") == 0.0
    for record in measured.records:
        assert (record.answer, record.status) == (None, SplitStatus.TRUNCATED)
        assert record.verdict is Verdict.NO_ANSWER


def test_trap_a_box_in_an_unfinished_thought_does_not_score(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    said = Says("<think>It may be 2, 4, 6", finish="length")
    with ScriptedEndpoint(lambda body: right(body) if prompt_of(body) != "1+1" else said) as server:
        plain = plain_lm_eval(str(task), server.base_url, think_end_token="</think>")
        assert plain["results"]["sums"]["exact_match,number"] == 1.0  # the trap
        measured = ours(task, server.base_url, tmp_path / "out")
    assert score(measured) == 0.75
    [cut] = [r for r in measured.records if r.verdict is not Verdict.CORRECT]
    assert (cut.problem_id, cut.status) == ("0", SplitStatus.TRUNCATED)


def test_trap_stop_strings_bind_to_the_answer(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")

    def script(body: dict[str, Any]) -> Says:
        text = f"<think>9 STOP</think>It is {2 * int(prompt_of(body)[0])} STOP 99"
        for stop in body.get("stop") or ():
            text = text.partition(stop)[0]
        return Says(text)

    with ScriptedEndpoint(script) as server:
        plain = plain_lm_eval(str(task), server.base_url, think_end_token="</think>")
        assert plain["results"]["sums"]["exact_match,number"] == 0.0  # the trap
        measured = ours(task, server.base_url, tmp_path / "out")
    assert score(measured) == 1.0
    assert {record.reasoning for record in measured.records} == {"9 STOP"}
    assert not [body for body in server.requests[4:] if "stop" in body]


def test_a_thinkgate_server_is_sent_the_stop_strings(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    models = ({"id": "scripted", "model_digest": "d" * 64},)
    with ScriptedEndpoint(right, models=models) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "out")]
        assert main(command) == 0
        assert [body["stop"] for body in server.requests] == [["STOP"]] * 4


def test_trap_recorded_samples_stay_apart(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", repeats=3, **SAMPLED)
    number = count()
    with ScriptedEndpoint(lambda _: Says(f"number {next(number)}")) as server:
        plain_lm_eval(str(task), server.base_url, cache=tmp_path / "cache")
        plain = plain_lm_eval(str(task), server.base_url, cache=tmp_path / "cache")
        assert [len(set(repeats)) for repeats in answers_of(plain)] == [1] * 4  # the trap
        first = ours(task, server.base_url, tmp_path / "out")
        asked = len(server.requests)
        again = ours(task, server.base_url, tmp_path / "out")
        assert len(server.requests) == asked
    assert len({record.answer for record in again.records}) == 3 * 4
    assert again.records == first.records and again.scores == first.scores


def test_trap_a_failing_request_costs_one_sample(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    failing, tries = {"2+2"}, count()

    def script(body: dict[str, Any]) -> Says | Fails:
        if prompt_of(body) == "1+1" and next(tries) == 1:
            return Fails(500)  # passes at the next try
        return Fails(500) if prompt_of(body) in failing else right(body)

    with ScriptedEndpoint(script) as server:
        with pytest.raises(Exception, match="500"):  # the trap
            plain_lm_eval(str(task), server.base_url)
        measured = ours(task, server.base_url, tmp_path / "out")
        assert measured.summary.verdicts == {"correct": 3, "error": 1}
        assert score(measured) == 1.0  # of the three
        rate = measured.summary.shares["error_rate"]
        assert rate is not None and rate.estimate == 0.25
        failing.clear()
        asked = len(server.requests)
        again = ours(task, server.base_url, tmp_path / "out")
        assert [prompt_of(body) for body in server.requests[asked:]] == ["2+2"]
    assert again.summary.verdicts == {"correct": 4}


def test_trap_packages_of_lm_evals_client_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path / "task")
    monkeypatch.setattr("lm_eval.models.api_models.find_spec", lambda _: None)
    with ScriptedEndpoint(right) as server:
        with pytest.raises(ModuleNotFoundError, match="tenacity"):  # the trap
            plain_lm_eval(str(task), server.base_url)
        for package in ("tenacity", "aiohttp", "tqdm.asyncio"):
            monkeypatch.setitem(sys.modules, package, None)
        assert score(ours(task, server.base_url, tmp_path / "out")) == 1.0


def test_without_lm_eval_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["eval", "http://127.0.0.1:9/v1", "--suite", "lm:gsm8k"]) == 2
    error = capsys.readouterr().err
    assert "lm_eval" in error and "thinkgate[evals]" in error and error.count("\n") == 1


def test_several_samples_are_judged_one_by_one(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    calls: dict[str, int] = {}

    def script(body: dict[str, Any]) -> Says:
        prompt = prompt_of(body)
        calls[prompt] = calls.get(prompt, 0) + 1
        return right(body) if calls[prompt] > 1 else Says("no idea")

    with ScriptedEndpoint(script) as server:
        measured = ours(
            task, server.base_url, tmp_path, "samples=4", "sampling.temperature=0.5", concurrency=1
        )
    assert measured.summary.verdicts == {"correct": 12, "no_answer": 4}
    assert score(measured) == 0.0  # lm-eval itself looks at the first answer only
    accuracy = measured.summary.shares["accuracy"]
    assert accuracy is not None and accuracy.estimate == 0.75


def test_filter_and_metric_of_the_verdict_can_be_chosen(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    with ScriptedEndpoint(lambda body: Says(f"1, so #### {2 * int(prompt_of(body)[0])}")) as server:
        loose = ours(task, server.base_url, tmp_path / "out")
        strict = ours(task, server.base_url, tmp_path / "out", "filter=strict")
        assert len(server.requests) == 4  # judged anew, not asked anew
        assert {r.verdict for r in read_records(strict.path)} == {Verdict.CORRECT}
        ours(task, server.base_url, tmp_path / "out", limit=1)
        verdicts = {r.problem_id: r.verdict for r in read_records(strict.path)}
        # What another filter decided about the rest is not mixed with what this one decides.
        assert verdicts == {"0": Verdict.WRONG, **dict.fromkeys("123", Verdict.BAD_GOLD)}
    assert loose.summary.verdicts == {"wrong": 4} and strict.summary.verdicts == {"correct": 4}
    assert loose.scores == strict.scores and loose.fingerprint != strict.fingerprint


def test_a_metric_that_is_not_right_or_wrong_is_reported_without_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bleu = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    task = write_task(tmp_path / "task", metric_list=bleu)
    with ScriptedEndpoint(right) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "out")]
        assert main(command) == 0
    assert "bleu" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["suites"]["lm-sums"]["summary"]["shares"]["accuracy"] is None
    assert [each["name"] for each in report["suites"]["lm-sums"]["lm_eval"]] == [
        "bleu,number",
        "bleu,strict",
    ]


def test_a_group_is_measured_task_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # lm-eval's own 14,000 task files are not needed here, and take ten seconds.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "none" / "manager.py"))
    folder = tmp_path / "tasks"
    write_task(folder, name="sums")
    write_task(folder, name="polite", doc_to_text="{{prompt}}, please")
    both = folder / "both.yaml"
    mean = "{metric: exact_match, aggregation: mean, filter_list: [number]}"
    both.write_text(f"group: both\ntask: [sums, polite]\naggregate_metric_list: [{mean}]\n")

    def script(body: dict[str, Any]) -> Says:
        return Says("0", "hm") if prompt_of(body) == "1+1, please" else right(body)

    with ScriptedEndpoint(script) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{both}", "--out", str(tmp_path / "out")]
        assert main(command) == 0
    assert "lm:both lm-eval exact match (number) 87.5%" in capsys.readouterr().out
    for name, correct in (("sums", 4), ("polite", 3)):
        records = read_records(tmp_path / "out" / f"lm-{name}.jsonl")
        assert [record.verdict for record in records].count(Verdict.CORRECT) == correct


def test_thinking_has_room_and_the_command_line_decides(tmp_path: Path) -> None:
    kwargs = {"until": [], "max_gen_toks": 5000, "top_k": 7, "do_sample": True, "temperature": 0.8}
    small, large = write_task(tmp_path / "a"), write_task(tmp_path / "b", generation_kwargs=kwargs)
    changed = ("sampling.max_tokens=64", "sampling.temperature=0.2", "sampling.seed=5")
    with ScriptedEndpoint(right) as server:
        ours(small, server.base_url, tmp_path / "1", limit=1)
        ours(large, server.base_url, tmp_path / "2", limit=1)
        ours(large, server.base_url, tmp_path / "3", *changed, limit=1)
        sent = [
            tuple(body.get(key) for key in ("max_tokens", "temperature", "top_k", "seed"))
            for body in server.requests
        ]
    seeds = [sample_seed(seed, "0", 0) for seed in (0, 5)]
    assert sent == [
        (4096, 0.0, None, seeds[0]),
        (5000, 0.8, 7, seeds[0]),
        (64, 0.2, 7, seeds[1]),
    ]


def test_few_shot_examples_are_turns_of_the_conversation(tmp_path: Path) -> None:
    shots: dict[str, Any] = {
        "num_fewshot": 2,
        "fewshot_config": {"samples": [dict(row) for row in SUMS[:2]]},
    }
    task = write_task(tmp_path / "task", description="You add.", **shots)
    with ScriptedEndpoint(lambda body: Says("6", "so")) as server:
        measured = ours(task, server.base_url, tmp_path / "out", limit=1)
        [body] = server.requests
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert measured.records[0].prompt == body["messages"][-1]["content"] == "1+1"
    with ScriptedEndpoint(lambda body: Says("6", "so")) as server:
        ours(task, server.base_url, tmp_path / "none", "num_fewshot=0", limit=1)
        assert len(server.requests) == 1


def test_a_run_that_stops_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    with (
        ScriptedEndpoint(lambda b: right(b) if prompt_of(b) < "3" else Fails(401)) as server,
        pytest.raises(EndpointError, match="2 samples are kept"),
    ):
        ours(task, server.base_url, tmp_path / "out", concurrency=1)
    with ScriptedEndpoint(right) as server:
        measured = ours(task, server.base_url, tmp_path / "out")
        assert sorted(map(prompt_of, server.requests)) == ["3+3", "4+4"]
    assert measured.summary.verdicts == {"correct": 4} and score(measured) == 1.0


def test_a_larger_limit_goes_on_and_another_task_is_refused(tmp_path: Path) -> None:
    task = write_task(tmp_path / "task")
    with ScriptedEndpoint(right) as server:
        assert len(ours(task, server.base_url, tmp_path / "out", limit=1).records) == 1
        assert len(ours(task, server.base_url, tmp_path / "out", limit=3).records) == 3
        assert len(server.requests) == 3
        write_task(tmp_path / "task", doc_to_text="{{prompt}}, please")
        with pytest.raises(Exception, match=r"differs in definition.*--fresh"):
            ours(task, server.base_url, tmp_path / "out", limit=3)
        ours(task, server.base_url, tmp_path / "out", limit=3, fresh=True)
        assert prompt_of(server.requests[-1]).endswith(", please")


@contextmanager
def fake_server(starts: list[str], target: Path, log: Path) -> Iterator[LocalServer]:
    starts.append(target.name)
    log.write_text("as if served\n")
    headers = {"X-Thinkgate-Model-Digest": load_checkpoint(target).digest}
    with ScriptedEndpoint(lambda _: Says("15", "so"), headers=headers) as server:
        yield LocalServer(server.base_url, "scripted", None)  # type: ignore[arg-type]


def test_one_server_for_suites_of_both_kinds_and_none_when_all_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts: list[str] = []
    monkeypatch.setattr(
        "thinkgate_clients.local.local_server",
        lambda target, *, allow_ungated, log: fake_server(starts, target, log),
    )
    folder = make_checkpoint(tmp_path / "model")
    task = write_task(tmp_path / "task")
    command = ["eval", str(folder), "--suite", "arithmetic", "--suite", f"lm:{task}"]
    for _ in range(2):
        assert main([*command, "--limit", "2"]) == 0
    assert starts == ["model"]
    shown = capsys.readouterr().out
    assert "lm-eval exact match (number)" in shown and "standard error" in shown
    evals = folder / "thinkgate" / "evals"
    report = json.loads((evals / "report.json").read_text())
    assert set(report["suites"]) == {"arithmetic", "lm-sums"}
    assert report["suites"]["lm-sums"]["lm_eval"][0]["name"] == "exact_match,number"
    assert "lm-sums" in (evals / "report.html").read_text()


def test_what_lm_eval_prints_goes_to_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task")
    with ScriptedEndpoint(right) as server:
        ours(task, server.base_url, tmp_path / "out")
    assert capfd.readouterr().err == ""
    assert "4/4" in (tmp_path / "out" / "lm_eval.log").read_text()


CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["2", "4"],
    "doc_to_target": 0,
    "filter_list": None,
    "generation_kwargs": None,
    "metric_list": None,
}
MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "probabilities": (CHOICES, [], "compares probabilities"),
    "prefix": ({"gen_prefix": "The answer is"}, [], "no room for a thought"),
    "code": ({"unsafe_code": True}, [], "runs code"),
    "broken": ({"test_split": "none"}, [], "cannot be loaded"),
    "filter": ({}, ["--set", "filter=stric"], "did you mean 'strict'"),
    "setting": ({}, ["--set", "sampling.temperatur=1"], "did you mean 'temperature'"),
    "metric": ({}, ["--set", "metric=f1"], "such metrics here: exact_match"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, arguments, words = MISTAKES[mistake]
    task = write_task(tmp_path / "task", **config)
    with ScriptedEndpoint(right) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "out")]
        assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("suite", "words"),
    [
        ("lm:", "names no task"),
        ("lm:thinkgate_gsm9k", "did you mean 'thinkgate_gsm8k'"),
        ("lm:thinkgate_arithmetic,lm:thinkgate_arithmetic", "both ask thinkgate_arithmetic"),
    ],
)
def test_wrong_names_are_one_sentence(
    suite: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "http://127.0.0.1:9/v1", "--suite", suite]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_task_that_fails_on_an_answer_loses_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path / "task", filter_list=None, metric_list=QUIET)
    code = task.with_name("rows.py")
    code.write_text(code.read_text().replace("results[0])", "results[7])"))
    with ScriptedEndpoint(right) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "out")]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "IndexError" in error and "answers are kept" in error and error.count("\n") == 1
        assert "Traceback" in (tmp_path / "out" / "lm_eval.log").read_text()
        code.write_text(code.read_text().replace("results[7])", "results[0])"))
        assert main(command) == 0
        assert len(server.requests) == 4


def test_nothing_of_lm_eval_is_imported_without_a_task_of_its() -> None:
    code = (
        "import sys; from thinkgate.cli import main; "
        "code = main(['eval', 'http://127.0.0.1:9/v1', '--suite', 'arithmetic']); "
        "print([m for m in ('lm_eval', 'datasets', 'torch') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 2"
