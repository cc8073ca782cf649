"""Reports for CI: a Markdown summary for a comment, and JUnit XML for the list of checks.

Owns the two formats. Suite names, model names and the servers' words are text from strangers: none
of it becomes Markdown or XML.
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from thinkgate.checkpoint import GateVerdict, RuleResult
from thinkgate.console import printable
from thinkgate_evals.results import Result, Results
from thinkgate_evals.wording import (
    agreement_rows,
    asked_text,
    comparison_text,
    estimate_text,
    interval_text,
    reasons_text,
    saved_text,
    share_text,
    summary_rows,
)

__all__ = ["junit", "markdown"]

MARKS = {GateVerdict.PASS: "✅", GateVerdict.FAIL: "❌", GateVerdict.INCONCLUSIVE: "❔"}


def markdown(results: Results) -> str:
    """The verdict, each rule, and each suite's numbers."""
    blocks: list[str] = []
    decision = results.decision
    if decision is not None:
        mark = MARKS[decision.verdict]
        name = _plain(results.candidate)
        blocks.append(f"## {mark} {decision.verdict.upper()}: {name}")
        blocks.append(f"Policy {_plain(decision.policy)}, decision `{decision.id}`.")
        if decision.verdict is not GateVerdict.PASS:
            blocks.append(f"**{_plain(reasons_text(decision))}**")
        blocks.append(_rules(decision.rules))
        if decision.sequential is not None:
            blocks.append(_plain(saved_text(decision.sequential)))
    else:
        blocks.append(f"## {_plain(results.candidate)}")
    blocks += [block for result in results.suites for block in _suite(result)]
    return "\n\n".join(blocks) + "\n"


def junit(results: Results) -> str:
    """One test case per rule of the decision, or one per suite.

    FAIL is a failure. INCONCLUSIVE is an error, and so is a suite of which nothing was measured: a
    check that does not know must not be green.
    """
    decision = results.decision
    if decision is not None:
        cases = [_rule_case(rule) for rule in decision.rules]
    else:
        cases = [_suite_case(result) for result in results.suites]
    failed, broken = (
        sum(case.find(tag) is not None for case in cases) for tag in ("failure", "error")
    )
    attributes = {"tests": str(len(cases)), "failures": str(failed), "errors": str(broken)}
    root = ElementTree.Element("testsuites", attributes)
    name = _xml(f"thinkgate {'gate' if decision else 'eval'}: {results.candidate}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **attributes})
    suite.extend(cases)
    ElementTree.indent(root)
    # Not `xml_declaration`: it would name the locale's encoding.
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _rules(rules: Sequence[RuleResult]) -> str:
    rows = [
        [
            f"{MARKS[rule.verdict]} {rule.verdict}",
            rule.rule,
            rule.suite,
            estimate_text(rule),
            asked_text(rule),
            rule.why,
        ]
        for rule in rules
    ]
    return _table(["", "rule", "suite", "estimate (interval)", "asked", "why"], rows)


def _suite(result: Result) -> list[str]:
    base = [result.base] if result.base else []
    runs = [*base, result.candidate]
    rows = [[label, *cells] for label, cells in summary_rows([run.summary for run in runs])]
    blocks = [f"### {_plain(result.suite)}"]
    if result.comparison is not None and result.base is not None:
        accuracies = [run.summary.shares["accuracy"] for run in runs]
        shown = " → ".join(share_text(a.estimate) if a else "-" for a in accuracies)
        blocks.append(f"**{shown}**: {_plain(comparison_text(result.comparison))}")
        ours, theirs = (_plain(run.name) for run in (result.candidate, result.base))
        (both, only_ours), (only_theirs, neither) = agreement_rows(result.comparison)
        table = [[f"{ours} right", both, only_ours], [f"{ours} wrong", only_theirs, neither]]
        blocks.append(_table(["problems", f"{theirs} right", f"{theirs} wrong"], table))
    return [*blocks, _table(["", *(run.name for run in runs)], rows)]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    line = " ".join(printable(text).split())
    return line if line == "---" else re.sub(r"([\\`*_{}\[\]<>#|~&@])", r"\\\1", line)


def _rule_case(rule: RuleResult) -> ElementTree.Element:
    case = _case(rule.suite, rule.rule)
    text = f"{estimate_text(rule)}, asked {asked_text(rule)}: {rule.why}"
    return _outcome(case, rule.verdict, text)


def _suite_case(result: Result) -> ElementTree.Element:
    case = _case(result.suite, "accuracy")
    interval = result.candidate.summary.shares["accuracy"]
    if interval is None:
        reason = result.candidate.summary.first_error or "no sample could be measured"
        return _outcome(case, GateVerdict.INCONCLUSIVE, reason)
    pair = result.comparison
    text = f"accuracy {interval_text(interval)}"
    text += f"; {comparison_text(pair)}" if pair else ""
    return _outcome(case, GateVerdict.PASS, text)


def _case(suite: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _xml(suite), "name": _xml(name)})


def _outcome(case: ElementTree.Element, verdict: GateVerdict, text: str) -> ElementTree.Element:
    if verdict is GateVerdict.PASS:
        ElementTree.SubElement(case, "system-out").text = _xml(text)
    else:
        tag = "failure" if verdict is GateVerdict.FAIL else "error"
        attributes = {"type": verdict.value, "message": _xml(text)}
        ElementTree.SubElement(case, tag, attributes).text = _xml(text)
    return case


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
