"""Measures the verifier against math-verify and, with --data-dir, against real gold answers.

Goals:
  1. GSM8K-style golds: at least 50 times math-verify's throughput, with the same verdicts.
  2. MATH-style golds: no slower than math-verify, with the worker pool warm and nothing cached.
  3. Memory: 100,000 checks leave the process and its workers no larger than 10,000 did (+5 %).
  4. With --data-dir: every gold checked against itself is CORRECT and with any one of its digits
     changed is WRONG.

    python bench/verifier.py [--quick] [--check] [--data-dir DIR]

`--check` exits 1 when a goal is missed. The last line is one JSON object with every number.
math-verify runs without its own timeouts, its fastest mode. Speeds are compared by their medians.
"""

import argparse
import json
import logging
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thinkgate import answers
from thinkgate.answers import Verdict, check

SPEEDUP_GOAL = 50.0
MATH_GOAL = 1.0
GROWTH_GOAL = 1.05

GSM8K_FORMS = (
    "{n}",
    "#### {n}",
    "The answer is {n}.",
    "\\boxed{{{n}}}",
    "She sold 48/2 = 24 clips in May, so altogether 24 and the rest.\n#### {n}",
)

MATH_PAIRS = [
    ("3\\sqrt{13}", "\\sqrt{117}"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
    ("p - q", "-q+p"),
    ("\\frac{14}{3}", "14/3"),
    ("x^3+3x-6", "x^3 - 6 + 3x"),
    ("90^\\circ", "\\frac{\\pi}{2}"),
    ("6 - 5i", "-5i + 6"),
    ("\\frac{243}{625}", "0.3888"),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10"),
    ("(3,4]", "3 < x \\le 4"),
    ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}"),
    ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
    ("288 \\pi", "2^5 \\cdot 9 \\pi"),
    ("1\\frac{4}{5}", "\\frac{9}{5}"),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(3,\\infty) \\cup (-\\infty,2)"),
    ("y = 2x + 3", "y - 2x = 3"),
    ("\\begin{pmatrix} -2 \\\\ -14 \\end{pmatrix}", "\\begin{bmatrix}-2\\\\-14\\end{bmatrix}"),
    ("\\frac{11+9a}{20}", "\\frac{11}{20} + \\frac{9a}{20}"),
    ("6r^2-4r-24", "2(3r^2 - 2r - 12)"),
    ("-\\frac{24}{25}", "-0.96"),
    ("11 \\sqrt{5} + 11", "11(1+\\sqrt5)"),
    ("\\frac{20000}{\\pi}", "20000/\\pi"),
    ("\\{1\\pm\\sqrt{5},-2\\}", "\\{-2, 1-\\sqrt5, 1+\\sqrt5\\}"),
    ("8n^2 + 4n + 1", "(2n)^2 + (2n+1)^2"),
]  # fmt: skip
"""Pairs of a gold and another way to write it; each is also checked against a changed digit."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--data-dir", type=Path, help="folder with gsm8k_*.jsonl, math500.jsonl, …")
    args = parser.parse_args()
    print("\n".join((__doc__ or "").splitlines()[2:8]), end="\n\n")
    logging.disable(logging.WARNING)  # math-verify warns that its timeouts are off

    results: dict[str, Any] = {"quick": args.quick}
    results |= measure_gsm8k(1_000 if args.quick else 10_000)
    results |= measure_math(2 if args.quick else 10)
    results |= measure_memory(10_000 if args.quick else 100_000)
    if args.data_dir is not None:
        results |= measure_agreement(args.data_dir)
    missed = missed_goals(results)
    print(f"\n{'goals met' if not missed else 'MISSED: ' + '; '.join(missed)}")
    print(json.dumps(results | {"missed": missed}))
    return 1 if args.check and missed else 0


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Name every goal the numbers do not meet."""
    missed = []
    if results["gsm8k_speedup"] < SPEEDUP_GOAL:
        missed.append(f"GSM8K speed-up {results['gsm8k_speedup']} < {SPEEDUP_GOAL}")
    if results["gsm8k_disagreements"]:
        missed.append(f"{results['gsm8k_disagreements']} GSM8K verdicts differ from math-verify")
    if results["math_speedup"] < MATH_GOAL:
        missed.append(f"MATH speed-up {results['math_speedup']} < {MATH_GOAL}")
    if results["math_wrong_verdicts"]:
        missed.append(f"{results['math_wrong_verdicts']} wrong verdicts on the MATH pairs")
    if results["memory_growth"] > GROWTH_GOAL:
        missed.append(f"memory grew {results['memory_growth']}x")
    if results.get("gold_not_itself") or results.get("perturbed_accepted"):
        missed.append("real golds: see the list above")
    return missed


