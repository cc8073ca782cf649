"""Suites: strict, shipped ones load, and the fingerprint moves with all that decides a result."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets.exceptions import DatasetNotFoundError

from thinkgate.answers import Verdict, check_many
from thinkgate.errors import ConfigError, DataError
from thinkgate_evals.suites import LoadedSuite, changed_keys, load_suite

ROOT = Path(__file__).parent.parent
GSM8K = {"question": "How many?", "answer": "2+2=4\nSo it is\n#### 4"}
ROWS = {
    "gsm8k": ("gsm8k_test.jsonl", GSM8K),
    "math500": (
        "math500.jsonl",
        {"problem": r"Find \frac{1}{2}{prompt}.", "answer": r"\frac12", "unique_id": "a/1.json"},
    ),
    "aime24": ("aime24.jsonl", {"id": 60, "problem": "P", "answer": "025"}),
    "aime25": ("aime25.jsonl", {"id": "I-1", "problem": "P", "answer": "70"}),
    "amc23": ("amc23.jsonl", {"id": 0, "question": "P", "answer": 27.0}),
    "gpqa": (
        "gpqa_diamond.jsonl",
        {
            "Record ID": "rec0",
            "Question": "Which is a colour?\n",
            "Correct Answer": "red\n",
            "Incorrect Answer 1": "two",
            "Incorrect Answer 2": "Rome",
            "Incorrect Answer 3": "up",
            "answer": "A",
        },
    ),
}
DRAWN = {"arithmetic": 1000, "symbolic-word": 520, "countdown": 500}
SUITE = """\
name: mine
data: {source: jsonl, path: PATH}
prompt: {template: "Solve: {prompt}"}
sampling: {temperature: 0.5, max_tokens: 100, seed: 1}
"""


def written(folder: Path, text: str = SUITE, rows: str = '{"prompt": "1+1", "gold": "2"}\n') -> str:
    (folder / "mine.jsonl").write_text(rows)
    file = folder / "mine.yaml"
    file.write_text(text.replace("PATH", str(folder / "mine.jsonl")))
    return str(file)


def test_every_shipped_suite_is_tested_here() -> None:
    shipped = {file.stem for file in (ROOT / "evals" / "suites").glob("*.yaml")}
    assert shipped == {*ROWS, *DRAWN}


@pytest.mark.parametrize("name", ROWS)
def test_benchmarks_load_from_local_files(name: str, tmp_path: Path) -> None:
    file, row = ROWS[name]
    (tmp_path / file).write_text(json.dumps(row) + "\n")
    loaded = load_suite(name, data_dir=tmp_path)
    assert loaded.name == name and len(loaded.problems) == 1
    problem = loaded.problems[0]
    assert problem.gold == str(row["answer"]).rpartition("#### ")[2]
    [message] = loaded.suite.prompt.messages(problem.prompt)
    assert message["content"].startswith(problem.prompt) and r"\boxed{}" in message["content"]


def test_hub_suites_name_the_revision_they_were_made_for() -> None:
    for name in ROWS:
        data = yaml.safe_load((ROOT / "evals" / "suites" / f"{name}.yaml").read_text())["data"]
        assert re.fullmatch("[0-9a-f]{40}", data["revision"]), name


def test_options_have_an_order_of_their_own_for_each_question(tmp_path: Path) -> None:
    file, row = ROWS["gpqa"]
    rows = [row | {"Record ID": str(n), "Question": f"Question {n}"} for n in range(200)]
    (tmp_path / file).write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = load_suite("gpqa", data_dir=tmp_path).problems
    for problem in problems:
        question, empty, *options = problem.prompt.split("\n")
        assert question == f"Question {problem.id}" and not empty
        assert sorted(option[4:] for option in options) == ["Rome", "red", "two", "up"]
        assert f"({problem.gold}) red" in options
    letters = Counter(problem.gold for problem in problems)
    assert set(letters) == set("ABCD") and min(letters.values()) > 30
    # Where a row stands does not matter.
    (tmp_path / file).write_text("".join(json.dumps(r) + "\n" for r in reversed(rows)))
    assert sorted(problems, key=str) == sorted(
        load_suite("gpqa", data_dir=tmp_path).problems, key=str
    )


def test_a_gated_data_set_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise DatasetNotFoundError(
            "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub. You must be authenticated."
        )

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"accept its terms.*https://.*hf auth login") as e:
        load_suite("gpqa")
    assert "gpqa_diamond.jsonl" in str(e.value)


def test_a_thinking_budget_is_part_of_the_fingerprint_only_where_there_is_one() -> None:
    plain, bound = (
        load_suite("arithmetic"),
        load_suite("arithmetic", overrides=["sampling.thinking_budget=50"]),
    )
    assert changed_keys(plain.identity(), bound.identity()) == ["sampling.thinking_budget"]
    assert "thinking_budget" not in plain.suite.sampling.model_dump()


def test_a_benchmark_without_its_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gsm8k_test\.jsonl: no such file"):
        load_suite("gsm8k", data_dir=tmp_path)


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_suites_are_the_same_everywhere(name: str) -> None:
    loaded, count = load_suite(name), DRAWN[name]
    assert loaded.name == name and len(loaded.problems) == count
    assert load_suite(name).fingerprint == loaded.fingerprint
    assert [len(loaded.planned(limit)) for limit in (None, 7, 5000)] == [count, 7, count]


def test_arithmetic_is_what_it_was() -> None:
    """Decisions name this fingerprint; drawing the problems otherwise would void them silently."""
    assert load_suite("arithmetic").fingerprint.startswith("fb8ab4b61142")


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_suites_score_their_own_answers(name: str) -> None:
    problems = load_suite(name).problems
    golds = [(rf"It is \boxed{{{p.answer or p.gold}}}.", p.gold) for p in problems]
    assert set(check_many(golds)) == {Verdict.CORRECT}
    others = [(answer, problems[n - 1].gold) for n, (answer, _) in enumerate(golds)]
    right = check_many(others).count(Verdict.CORRECT)
    assert right < len(problems) / 10  # small numbers coincide


def test_distractors_are_another_suite_over_the_same_problems() -> None:
    plain = load_suite("symbolic-word")
    noisy = load_suite("symbolic-word", overrides=["data.distractors=true"])
    assert changed_keys(plain.identity(), noisy.identity()) == ["data.distractors", "problems"]
    assert [p.id for p in plain.problems] == [p.id for p in noisy.problems]


@pytest.mark.parametrize(
    "override",
    [
        "version=2",
        "samples=2",
        "prompt.template={prompt}?",
        "prompt.system=Think.",
        "sampling.temperature=0.6",
        "sampling.top_p=0.9",
        "sampling.max_tokens=99",
        "sampling.seed=2",
        "data.fields.id=prompt",
    ],
)
def test_the_fingerprint_moves_and_names_what_moved(override: str, tmp_path: Path) -> None:
    file = written(tmp_path)
    before, after = load_suite(file), load_suite(file, overrides=[override])
    assert before.fingerprint != after.fingerprint
    moved = changed_keys(before.identity(), after.identity())
    assert override.partition("=")[0] in moved


def test_the_fingerprint_moves_with_the_problems_but_not_with_their_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    here, there = load_suite(written(tmp_path / "a")), load_suite(written(tmp_path / "b"))
    other = load_suite(written(tmp_path / "c", rows='{"prompt": "1+1", "gold": "3"}\n'))
    assert here.fingerprint == there.fingerprint
    assert changed_keys(here.identity(), other.identity()) == ["problems"]


def test_own_problems_need_no_suite_file(tmp_path: Path) -> None:
    file = tmp_path / "My Problems (2).jsonl"
    file.write_text('{"prompt": "1+1", "gold": "2"}\n')
    loaded = load_suite(f"jsonl:{file}", overrides=["samples=3"])
    assert (loaded.name, loaded.suite.samples) == ("my-problems-2", 3)
    assert isinstance(loaded, LoadedSuite)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SUITE + "temperature: 1\n", "unknown key 'temperature'"),
        (SUITE.replace("max_tokens", "max_token"), "did you mean 'max_tokens'?"),
        (SUITE.replace("temperature: 0.5", "temperature: 3"), "sampling.temperature"),
        (SUITE.replace("Solve: {prompt}", "Solve this"), "template needs {prompt}"),
        (SUITE.replace("name: mine", "name: ../mine"), "'name' is '../mine'"),
        (SUITE.replace("name: mine\n", ""), "'name' is missing"),
        (SUITE.replace("source: jsonl", "source: json"), "source"),
        ("- a list\n", "expected a mapping"),
    ],
)
def test_mistakes_are_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_suite(written(tmp_path, text))
    assert words in str(caught.value) and "mine.yaml" in str(caught.value)


def test_an_unknown_suite_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        load_suite("arithmetics")
