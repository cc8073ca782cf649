"""lm-eval on the tiny checkpoint through the real server: as right as our own runner finds it."""

import json
from pathlib import Path

import pytest
from lm_eval_task import write_task

from thinkgate.cli import main
from thinkgate_clients.local import LocalServer
from thinkgate_evals.records import Record, read_records

# What the tiny model says to these by heart is in conftest.py; the last gold is not what it says.
ROWS = (
    {"prompt": "closed", "gold": "15", "target": "15"},
    {"prompt": "spaced", "gold": "all of STOP it", "target": "all of"},
    {"prompt": "empty", "gold": "42", "target": "42"},
    {"prompt": "plain", "gold": "fourteen", "target": "fourteen"},
)
EXACT = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "regexes_to_ignore": [r"\s+$"],
}


def records(out: Path, suite: str) -> dict[str, Record]:
    return {record.problem_id: record for record in read_records(out / f"{suite}.jsonl")}


@pytest.mark.slow
def test_lm_eval_and_our_runner_agree_on_a_real_server(served: LocalServer, tmp_path: Path) -> None:
    task = write_task(tmp_path / "task", ROWS, filter_list=None, metric_list=[EXACT])
    out = tmp_path / "out"
    command = ["eval", served.base_url, "--out", str(out), "--limit", "8"]
    command += ["--set", "sampling.temperature=0", "--set", "sampling.max_tokens=64"]
    command += ["--suite", f"jsonl:{task.with_name('rows.jsonl')}", "--suite", f"lm:{task}"]
    command += ["--suite", "arithmetic", "--suite", "lm:thinkgate_arithmetic"]
    # One at a time: a batch of another size may round a near tie to another token.
    assert main([*command, "--concurrency", "1"]) == 0
    suites = json.loads((out / "report.json").read_text())["suites"]
    for own, lm, metric in (
        ("rows", "lm-sums", "exact_match,none"),
        ("arithmetic", "lm-thinkgate_arithmetic", "acc,none"),
    ):
        ours, theirs = records(out, own), records(out, lm)
        assert ours.keys() == theirs.keys()
        for problem, record in ours.items():
            other = theirs[problem]
            assert (record.verdict, record.status) == (other.verdict, other.status)
            assert record.reasoning == other.reasoning
        accuracy = suites[own]["summary"]["shares"]["accuracy"]
        assert suites[lm]["summary"]["shares"]["accuracy"] == accuracy
        [score] = [each for each in suites[lm]["lm_eval"] if each["name"] == metric]
        assert score["value"] == accuracy["estimate"]
    assert suites["rows"]["summary"]["shares"]["accuracy"]["estimate"] == 0.75
    cut = records(out, "lm-sums")["1"]
    assert (cut.reasoning, cut.answer) == ("first\n\nthen STOP", "all of ")
