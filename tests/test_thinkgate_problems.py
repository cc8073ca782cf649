"""Problem sets: seeded, disjoint halves, clear errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkgate.errors import DataError
from thinkgate.problems import Arithmetic, Fields, HubSet, JsonlSet, Problem, load, prompt_key


def arithmetic(half: str, seed: int, count: int = 300) -> list[Problem]:
    return load(Arithmetic(source="arithmetic", half=half, seed=seed, count=count))  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_halves_never_share_a_problem(train_seed: int, eval_seed: int) -> None:
    trained = {p.prompt for p in arithmetic("train", train_seed, 50)}
    assert trained.isdisjoint(p.prompt for p in arithmetic("eval", eval_seed, 50))


def test_a_seed_repeats_and_another_differs() -> None:
    assert arithmetic("train", 1) == arithmetic("train", 1)
    assert arithmetic("train", 1) != arithmetic("train", 2)


def test_golds_and_steps_are_right() -> None:
    for problem in arithmetic("eval", 0):
        assert str(eval(problem.prompt)) == problem.gold  # digits and signs that we generated
        for step in problem.steps:
            left, _, right = step.partition("=")
            assert eval(left) == int(right) >= 0
        assert problem.steps[-1].endswith(f"={problem.gold}")


def test_more_problems_than_exist_is_an_error() -> None:
    few = Arithmetic(source="arithmetic", half="eval", count=500, min_terms=2, max_terms=2)
    with pytest.raises(DataError, match="different chains of 2 to 2 terms exist; lower count"):
        load(few)


def test_jsonl_with_gsm8k_fields(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"q{i}", "answer": f"because {i}\n#### {i:,}"} for i in (7, 1234)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    fields = Fields(prompt="question", gold="answer", gold_after="####")
    expected = [Problem("0", "q7", "7"), Problem("1", "q1234", "1,234")]
    assert load(JsonlSet(source="jsonl", path=str(file), fields=fields)) == expected
    hub = HubSet(source="hub", dataset="x/y", split="test", fields=fields, local=file.name)
    assert load(hub, data_dir=tmp_path, limit=1) == expected[:1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "a", "gold": "1"}\nnot json', "line 2 is not JSON"),
        ('{"prompt": "a"}', "row 1: no field 'gold'; it has prompt"),
        ("[1]", "line 1 is list, not a JSON object"),
        ("", "empty"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"prompt": ["a"], "gold": "1"}', "row 1: 'prompt' is list"),
        ('{"prompt": "a", "gold": true}', "row 1: 'gold' is bool"),
        ('{"prompt": "a\\ud800", "gold": "1"}', "lone surrogate"),
        (b'{"prompt": "caf\xe9", "gold": "1"}', "line 1 is not UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | bytes, expected: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=expected):
        load(JsonlSet(source="jsonl", path=str(file)))


def test_a_byte_order_mark_and_crlf_are_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "windows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "gold": 1}\r\n')
    assert load(JsonlSet(source="jsonl", path=str(file))) == [Problem("0", "a", "1")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        load(JsonlSet(source="jsonl", path=str(tmp_path / "nothing.jsonl")))


def test_prompt_key_ignores_case_and_spacing_only() -> None:
    assert prompt_key("What  is\n1+1?") == prompt_key("what is 1+1? ")
    assert prompt_key("1+1") != prompt_key("1+2")
