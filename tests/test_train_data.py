"""Training rows from every procedural source, and what is removed from them."""

import json
from pathlib import Path

import pytest

from thinkgate.answers import Verdict, check
from thinkgate.config import parse
from thinkgate.format import split
from thinkgate_train.data import prepare_rows, training_set
from thinkgate_train.recipe import Recipe
from thinkgate_train.scratch import build_tokenizer
from thinkgate_train.sources import load_rows, without_suites

DRAWN = {
    "arithmetic": {"min_terms": 2, "max_terms": 3},
    "symbolic-word": {},
    "countdown": {"numbers": 3},
}


def recipe(source: str, **more: object) -> Recipe:
    data = {"source": source, "half": "train", "count": 20, **DRAWN[source]}
    given = {"name": "r", "method": "sft", "model": {"scratch": {}}, "data": data, **more}
    return parse(Recipe, given, "recipe")


@pytest.mark.parametrize("source", DRAWN)
def test_a_worked_solution_is_right_by_the_verifier(source: str) -> None:
    for row in load_rows(recipe(source).data):
        done = split(row["completion"])
        assert done.reasoning and check(done.answer, row["gold"]) is Verdict.CORRECT
        if "rejected" in row:
            assert check(split(row["rejected"]).answer, row["gold"]) is Verdict.WRONG


@pytest.mark.parametrize("source", DRAWN)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_cold_start_teaches_right_answers(source: str, share: float) -> None:
    """A countdown puzzle's gold is no answer to it: once it was taught as one."""
    cold = recipe(source, cold_start={"direct_share": share})
    rows, tokenizer = load_rows(cold.data), build_tokenizer()
    learned = training_set(cold, rows, tokenizer)
    for row, ids, labels in zip(rows, learned["input_ids"], learned["labels"], strict=True):
        said = [i for i, label in zip(ids, labels, strict=True) if label != -100]
        done = split(tokenizer.decode(said, skip_special_tokens=True))
        assert check(done.answer, row["gold"]) is Verdict.CORRECT
        assert bool(done.reasoning) == (share == 0)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1", "completion": "<think>one more</think>2"},
        {
            "prompt": [{"role": "user", "content": "1+1"}],
            "completion": [{"role": "assistant", "content": "<think>one more</think>2"}],
        },
        {
            "messages": [
                {"role": "user", "content": "1+1"},
                {"role": "assistant", "content": "2", "reasoning_content": "one more"},
            ]
        },
    ],
    ids=["text", "messages", "one conversation"],
)
def test_a_completion_is_learned_as_it_is_written(row: dict[str, object], tmp_path: Path) -> None:
    """Of messages once their Python text was learned, and of a conversation no thought."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    tokenizer = build_tokenizer()
    given = {"name": "r", "method": "sft", "model": {"scratch": {}}}
    taught = parse(Recipe, {**given, "data": {"source": "jsonl", "path": str(file)}}, "recipe")
    learned = training_set(taught, prepare_rows(taught, tokenizer).train, tokenizer)
    said = [i for i in learned["labels"][0] if i != -100]
    assert tokenizer.decode(said) == "<think>one more</think>2<|end|>"


def test_every_copy_of_a_benchmark_problem_is_removed(tmp_path: Path) -> None:
    problem = "Ada has seven boxes of nine pens each and gives away twelve of all the pens she has."
    rows = [
        {"prompt": p} for p in (problem, "What is two and two?", problem.upper(), f"Q: {problem}")
    ]
    data = tmp_path / "bench.jsonl"
    data.write_text(json.dumps({"prompt": problem, "gold": "51"}) + "\n")
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"name: mine\nversion: 1\ndata: {{source: jsonl, path: {data}}}\n")
    kept, removed = without_suites(rows, (str(suite),), None)
    assert [row["prompt"] for row in kept] == ["What is two and two?"] and removed == 3
