"""docs/verifier.md lists where math-verify and the verifier differ: both columns are run here."""

import re
from pathlib import Path
from typing import Any

import pytest

from thinkgate.answers import check, equivalent, extract

DOC = Path(__file__).parent.parent / "docs" / "verifier.md"
ROW = re.compile(r"\| `(?P<answer>.+?)` \| `(?P<gold>.+?)` \| (?P<ours>\w+) \| (?P<theirs>\w+) \| ")


def rows() -> list[tuple[str, str, str, str, bool]]:
    found: list[tuple[str, str, str, str, bool]] = []
    wrapped = True
    for line in DOC.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            wrapped = "as the data sets have them" not in line
        if match := ROW.match(line):
            answer, gold, ours, theirs = (
                match[name] for name in ("answer", "gold", "ours", "theirs")
            )
            found.append((answer, gold, ours, theirs, wrapped))
    return found


def test_the_tables_are_there() -> None:
    assert len(rows()) > 50
    assert {wrapped for *_, wrapped in rows()} == {True, False}


@pytest.mark.parametrize(("answer", "gold", "ours", "theirs", "wrapped"), rows())
def test_a_row_is_true(answer: str, gold: str, ours: str, theirs: str, wrapped: bool) -> None:
    import math_verify

    library: Any = math_verify
    assert check(answer, gold) == ours
    reference = library.parse(f"${gold}$" if wrapped else gold, parsing_timeout=None)
    accepted = library.verify(
        reference, library.parse(answer, parsing_timeout=None), timeout_seconds=None
    )
    assert ("correct" if accepted else "wrong") == theirs
    assert (ours == "correct") != accepted


def test_the_examples_are_true() -> None:
    text = DOC.read_text(encoding="utf-8")
    names = {"check": check, "extract": extract, "equivalent": equivalent}
    examples = re.findall(r"^((?:check|extract|equivalent)\(.+\)) +# (.+)$", text, re.MULTILINE)
    assert len(examples) == 5
    for code, comment in examples:
        value = eval(code, names)
        assert comment.startswith((str(value), f"Verdict.{str(value).upper()}")) or (
            comment == f"Extracted(text={value.text!r}, how=How.{value.how.name})"
        )
