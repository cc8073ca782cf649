"""`thinkgate score` and `thinkgate split` over recorded outputs of any tool."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from thinkgate.cli import main

ROWS: list[dict[str, Any]] = [
    {"id": "a", "gold": "72", "completion": "<think>48/2=24</think>\n\\boxed{72}"},
    {"id": "b", "gold": "72", "completion": "<think>48/2=24, so \\boxed{72}"},
    {"id": "c", "gold": "72", "completion": "The answer is 73."},
    {"gold": 72, "answer": "72 clips"},
    {"gold": "\\sqrt{8}", "answer": "$2\\sqrt2$"},
    {"gold": "72", "completion": None},
    {"gold": "", "answer": "72"},
    {"gold": "72", "answer": None},
]
VERDICTS = ["correct", "no_answer", "wrong", "correct", "correct", "error", "bad_gold", "no_answer"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_score_grades_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    file = write(tmp_path / "outputs.jsonl", ROWS)
    assert main(["score", str(file), "--workers", workers]) == 0
    captured = capsys.readouterr()
    graded = lines(captured.out)
    assert [line["verdict"] for line in graded] == VERDICTS
    assert [line["line"] for line in graded] == list(range(1, 9))
    assert graded[0] == {
        "line": 1,
        "id": "a",
        "status": "closed",
        "verdict": "correct",
        "extracted": "72",
        "how": "boxed",
        "gold": "72",
    }
    assert graded[1]["status"] == "truncated" and graded[1]["extracted"] is None
    # 8 lines, of which the null completion and the empty gold say nothing about the model.
    assert "accuracy 0.5000 of 6 graded (8 lines)" in captured.err


def test_score_reads_other_names_tags_and_prefill(tmp_path: Path) -> None:
    rows = [
        {"uid": 7, "target": "42", "response": "6*7=42</thought>42"},
        {"uid": 8, "target": "3.1", "response": "guessing</thought>3.0"},
    ]
    file, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "verdicts.jsonl"
    flags = ["--gold-field", "target", "--completion-field", "response", "--id-field", "uid"]
    flags += ["--open-tag", "<thought>", "--close-tag", "</thought>", "--prefilled"]
    flags += ["--tolerance", "0.05", "--output", str(output)]
    assert main(["score", str(file), *flags]) == 0
    graded = lines(output.read_text(encoding="utf-8"))
    assert [(line["id"], line["verdict"], line["status"]) for line in graded] == [
        (7, "correct", "closed"),
        (8, "correct", "closed"),
    ]


def test_score_with_nothing_gradable_is_a_negative_result(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"gold": "1", "completion": None}])
    assert main(["score", str(file)]) == 1


@pytest.mark.parametrize(
    ("content", "flags", "named"),
    [
        ('{"gold": "1"}', [], "no field 'answer'"),
        ('{"answer": "1"}', [], "no field 'gold'"),
        ('{"gold": true, "answer": "1"}', [], "the gold true is neither"),
        ('{"gold": "1", "answer": ["1"]}', [], "is not a text"),
        ("[1]", [], "line 1 is list"),
        ("{", [], "line 1 is not JSON"),
        ("", [], "no lines to grade"),
        ('{"gold": "1", "answer": "1"}', ["--timeout", "0"], "--timeout 0.0"),
        ('{"gold": "1", "answer": "1"}', ["--timeout", "nan"], "--timeout nan"),
        ('{"gold": ' + "9" * 5000 + "}", [], "line 1 is not JSON"),
        ("[" * 100_000, [], "line 1 is not JSON"),
        ('{"gold": "1", "answer": "1"}', ["--workers", "0"], "--workers 0"),
        ('{"gold": "1", "answer": "1"}', ["--tolerance", "-1"], "--tolerance -1.0"),
        ('{"gold": "1", "answer": "1"}', ["--output", "/nonexistent/x"], "Cannot write"),
    ],
)
def test_score_names_the_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, flags: list[str], named: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content, encoding="utf-8")
    assert main(["score", str(file), *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "split"])
def test_other_encodings_and_the_input_as_output_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    row = b'{"gold": "1", "completion": "caf\xe9"}\n'
    latin, good = tmp_path / "latin.jsonl", tmp_path / "good.jsonl"
    latin.write_bytes(row)
    assert main([command, str(latin)]) == 2
    assert "line 1 is not UTF-8 (byte 33 is 0xe9)" in capsys.readouterr().err
    good.write_bytes(row.replace(b"\xe9", b"e"))
    assert main([command, str(good), "--output", str(good)]) == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert good.read_bytes() == row.replace(b"\xe9", b"e")


@pytest.mark.parametrize("command", ["score", "split"])
def test_lone_surrogates_and_byte_order_marks_pass(tmp_path: Path, command: str) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"id": "\\ud800", "gold": "1", "completion": "\\ud800"}\r\n')
    assert main([command, str(file), "--output", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["id"] == "\ud800"


@pytest.mark.parametrize("command", ["score", "split"])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS[:1])
    assert main([command, str(file), "--output", "/dev/full"]) == 2
    assert "no space left on device; free some space" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "none.jsonl")]) == 2
    assert "Cannot read" in capsys.readouterr().err


def test_split_adds_the_parts_to_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"n": 1, "completion": "<think>a</think> b"},
        {"n": 2, "completion": "<think>a"},
        {"n": 3, "completion": "b"},
    ]
    assert main(["split", str(write(tmp_path / "rows.jsonl", rows))]) == 0
    captured = capsys.readouterr()
    parts = lines(captured.out)
    assert [(p["n"], p["status"], p["reasoning"], p["answer"]) for p in parts] == [
        (1, "closed", "a", "b"),
        (2, "truncated", "a", None),
        (3, "untagged", "", "b"),
    ]
    assert [p["completion"] for p in parts] == [row["completion"] for row in rows]
    assert [line.split() for line in captured.err.splitlines()] == [
        ["closed", "1"],
        ["truncated", "1"],
        ["untagged", "1"],
    ]


def test_split_reads_one_completion_from_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("line one\nline two</think>\nanswer\n"))
    assert main(["split", "--prefilled"]) == 0
    assert lines(capsys.readouterr().out) == [
        {"status": "closed", "reasoning": "line one\nline two", "answer": "answer\n"}
    ]


def test_split_reads_jsonl_from_stdin_and_other_fields(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "x</t>y"}\n'))
    flags = ["--field", "text", "--open-tag", "<t>", "--close-tag", "</t>", "--prefilled"]
    assert main(["split", "-", *flags]) == 0
    assert lines(capsys.readouterr().out)[0]["answer"] == "y"


def test_split_refuses_what_is_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", [{"completion": 5}])
    assert main(["split", str(file)]) == 2
    assert "is not a text to split" in capsys.readouterr().err
    assert main(["split", str(file), "--field", "other"]) == 2
    assert "name it with --field" in capsys.readouterr().err
