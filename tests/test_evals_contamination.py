"""`thinkgate eval contamination`: training data against benchmarks, from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint

from thinkgate.cli import main
from thinkgate.problems import prompt_key
from thinkgate_evals.suites import load_suite

QUESTION = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total "
    "does it take to sew the whole robe and both of its sleeves?"
)


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    rows = [
        {"prompt": QUESTION, "gold": "3"},
        {"prompt": "8+7-6", "gold": "9"},
        {"prompt": "What is the capital of Peru?", "gold": "Lima"},
    ]
    return f"jsonl:{lines(tmp_path / 'bench.jsonl', *rows)}"


@pytest.mark.parametrize(
    ("row", "problem", "kind"),
    [
        ({"prompt": QUESTION.upper()}, "0", "exact"),
        ({"question": QUESTION.replace("robe", "coat")}, "0", "near"),
        ({"text": f"So much for dogs. {QUESTION} I say 3."}, "0", "ngram"),
        ({"messages": [{"role": "user", "content": "8 + 7 - 6"}]}, "1", "exact"),
        ({"messages": [{"content": "Go"}, {"content": "8+7-6=9"}]}, "1", "ngram"),
        ({"conversations": [{"from": "human", "value": "8+7-6"}]}, "1", "exact"),
        ({"mine": QUESTION}, "0", "exact"),
    ],
)
def test_problems_are_found_in_any_usual_form(
    row: dict[str, Any],
    problem: str,
    kind: str,
    benchmark: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = lines(tmp_path / "train.jsonl", {**dict.fromkeys(row, "Nothing of interest"), **row})
    out = tmp_path / "overlaps.jsonl"
    command = ["eval", "contamination", str(train), "--suite", benchmark, "--out", str(out)]
    assert main([*command, *(["--field", "mine"] if "mine" in row else [])]) == 1
    [found] = [json.loads(line) for line in out.read_text().splitlines()]
    assert (found["suite"], found["problem_id"], found["kind"]) == ("bench", problem, kind)
    assert found["text"] == 0 and found["texts"] == 1
    assert "1 of 3 problems (33.3%) are in the training texts" in capsys.readouterr().out


def test_clean_data_exit_with_0(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = lines(tmp_path / "train.jsonl", {"prompt": "8+7-5"}, {"prompt": "Name a river."})
    assert main(["eval", "contamination", str(train), "--suite", benchmark]) == 0
    assert "bench: none of 3 problems is in the training texts" in capsys.readouterr().out


def test_several_files_and_suites_are_one_search(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = lines(tmp_path / "a.jsonl", {"prompt": "8+7-6"})
    second = lines(tmp_path / "b.jsonl", {"prompt": load_suite("arithmetic").problems[3].prompt})
    suites = ["--suite", benchmark, "--suite", "arithmetic,countdown"]
    assert main(["eval", "contamination", str(first), str(second), *suites]) == 1
    shown = capsys.readouterr().out
    assert "bench: 1 of 3 problems" in shown and "arithmetic: 1 of 1,000 problems" in shown


def test_a_checkpoint_is_searched_by_the_fingerprints_it_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = load_suite("arithmetic").problems
    seen = frozenset(prompt_key(p.prompt) for p in problems[:2])
    dirty = make_checkpoint(tmp_path / "dirty", seen=seen)
    clean = make_checkpoint(tmp_path / "clean", seen=frozenset({"0" * 16}))
    assert main(["eval", "contamination", str(dirty), "--suite", "arithmetic"]) == 1
    assert "2 of 1,000 problems (0.2%) are in the training prompts" in capsys.readouterr().out
    assert main(["eval", "contamination", str(clean), "--suite", "arithmetic"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl"], "Cannot read none.jsonl"),
        (["odd.jsonl"], "odd.jsonl line 1 has no prompt, text or conversation (it has body)"),
        (["odd.jsonl", "--field", "boddy"], "has no boddy (it has body): name its field"),
        (["number.jsonl"], "7 is neither a text nor a conversation"),
        (["blank.jsonl"], "the training data are empty"),
        (["odd.jsonl", "--ngram", "3"], "--ngram is 3"),
        (["odd.jsonl", "--suite", "lm:gsm8k"], "lm:gsm8k is lm-eval's"),
        (["odd.jsonl", "--found", "2"], "--found is 2"),
        (["unknown"], "does not say what it was trained on"),
        (["unknown", "odd.jsonl"], "name one checkpoint folder, or files"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "odd.jsonl", {"body": "x"})
    lines(tmp_path / "number.jsonl", {"prompt": 7})
    lines(tmp_path / "blank.jsonl")
    make_checkpoint(tmp_path / "unknown")
    assert main(["eval", "contamination", *arguments, "--suite", "arithmetic"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
