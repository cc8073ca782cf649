"""`plots.html`: one file, nothing fetched, every metric explained, and text from strangers stays
text."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from thinkgate.checkpoint import HealthFinding, HealthRecord, HealthVerdict
from thinkgate_train.health.metric_guide import GROUPS, guide
from thinkgate_train.health.plots import write_plots

GOLDEN = Path(__file__).parent / "golden"
EVIL = '"><img src=x onerror=alert(1)></pre></script><script>alert(2)</script><!-- {{ 7*7 }} \x00'


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        found = [attributes for name, attributes in self.found if name == tag]
        return [a for a in found if all(a.get(k.strip("_")) == v for k, v in wanted.items())]


def golden() -> list[dict[str, Any]]:
    lines = (GOLDEN / "metrics_grpo.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rollout(step: int, words: str = "fine", reward: float | None = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": words,
        "completion": words,
        "reasoning": words,
        "answer": words,
        "status": "closed",
        "rewards": {words: reward},
        "reward": reward,
        "gold": words,
    }


def findings(*steps: int, why: str = "why") -> HealthRecord:
    found = tuple(
        HealthFinding(symptom="reward_collapse", step=s, stop=i > 0, why=why)
        for i, s in enumerate(steps)
    )
    return HealthRecord(verdict=HealthVerdict.WARNED, findings=found)


def written(path: Path, **changes: Any) -> str:
    given: dict[str, Any] = {
        "title": "a run",
        "metrics": golden(),
        "completions": [rollout(1)],
        "health": HealthRecord(verdict=HealthVerdict.HEALTHY),
        "method": "grpo",
    }
    write_plots(path / "plots.html", **(given | changes))
    return (path / "plots.html").read_text(encoding="utf-8")


def test_every_metric_of_a_real_run_has_its_curve_or_its_value(tmp_path: Path) -> None:
    text = written(tmp_path)
    names = {name for row in golden() for name in row if guide(name)}
    assert len(names) > 20
    for name in names:
        assert f"<code>{name}</code>" in text or f"({name}): " in text, name


def test_beside_each_curve_is_what_it_means_and_what_to_expect(tmp_path: Path) -> None:
    text = written(tmp_path, metrics=[{"step": s, "kl": s / 9, "loss": s} for s in range(9)])
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == 2
    assert all("<strong>Expected:</strong>" in figure for figure in figures)
    assert "stay bounded" in text
    assert "In RL it may increase, and that is normal" in text  # the tutorial's note


@pytest.mark.parametrize(
    ("name", "group", "title"),
    [
        ("reward", "Reward", "Reward"),
        ("rewards/length/mean", "Reward", "Reward: length"),
        ("rewards/second_opinion/mean", "Held-out", "Accuracy by a second verifier"),
        ("eval_rewards/correctness/mean", "Held-out", "Held-out: Share of right answers"),
        ("eval_loss", "Held-out", "Held-out: Loss"),
        ("completions/max_terminated_length", "Lengths", "Length: max terminated"),
        ("sampling/importance_sampling_ratio/max", "Engine", None),
        ("somebody/elses", "Other", "somebody/elses"),
    ],
)
def test_metrics_are_grouped(name: str, group: str, title: str | None) -> None:
    known = guide(name)
    assert known and known.group == group and group in GROUPS
    assert title in (None, known.title)


@pytest.mark.parametrize(
    "name", ["step", "epoch", "train_runtime", "total_flos", "eval_runtime", "rewards/format/mean"]
)
def test_what_is_no_curve_is_left_out(name: str) -> None:
    assert guide(name) is None


def test_findings_come_first_and_are_marked_on_the_curves(tmp_path: Path) -> None:
    text = written(tmp_path, health=findings(5, 20, 20, why="it fell <far>"))
    page = Page(text)
    assert text.index("What the health watch saw") < text.index('id="reward"')
    assert "It fell <far>." in page.text and "Step 20: reward collapse." in page.text
    assert len(page.all("li", class_="bad")) == 2
    charts = len(page.all("svg", class_="chart"))
    assert (
        len(page.all("path", class_="mark")) == len(page.all("path", class_="mark bad")) == charts
    )
    assert text.count(">2,3</text>") == charts  # two findings at one step share their mark


@pytest.mark.parametrize("verdict", HealthVerdict)
def test_the_verdict_is_said(tmp_path: Path, verdict: HealthVerdict) -> None:
    text = written(tmp_path, health=HealthRecord(verdict=verdict))
    assert f'<header class="{verdict.value}">' in text
    assert "Health was not watched" not in text
    assert "Health was not watched" in written(tmp_path, health=None)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    metrics = [{"step": s, EVIL: s, f"rewards/{EVIL}/mean": s} for s in range(3)]
    text = written(
        tmp_path,
        title=EVIL,
        metrics=metrics,
        completions=[rollout(1, EVIL)],
        health=findings(1, why=EVIL),
        method=EVIL,
    )
    page = Page(text)
    assert page.all("img") == [] and len(page.all("script")) == 1
    assert not [a for _, attributes in page.found for a in attributes if a.startswith("on")]
    assert "alert(2)" in page.text and "{{ 7*7 }}" in page.text


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path: Path) -> None:
    text = written(tmp_path)
    page = Page(text)
    assert not [a for _, attributes in page.found for a in attributes if a in ("src", "srcset")]
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy


def test_rollouts_are_there_without_script_and_can_be_filtered_with_it(tmp_path: Path) -> None:
    rows = [rollout(step, f"p{i}", float(i)) for step in (1, 7) for i in range(3)]
    page = Page(written(tmp_path, completions=[*rows, rollout(7, "none", None)]))
    assert [a["data-step"] for a in page.all("details", class_="step")] == ["1", "7"]
    assert [a["data-band"] for a in page.all("article")] == ["0", "1", "2"] * 2 + ["-1"]
    assert len(page.all("select")) == 2
    assert not any("hidden" in a for a in page.all("article"))
    assert "hidden" in page.all("div", class_="filters")[0]  # useless without the script
    assert "reward 2" in page.text and "not measured" in page.text


def test_many_rewards_are_cut_into_ranges(tmp_path: Path) -> None:
    rows = [rollout(1, str(i), i / 10) for i in range(100)]
    page = Page(written(tmp_path, completions=rows))
    bands = [a["data-band"] for a in page.all("article")]
    assert set(bands) == {"0", "1", "2", "3"} and "reward 0 to 2.4" in page.text


def test_a_truncated_rollout_has_no_answer(tmp_path: Path) -> None:
    row = rollout(1) | {"answer": None, "status": "truncated"}
    assert "Cut off while thinking" in written(tmp_path, completions=[row])


def test_a_long_run_makes_no_large_page(tmp_path: Path) -> None:
    metrics = [{"step": s, "reward": math.sin(s), "kl": s / 1e5} for s in range(50_000)]
    long = rollout(0, "long " * 5000) | {"rewards": {}}
    rows = [long | {"step": step} for step in range(1000) for _ in range(8)]
    text = written(tmp_path, metrics=metrics, completions=rows)
    page = Page(text)
    assert all(len(json.loads(a["data-points"] or "")) <= 400 for a in page.all("svg"))
    steps = [int(a["data-step"] or 0) for a in page.all("details", class_="step")]
    assert steps[0] == 0 and steps[-1] == 999 and len(steps) == 25
    assert f"{8000 - 200:,} more rollouts are in completions.jsonl" in page.text
    assert len(text) < 4_000_000


@pytest.mark.parametrize("metrics", [[], [{"step": 1, "loss": 2.0}], [{"loss": None}, {"a": "b"}]])
@pytest.mark.parametrize("completions", [[], [rollout(3, "")]])
def test_little_is_enough(
    tmp_path: Path, metrics: list[dict[str, Any]], completions: list[dict[str, Any]]
) -> None:
    page = Page(written(tmp_path, metrics=metrics, completions=completions))
    assert len(page.all("h1")) == 1 and len(page.all("article")) == len(completions)


def test_numbers_that_are_none_leave_gaps(tmp_path: Path) -> None:
    metrics = [{"step": s, "reward": math.nan if s == 2 else s} for s in range(1, 5)]
    page = Page(written(tmp_path, metrics=metrics))
    points = json.loads(page.all("svg")[0]["data-points"] or "")
    assert [text for *_, text in points] == ["step 1: 1", "step 3: 3", "step 4: 4"]
