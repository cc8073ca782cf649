"""The report in a real browser: text from strangers is inert, and what can be clicked works."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from test_evals_report import RIGHT, WRONG, decision, model

from thinkgate.answers import Verdict
from thinkgate_evals.report import write_report
from thinkgate_evals.results import Result, Results

HOSTILE = (
    "\u202e\u2066\"><img src=x onerror='window.pwned=1'></pre></title></style></script>"
    "<script>window.pwned=1</script><svg onload='window.pwned=1'><style>*{display:none}</style>"
    "<a href='javascript:window.pwned=1'>x</a> \x00\x07\x1b[31m {{ 7*7 }} \u200f\u0645\u0631 "
)
HUGE = HOSTILE + "W" * 20_000
VERDICTS = [RIGHT, WRONG, Verdict.NO_ANSWER, Verdict.ERROR, WRONG, Verdict.BAD_GOLD]


@contextmanager
def opened(browser: Browser, path: Path, **context: Any) -> Iterator[Page]:
    """The page; at the end nothing must have been logged, nor fetched."""
    window = browser.new_context(**context)
    window.set_default_timeout(10_000)
    page = window.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog {dialog.message}"))
    page.on("request", lambda r: None if r.url == path.as_uri() else trouble.append(r.url))
    page.goto(path.as_uri())
    yield page
    window.close()
    assert trouble == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on which everything a stranger may word is hostile, and much of it huge."""
    candidate = model(HOSTILE, VERDICTS * 8, HUGE)
    base = model(f"base {HOSTILE}", [WRONG, WRONG, *VERDICTS[2:]] * 8, HUGE)
    suites = [Result(HOSTILE, candidate, base), Result(f"{HOSTILE} again", candidate)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    facts = {HOSTILE: HUGE}
    write_report(path, Results(suites=suites, decision=decision(why=HOSTILE), facts=facts))
    return path


@pytest.mark.parametrize("width", [1200, 360])
def test_hostile_text_is_inert_and_does_not_break_the_page(
    browser: Browser, hostile: Path, width: int
) -> None:
    with opened(browser, hostile, viewport={"width": width, "height": 900}) as page:
        assert page.evaluate("window.pwned") is None
        assert (
            page.locator("script").count() == 1 and page.locator("img, a[href^=java]").count() == 0
        )
        expect(page.get_by_text("window.pwned=1").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            page.locator("pre").evaluate_all("all => Math.max(...all.map(e => e.clientHeight))")
            < 500
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_filters_and_squares_lead_to_traces(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    base = model("base", [WRONG, RIGHT, RIGHT, WRONG] * 12)
    candidate = model("cand", [RIGHT, WRONG, RIGHT, WRONG] * 12)
    path = tmp_path / "report.html"
    write_report(path, Results(suites=[Result("sums", candidate, base)], decision=decision()))
    with opened(browser, path, color_scheme=scheme) as page:
        page.get_by_role("button", name="correct → wrong 12").click()
        shown = page.locator("article:visible")
        assert shown.count() == 12
        expect(shown.first).to_contain_text("Problem 1")
        page.locator('rect[data-problem="0"]').click()
        expect(page.locator('article[data-id="0"]')).to_be_in_viewport()
        violations = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
