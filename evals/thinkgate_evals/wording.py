"""Numbers as text: the same words in the terminal, on the page and in the summary for CI.

Knows numbers, rules and their names; nothing of where the text goes.
"""

from collections.abc import Mapping

from thinkgate.checkpoint import RuleResult
from thinkgate_evals.comparison import Comparison
from thinkgate_evals.metrics import Spread, Summary
from thinkgate_evals.stats import Interval

__all__ = [
    "agreement_rows",
    "asked_text",
    "comparison_text",
    "counts_text",
    "estimate_text",
    "interval_text",
    "points",
    "share_text",
    "spread_text",
    "summary_rows",
    "test_text",
]

SHARE_NAMES = {
    "accuracy": "Accuracy",
    "second_accuracy": "Accuracy, second grader",
    "disagreement": "Answers on which the graders disagree",
    "step_share": "Step-by-step answers",
    "reflection_rate": "Thoughts that turn on themselves",
    "format_rate": "Closed thought, then answer",
    "truncation_rate": "Cut off while thinking",
    "error_rate": "Could not be measured",
}


UNKNOWN = "-"


def summary_rows(summaries: list[Summary]) -> list[tuple[str, list[str]]]:
    """Rows of a table of numbers: a label, and a text for each summary; none that says nothing."""
    rows = [
        (label, [interval_text(summary.shares[name]) for summary in summaries])
        for name, label in SHARE_NAMES.items()
    ]
    names = sorted(
        {name for summary in summaries for name in summary.several},
        key=lambda name: (name.startswith("maj"), int(name.partition("@")[2])),
    )
    rows[1:1] = [(n, [interval_text(s.several.get(n)) for s in summaries]) for n in names]
    if any(summary.duplicate_rate for summary in summaries):
        copies = [interval_text(summary.duplicate_rate) for summary in summaries]
        rows.append(("Further answers that repeat one word for word", copies))
    spreads = (
        ("Thinking tokens: mean · median · 95th", "reasoning_tokens", ".1f"),
        ("Answer tokens: mean · median · 95th", "answer_tokens", ".1f"),
        ("Seconds per answer: mean · median · 95th", "latency_s", ".2f"),
    )
    for label, name, style in spreads:
        rows.append((label, [spread_text(getattr(s, name), style) for s in summaries]))
    rows.append(("Tokens per right answer", [_number(s.tokens_per_correct) for s in summaries]))
    rows.append(("Samples per second", [_number(s.samples_per_second, 1) for s in summaries]))
    rows.append(("Samples · problems", [f"{s.samples:,} · {s.problems:,}" for s in summaries]))
    rows.append(("Verdicts", [counts_text(s.verdicts) for s in summaries]))
    return [(label, cells) for label, cells in rows if set(cells) != {UNKNOWN}]


def comparison_text(pair: Comparison) -> str:
    """The paired difference in one sentence."""
    interval = pair.interval()
    if interval is None:
        return "No problem was measured on both sides."
    text = (
        f"{points(interval.estimate)} on the same {interval.n:,} problems; 95 % interval "
        f"{points(interval.low)} to {points(interval.high)}; {pair.wins:,} problems won, "
        f"{pair.losses:,} lost; {test_text(pair)}."
    )
    if pair.detectable is not None:
        text += f" A difference of {100 * pair.detectable:.1f} points would be found 4 times in 5."
    left_out = [
        f"{n:,} only by the {side}"
        for n, side in ((pair.candidate_only, "candidate"), (pair.base_only, "base"))
        if n
    ]
    return f"{text} Left out: problems answered {' and '.join(left_out)}." if left_out else text


def test_text(pair: Comparison) -> str:
    """The test of "no difference" and its p."""
    if pair.p_value is None:
        return "no test"
    return f"{pair.test} p = {pair.p_value:.2g}"


def agreement_rows(pair: Comparison) -> list[list[str]]:
    """Problems by who is right, as two rows of two."""
    both, ours, theirs, neither = (f"{n:,}" for n in pair.agreement())
    return [[both, ours], [theirs, neither]]


def estimate_text(rule: RuleResult) -> str:
    """The estimate of a rule and its interval, in points where it is a difference."""
    if rule.estimate is None or rule.low is None or rule.high is None:
        return "not measured"
    if rule.metric == "contamination":  # counted, not sampled
        return share_text(rule.estimate)
    if rule.metric == "accuracy_gain":
        return f"{points(rule.estimate)} ({100 * rule.low:+.1f} to {100 * rule.high:+.1f})"
    return f"{rule.estimate:.1%} ({rule.low:.1%} to {rule.high:.1%})"


def asked_text(rule: RuleResult) -> str:
    """What a rule asks, in a few words."""
    match rule.rule:
        case "superiority" if rule.threshold:
            return f"≥ {points(rule.threshold)}, interval > 0"
        case "superiority":
            return "interval > 0"
        case "non_inferiority":
            return f"interval > {points(rule.threshold)}"
        case "error_rate" | "duplicate_rate" | "contamination":
            return f"≤ {rule.threshold:.1%}"
        case "truncation_rate":
            return f"interval ≤ {rule.threshold:.1%}"
        case _:
            return f"interval ≥ {rule.threshold:.1%}"


def points(difference: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * difference:+.1f} points"


def share_text(value: float) -> str:
    """A share in percent."""
    return f"{value:.1%}"


def interval_text(interval: Interval | None) -> str:
    """A share and its interval; a dash where nothing is known."""
    if interval is None:
        return UNKNOWN
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def spread_text(spread: Spread | None, style: str) -> str:
    """Mean, median and 95th percentile."""
    if spread is None:
        return UNKNOWN
    return " · ".join(format(value, style) for value in (spread.mean, spread.p50, spread.p95))


def counts_text(verdicts: Mapping[str, int]) -> str:
    """How many samples got which verdict."""
    return " · ".join(f"{n:,} {verdict.replace('_', ' ')}" for verdict, n in verdicts.items())


def _number(value: float | None, places: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{places}f}"