def measure_gsm8k(count: int) -> dict[str, Any]:
    """Throughput on integers in the formats models write them in; half of the answers are wrong."""
    rng = random.Random(0)
    pairs: list[tuple[str, str]] = []
    for i in range(count):
        gold = rng.choice((rng.randint(-50, 200), rng.randint(0, 10_000), rng.randint(0, 10**6)))
        shown = gold if rng.random() < 0.5 else gold + rng.choice((-1, 1, 10))
        text = f"{shown:,}" if rng.random() < 0.1 else str(shown)
        pairs.append((GSM8K_FORMS[i % len(GSM8K_FORMS)].format(n=text), str(gold)))
    truth = [_number_in(answer) == int(gold) for answer, gold in pairs]
    ours, our_times = timed(lambda a, g: check(a, g) is Verdict.CORRECT, pairs)
    sample = pairs[: max(500, count // 10)]
    theirs, their_times = timed(math_verify_says, sample)
    assert ours == truth, "a plain integer was misjudged"
    differing = sum(a != b for a, b in zip(ours, theirs, strict=False))
    speedup = _table("GSM8K-style", our_times, their_times)
    for i, form in enumerate(GSM8K_FORMS):
        print(f"    {form[:24]!r:<30}{_median_us(our_times[i :: len(GSM8K_FORMS)]):>12.1f}")
    print(f"  verdicts that differ from math-verify's: {differing} of {len(sample)}")
    return {
        "gsm8k_median_us": _median_us(our_times),
        "gsm8k_math_verify_median_us": _median_us(their_times),
        "gsm8k_speedup": speedup,
        "gsm8k_disagreements": differing,
    }


def _table(title: str, ours: list[float], theirs: list[float]) -> float:
    """Print mean and median of both sides; return how many times smaller our median is.

    The median decides, because a busy machine stretches single calls on either side at random.
    """
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"{title:<34}{'thinkgate':>12}{'math-verify':>14}{'ratio':>9}")
    for name, of in (("mean", statistics.fmean), ("median", statistics.median)):
        us, them = 1e6 * of(ours), 1e6 * of(theirs)
        print(f"  {f'{name} µs per check':<32}{us:>12.1f}{them:>14.1f}{them / us:>9.1f}")
    return round(ratio, 1)


def _median_us(times: list[float]) -> float:
    return round(1e6 * statistics.median(times), 2)


def _number_in(answer: str) -> int:
    last = answer.replace("\\boxed{", " ").rstrip(".}").split()[-1]
    return int(last.replace(",", ""))


def measure_math(rounds: int) -> dict[str, Any]:
    """Time on expressions neither equal as text nor plain numbers; caches emptied every round."""
    pairs = [(f"So we get $\\boxed{{{other}}}$.", gold) for gold, other in MATH_PAIRS]
    for gold, other in MATH_PAIRS:
        changed = next(perturbations(other), other + "+1")
        pairs.append((f"So we get $\\boxed{{{changed}}}$.", gold))
    truth = [True] * len(MATH_PAIRS) + [False] * len(MATH_PAIRS)
    check("\\boxed{x+1}", "1+x")  # the pool is warm
    our_times: list[float] = []
    their_times: list[float] = []
    ours: list[bool] = []
    theirs: list[bool] = []
    for _ in range(rounds):
        answers._settle.cache_clear()  # pyright: ignore[reportPrivateUsage]
        ours, times = timed(lambda a, g: check(a, g) is Verdict.CORRECT, pairs)
        our_times += times
        theirs, times = timed(lambda a, g: math_verify_says(a, f"${g}$"), pairs)
        their_times += times
    speedup = _table("MATH-style, pool warm", our_times, their_times)
    wrong = [(p, t) for p, ok, t in zip(pairs, ours, truth, strict=True) if ok is not t]
    theirs_wrong = [(p, t) for p, ok, t in zip(pairs, theirs, truth, strict=True) if ok is not t]
    print(f"{f'  wrong verdicts of {len(pairs)}':<34}{len(wrong):>12}{len(theirs_wrong):>14}")
    for name, mistakes in (("thinkgate", wrong), ("math-verify", theirs_wrong)):
        for (answer, gold), right in mistakes:
            print(f"    {name}: {answer!r} against {gold!r} should be {right}")
    return {
        "math_median_us": _median_us(our_times),
        "math_math_verify_median_us": _median_us(their_times),
        "math_speedup": speedup,
        "math_wrong_verdicts": len(wrong),
        "math_verify_wrong_verdicts": len(theirs_wrong),
    }


def measure_memory(count: int) -> dict[str, Any]:
    """Resident memory of this process and its workers, early and late in a long run."""
    rng = random.Random(1)

    def run(checks: int) -> None:
        for i in range(checks):
            n = rng.randint(0, 10**9)
            if i % 10:
                check(f"The answer is {n}.", str(n))
            else:  # every tenth goes to the pool, and no two are the same
                check(f"\\boxed{{\\sqrt{{{n}}} + x}}", f"x+\\sqrt{{{n}}}")

    run(count // 10)
    early = resident_kib()
    run(count - count // 10)
    late = resident_kib()
    growth = late / early
    print(f"resident memory after {count // 10:>7,} checks: {early // 1024:>5} MiB")
    print(f"resident memory after {count:>7,} checks: {late // 1024:>5} MiB")
    return {"memory_early_kib": early, "memory_late_kib": late, "memory_growth": round(growth, 3)}


def resident_kib() -> int:
    """Resident KiB of this process and its children, from /proc."""
    me = str(os.getpid())
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
            )
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process ended between the listing and the reading
        if me in (fields["Pid"].strip(), fields["PPid"].strip()) and "VmRSS" in fields:
            total += int(fields["VmRSS"].split()[0])
    return total


def measure_agreement(folder: Path) -> dict[str, Any]:
    """Check every real gold against itself, and against itself with each digit changed."""
    golds = Counter(gold for path in sorted(folder.glob("*.jsonl")) for gold in read_golds(path))
    misjudged: list[tuple[str, ...]] = []
    accepted: list[tuple[str, ...]] = []
    trials = 0
    for gold in golds:
        verdicts = {check(text, gold) for text in (gold, f"Thus $\\boxed{{{gold}}}$.")}
        if verdicts != {Verdict.CORRECT}:
            misjudged.append((gold, *verdicts))
        for changed in perturbations(gold):
            trials += 1
            verdict = check(f"\\boxed{{{changed}}}", gold)
            if verdict is not Verdict.WRONG:
                accepted.append((changed, gold, verdict))
    print(f"real golds: {golds.total()} ({len(golds)} distinct)")
    print(f"  not equal to themselves: {len(misjudged)}")
    print(f"  with a digit changed: {trials}, of these not WRONG: {len(accepted)}")
    for item in (*misjudged, *accepted):
        print("   ", *item, sep="  ")
    results = {
        "golds": golds.total(),
        "golds_distinct": len(golds),
        "gold_not_itself": len(misjudged),
        "perturbed": trials,
        "perturbed_accepted": len(accepted),
    }
    return results | measure_unmarked(folder / "gsm8k_test.jsonl")


def measure_unmarked(path: Path) -> dict[str, Any]:
    """Human solutions without their `####` line: prose whose claim is not marked at all."""
    if not path.exists():
        return {}
    pairs: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        solution, _, gold = json.loads(line)["answer"].rpartition("####")
        pairs.append((re.sub(r"<<.*?>>", "", solution).strip(), gold.strip()))
    ours = Counter(str(check(solution, gold)) for solution, gold in pairs)
    theirs = sum(timed(math_verify_says, pairs)[0])
    print(f"GSM8K solutions without ####: {dict(ours)} of {len(pairs)}")
    print(f"  math-verify accepts {theirs}")
    return {"unmarked": dict(ours), "unmarked_math_verify_correct": theirs}


def read_golds(path: Path) -> Iterator[str]:
    """Yield the gold answers of one file: `answer`, its `####` line, or the solution's last box."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gold = str(row["answer"] if "answer" in row else row["solution"])
        if "####" in gold:
            gold = gold.rpartition("####")[2].strip()
        elif "answer" not in row:
            found = answers.extract(gold)
            gold = found.text if found else gold
        yield gold


def perturbations(gold: str) -> Iterator[str]:
    """Yield `gold` with one digit changed, for every digit; words get a letter more."""
    digits = [i for i, c in enumerate(gold) if c in "0123456789"]
    for i in digits:
        yield gold[:i] + ("7" if gold[i] != "7" else "4") + gold[i + 1 :]
    if not digits:
        yield gold[:-1] + "q}" if gold.endswith("}") else gold + "+q"


def math_verify_says(answer: str, gold: str) -> bool:
    """The verdict of math-verify 0.9 in its fastest mode."""
    import math_verify

    library: Any = math_verify
    parsed, reference = (library.parse(text, parsing_timeout=None) for text in (answer, gold))
    return library.verify(reference, parsed, timeout_seconds=None)


def timed(
    judge: Callable[[str, str], bool], pairs: list[tuple[str, str]]
) -> tuple[list[bool], list[float]]:
    """Judge every pair; return the verdicts and the seconds each took."""
    verdicts: list[bool] = []
    times: list[float] = []
    for answer, gold in pairs:
        start = time.perf_counter()
        verdicts.append(judge(answer, gold))
        times.append(time.perf_counter() - start)
    return verdicts, times


if __name__ == "__main__":
    sys.exit(main())
