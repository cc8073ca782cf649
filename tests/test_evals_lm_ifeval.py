"""IFEval: lm-eval's own scoring of instructions, on local problems; no network, no NLTK data."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.cli import main
from thinkgate_evals.records import read_records

PROBLEMS: list[dict[str, Any]] = [
    {
        "key": 1,
        "prompt": "Name two fruits without commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 2,
        "prompt": "Greet me in at least 3 words, all lowercase and English.",
        "instruction_id_list": ["length_constraints:number_words", "change_case:english_lowercase"],
        "kwargs": [{"num_words": 3, "relation": "at least"}, {}],
    },
    {
        "key": 3,
        "prompt": "Say nothing.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
]
ANSWERS = {
    "Name two fruits without commas.": Says("Apples, and,\nno, pears", "no commas"),
    "Greet me in at least 3 words, all lowercase and English.": Says(
        "good morning to you, my dear old friend", "GREET"
    ),
    "Say nothing.": Says(None, "so much to think", finish="length"),
}
TASK = """\
task: instructions
dataset_path: json
dataset_kwargs: {data_files: {train: PROBLEMS}}
output_type: generate_until
test_split: train
num_fewshot: 0
doc_to_text: prompt
doc_to_target: 0
generation_kwargs: {until: [], do_sample: false, temperature: 0.0, max_gen_toks: 1280}
process_results: !function utils.process_results
metric_list:
  - {metric: prompt_level_strict_acc, aggregation: mean, higher_is_better: true}
  - metric: inst_level_strict_acc
    aggregation: !function utils.agg_inst_level_acc
    higher_is_better: true
  - {metric: prompt_level_loose_acc, aggregation: mean, higher_is_better: true}
  - metric: inst_level_loose_acc
    aggregation: !function utils.agg_inst_level_acc
    higher_is_better: true
metadata: {version: 4.0}
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shipped task over our problems."""

    look_up = socket.getaddrinfo

    def no_network(host: Any, *args: Any, **more: Any) -> Any:
        if host in ("127.0.0.1", b"127.0.0.1"):
            return look_up(host, *args, **more)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    (tmp_path / "utils.py").write_text(
        "from lm_eval.tasks.ifeval.utils import agg_inst_level_acc, process_results\n"
    )
    file = tmp_path / "instructions.yaml"
    file.write_text(TASK.replace("PROBLEMS", str(tmp_path / "problems.jsonl")))
    return str(file)


def test_instructions_are_scored_by_lm_eval(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])
    with ScriptedEndpoint(lambda body: ANSWERS[prompt_of(body)]) as server:
        command = ["eval", server.base_url, "--suite", f"lm:{task}", "--out", str(tmp_path / "o")]
        assert main(command) == 0
    records = {r.prompt: r for r in read_records(tmp_path / "o" / "lm-instructions.jsonl")}
    verdicts = [records[row["prompt"]].verdict for row in PROBLEMS]
    assert verdicts == [Verdict.WRONG, Verdict.CORRECT, Verdict.NO_ANSWER]
    log = json.loads((tmp_path / "o" / "lm-instructions.lm_eval.json").read_text())
    assert log["results"]["prompt_level_strict_acc,none"] == pytest.approx(1 / 3)
    # Two of the four instructions; the thought that was cut off earns nothing for its third.
    assert log["results"]["inst_level_strict_acc,none"] == pytest.approx(2 / 4)


def test_without_nltks_data_nothing_is_asked_and_the_way_to_it_is_named(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "empty")])
    assert main(["eval", "http://127.0.0.1:9", "--suite", f"lm:{task}"]) == 2
    said = capsys.readouterr().err
    assert "nltk.downloader -d nltk_data punkt_tab" in said and "NLTK_DATA" in said
    assert "Traceback" not in said
