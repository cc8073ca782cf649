"""Numbers as text: the same words in the terminal, on the page and in the summary for CI.

Knows numbers, rules and their names; nothing of where the text goes.
"""

from collections.abc import Mapping

from thinkgate.checkpoint import Decision, GateVerdict, HealthVerdict, RuleResult, SequentialRun
from thinkgate_evals.comparison import Comparison
from thinkgate_evals.metrics import Spread, Summary
from thinkgate_evals.stats import Interval

__all__ = [
    "COUNTED",
    "agreement_rows",
    "asked_text",
    "comparison_text",
    "counts_text",
    "estimate_text",
    "interval_text",
    "points",
    "reasons_text",
    "saved_text",
    "share_text",
    "spread_text",
    "summary_rows",
    "test_text",
    "value_text",
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

COUNTED = ("contamination", "training_health", "reward_divergence")
"""Metrics that were counted, not sampled."""


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
    """The estimate of a rule and its interval; what was counted has none."""
    if rule.estimate is None or rule.low is None:
        return "not measured"
    estimate = value_text(rule.metric, rule.estimate)
    if rule.metric in COUNTED:
        return estimate
    low, high = (_bare(rule.metric, end) for end in (rule.low, rule.high))
    return f"{estimate} ({low} to {high})"


def asked_text(rule: RuleResult) -> str:
    """What a rule asks, in a few words."""
    threshold = value_text(rule.metric, rule.threshold)
    match rule.rule:
        case "superiority" if rule.threshold:
            return f"≥ {threshold}, interval > 0"
        case "superiority":
            return "interval > 0"
        case "non_inferiority":
            return f"interval > {threshold}"
        case "error_rate" | "duplicate_rate" | "contamination":
            return f"≤ {threshold}"
        case "training_health":
            return f"{threshold} at worst"
        case "reward_divergence":
            return "none seen"
        case "truncation_rate" | "p95_thinking_tokens" | "tokens_per_correct":
            return f"interval ≤ {threshold}"
        case _:
            return f"interval ≥ {threshold}"


def value_text(metric: str, value: float) -> str:
    """A value of a rule's metric, with its unit."""
    match metric:
        case "accuracy_gain":
            return points(value)
        case "p95_thinking_tokens" | "tokens_per_correct":
            return f"{value:,.0f} tokens"
        case "training_health":
            return tuple(HealthVerdict)[int(value)].value
        case "reward_divergence":
            return f"{value:.0f} findings" if value else "none"
        case _:
            return share_text(value)


def _bare(metric: str, value: float | None) -> str:
    """The end of an interval, whose unit stands before."""
    if value is None:
        return "no limit"
    if metric == "accuracy_gain":
        return f"{100 * value:+.1f}"
    return value_text(metric, value).removesuffix(" tokens")


def reasons_text(decision: Decision) -> str:
    """Which rules keep a candidate out; empty for a PASS."""
    named = {
        verdict: ", ".join(
            f"{rule.rule.replace('_', ' ')} ({rule.suite})"
            for rule in decision.rules
            if rule.verdict is verdict
        )
        for verdict in (GateVerdict.FAIL, GateVerdict.INCONCLUSIVE)
    }
    parts = (("Fails", GateVerdict.FAIL), ("Undecided", GateVerdict.INCONCLUSIVE))
    return ". ".join(f"{word}: {named[verdict]}" for word, verdict in parts if named[verdict])


def saved_text(run: SequentialRun) -> str:
    """What stopping early saved."""
    saved = 1 - run.used / run.planned if run.planned else 0.0
    return (
        f"sequential: {run.used:,} of {run.planned:,} planned samples in {run.looks} looks "
        f"({saved:.0%} saved), problems in the random order of seed {run.order_seed}"
    )


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
