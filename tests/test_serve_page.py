"""The web page in a real browser, on the scripted engine and on vLLM."""

import asyncio
import hashlib
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import LESSONS
from fake_engine import FakeEngine, characters
from playwright.sync_api import Browser, Page, expect
from serving import Running, eventually, running

from thinkgate.checkpoint import Decision, GateVerdict
from thinkgate_clients.local import LocalServer
from thinkgate_serve.auth import ApiKey, Keyring, digest
from thinkgate_serve.card import Card
from thinkgate_serve.engine import Delta, RequestRefused, Sampling
from thinkgate_serve.service import Settings
from thinkgate_serve.traces import TraceStore

UI = Path(__file__).parent.parent / "serve" / "ui"
REPLY = "<think>7+8=15\n15-6=9</think>It is **9**."
HOSTILE = (
    "<script>window.pwned=1</script>\n\n<img src=x onerror='window.pwned=1'>\n\n"
    "[link](javascript:window.pwned=1) ![picture](https://elsewhere.example/p.png) "
    "<a href='javascript:window.pwned=1'>raw</a> <iframe src='https://elsewhere.example'></iframe> "
    "$\\href{javascript:window.pwned=1}{x}$ "
    "<svg onload='window.pwned=1'><style>*{display:none}</style></svg>"
)


class Paced(FakeEngine):
    """Stops before the closing tag until `go` is set."""

    def __init__(self, text: str) -> None:
        super().__init__(characters(text))
        self.go = threading.Event()

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        said = ""
        async for delta in super().generate(prompt_ids, sampling, request_id):
            said += delta.text
            while said.endswith("</") and not self.go.is_set():
                await asyncio.sleep(0.01)
            yield delta


@contextmanager
def opened(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The page at `url`; at the end nothing must have been logged, nor fetched from elsewhere."""
    base = url.removesuffix("v1")
    window = browser.new_context(base_url=base, **context)
    window.set_default_timeout(10_000)
    page = window.new_page()
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog {dialog.message}"))
    page.on("request", lambda r: None if r.url.startswith(base) else trouble.append(r.url))
    page.goto(base)
    yield page
    window.close()
    # The browser itself logs failed requests; the page shows what they mean.
    assert [text for text in trouble if "Failed to load resource" not in text] == []


@pytest.fixture
def server() -> Iterator[Running]:
    with running(FakeEngine(characters(REPLY))) as server:
        yield server


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Question", exact=True).fill(text)
    page.keyboard.press("Enter")


def asked(page: Page, text: str) -> None:
    """Ask and wait for the end of the answer."""
    ask(page, text)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_the_thought_is_open_while_it_lasts_and_folds_when_the_answer_starts(
    browser: Browser,
) -> None:
    engine = Paced(REPLY)
    with running(engine) as server, opened(browser, server.url) as page:
        ask(page, "8+7-6")
        thought = page.locator(".thought")
        expect(thought.locator("pre")).to_have_text("7+8=15\n15-6=9")
        expect(thought).to_have_attribute("open", "")
        expect(thought.locator(".label")).to_have_text(re.compile(r"^Thinking \d+\.\d s$"))
        engine.go.set()
        expect(page.locator(".prose")).to_have_text("It is 9.")
        expect(page.locator(".prose strong")).to_have_text("9")
        expect(thought).not_to_have_attribute("open", "")
        tokens = len("<think>7+8=15\n15-6=9</think>")
        label = re.compile(rf"^Thought for \d+\.\d s · {tokens} tokens$")
        expect(thought.locator(".label")).to_have_text(label)
        expect(page.locator(".meta")).to_contain_text(f"{len(REPLY)} tokens")


@pytest.mark.parametrize("key", [None, "Escape"])
def test_stop_ends_the_generation_on_the_server(browser: Browser, key: str | None) -> None:
    engine = FakeEngine(characters("<think>on and on"))
    engine.hang = True
    with running(engine) as server, opened(browser, server.url) as page:
        ask(page, "hi")
        expect(page.locator(".thought pre")).to_have_text("on and on")
        assert engine.running == 1
        if key:
            page.keyboard.press(key)
        else:
            page.get_by_role("button", name="Stop").click()
        assert eventually(lambda: engine.running == 0)
        expect(page.locator(".note")).to_have_text("Stopped.")
        metrics = httpx.get(server.url.replace("/v1", "/metrics")).text
        assert "thinkgate_running_requests 0.0" in metrics


def is_inert(page: Page) -> bool:
    """No script ran, and there is no element or address that could run one."""
    return page.evaluate(
        """() => window.pwned === undefined
            && !document.querySelector("#page :is(script, iframe, style, li img)")
            && ![...document.querySelectorAll("#page *")].some((element) =>
                [...element.attributes].some(({ name, value }) =>
                    name.startsWith("on") || /javascript:/i.test(value)))"""
    )


def test_hostile_text_of_a_model_is_inert(browser: Browser) -> None:
    engine = FakeEngine(characters(f"<think>{HOSTILE}</think>{HOSTILE}"))
    with running(engine) as server, opened(browser, server.url) as page:
        asked(page, HOSTILE)
        page.locator(".thought summary").click()
        expect(page.locator(".thought pre")).to_contain_text("<script>window.pwned=1</script>")
        expect(page.locator(".prose")).to_contain_text("<img src=x onerror='window.pwned=1'>")
        picture = page.locator(".prose a", has_text="picture")
        expect(picture).to_have_attribute("href", "https://elsewhere.example/p.png")
        expect(picture).to_have_attribute("rel", "noopener noreferrer nofollow")
        assert page.locator(".prose a", has_text="link").get_attribute("href") is None
        assert is_inert(page)
        page.reload()
        expect(page.locator(".prose")).to_contain_text("<img src=x onerror='window.pwned=1'>")
        assert is_inert(page)


def test_hostile_text_of_an_error_is_inert(browser: Browser) -> None:
    engine = FakeEngine(characters(REPLY))
    engine.failure = RequestRefused(HOSTILE)
    with running(engine) as server, opened(browser, server.url) as page:
        ask(page, "hi")
        expect(page.get_by_role("alert")).to_contain_text("<script>window.pwned=1</script>")
        assert is_inert(page)


def test_the_browser_refuses_what_would_turn_text_into_markup(
    browser: Browser, server: Running
) -> None:
    with browser.new_page() as page:
        page.goto(server.url.removesuffix("v1"))
        for attack in (
            "document.body.innerHTML = '<b>x</b>'",
            "document.createElement('img').setAttribute('onerror', 'window.pwned = 1')",
            "document.createElement('script').text = 'window.pwned = 1'",
        ):
            refused = f"() => {{ try {{ {attack} }} catch (error) {{ return error.name }} }}"
            assert page.evaluate(refused) == "TypeError", attack
    policy = httpx.get(server.url.replace("/v1", "/")).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy


def test_history_outlives_a_reload_and_goes_when_it_is_deleted(
    browser: Browser, server: Running
) -> None:
    with opened(browser, server.url) as page:
        asked(page, "first question")
        page.get_by_role("button", name="New chat").click()
        asked(page, "second question")
        page.reload()
        expect(page.locator(".user .text")).to_have_text("second question")
        expect(page.locator(".prose")).to_have_text("It is 9.")
        page.get_by_role("link", name="first question").click()
        expect(page.locator(".user .text")).to_have_text("first question")
        asked(page, "and then")
        expect(page.locator(".prose")).to_have_count(2)
        prompt = server.engine.requests[-1][0]
        assert prompt == "[user]first question[assistant]It is **9**.[user]and then[assistant]"
        page.get_by_role("button", name="Delete first question").click()
        expect(page.locator("#conversations a")).to_have_text(["second question"])
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#conversations a")).to_have_count(2)
        page.get_by_role("button", name="Delete second question").click()
        expect(page.locator("#conversations a")).to_have_count(1)
        page.reload()
        expect(page.locator("#conversations a")).to_have_text(["first question"])


def test_everything_can_be_done_from_the_keyboard(browser: Browser, server: Running) -> None:
    def tab_to(page: Page, name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "() => document.activeElement.ariaLabel || document.activeElement.innerText"
            )
            if focused == name:
                return
        raise AssertionError(f"no way to '{name}'")

    with opened(browser, server.url) as page:
        expect(page.get_by_role("textbox", name="Question", exact=True)).to_be_focused()
        page.keyboard.type("one")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".prose")).to_have_text("It is 9.")
        tab_to(page, "New chat")
        tab_to(page, "Edit and ask again")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Your question")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type("two")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".user .text")).to_have_text("two")
        expect(page.locator(".prose")).to_have_text("It is 9.")
        tab_to(page, "Answer again")
        page.keyboard.press("Enter")
        assert eventually(lambda: len(server.engine.requests) == 3)
        expect(page.locator(".prose")).to_have_count(1)
        assert [prompt for prompt, _ in server.engine.requests[1:]] == ["[user]two[assistant]"] * 2
        tab_to(page, "Settings")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Settings")).to_be_focused()


def test_settings_reach_the_server_and_outlive_a_reload(browser: Browser, server: Running) -> None:
    with opened(browser, server.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("be brief")
        page.get_by_label("Temperature").fill("0.5")
        page.get_by_label("Max tokens").fill("300")
        page.get_by_label("Thinking budget, in tokens").fill("40")
        page.get_by_role("button", name="Save").click()
        page.reload()
        expect(page.get_by_role("combobox", name="Thinking")).to_have_value("budget")
        asked(page, "hi")
        prompt, sampling = server.engine.requests[-1]
        assert prompt == "[system]be brief[user]hi[assistant]"
        assert (sampling.temperature, sampling.max_tokens) == (0.5, 300)
        page.get_by_role("combobox", name="Thinking").select_option("Low thinking")
        page.get_by_role("button", name="Answer again").click()
        assert eventually(lambda: len(server.engine.requests) == 2)


def test_a_server_with_keys_asks_for_one_and_the_browser_forgets_it(browser: Browser) -> None:
    keys = Keyring((ApiKey(name="a", sha256=digest("secret-key-of-a")),))
    engine = FakeEngine(characters(REPLY))
    with (
        running(engine, Settings(keyring=keys)) as server,
        opened(browser, server.url) as page,
    ):
        ask(page, "hi")
        expect(page.get_by_role("alert")).to_contain_text("This server asks for an API key.")
        page.get_by_role("alert").get_by_role("button", name="Enter an API key").click()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("secret-key-of-a")
        page.keyboard.press("Enter")
        expect(page.locator("#badge")).to_contain_text("ungated")
        page.get_by_role("button", name="Answer again").click()
        expect(page.locator(".prose")).to_have_text("It is 9.")
        kept = page.evaluate("() => JSON.stringify(localStorage)")
        assert "secret" not in kept
        assert "secret-key-of-a" in page.evaluate("() => JSON.stringify(sessionStorage)")


def test_an_ungated_model_says_so_large(browser: Browser, server: Running) -> None:
    with opened(browser, server.url) as page:
        expect(page.get_by_role("note")).to_contain_text("passed no quality gate")
        page.get_by_role("button", name="m · ungated").click()
        expect(page.get_by_role("dialog")).to_contain_text("ab" * 32)


@pytest.fixture
def vouched(tmp_path: Path) -> Card:
    """A model with a passing decision and the report behind it."""
    (tmp_path / "thinkgate").mkdir()
    (tmp_path / "thinkgate" / "report.html").write_text("<title>evidence</title>")
    decision = Decision.model_construct(
        id="d-1", verdict=GateVerdict.PASS, policy="mine", created="2026-01-02T03:04:05+00:00"
    )
    return Card(name="mine", source=str(tmp_path), digest="ab" * 32, decision=decision)


def test_the_badge_leads_to_the_report_which_reaches_nothing_of_the_page(
    browser: Browser, vouched: Card
) -> None:
    with (
        running(FakeEngine(characters(REPLY)), card=vouched) as server,
        opened(browser, server.url) as page,
    ):
        page.get_by_role("button", name="mine · gate PASS").click()
        with page.expect_popup() as popup:
            page.get_by_role("dialog").get_by_role("link", name="Open").click()
        expect(popup.value).to_have_title("evidence")
        reach = "() => { try { return localStorage.length } catch (error) { return error.name } }"
        assert popup.value.evaluate(reach) == "SecurityError"


def test_where_keys_are_asked_for_the_report_is_saved(browser: Browser, vouched: Card) -> None:
    keys = Keyring((ApiKey(name="a", sha256=digest("secret-key-of-a")),))
    engine = FakeEngine(characters(REPLY))
    with (
        running(engine, Settings(keyring=keys), card=vouched) as server,
        opened(browser, server.url) as page,
    ):
        page.get_by_role("status").get_by_role("button", name="Enter an API key").click()
        page.keyboard.type("secret-key-of-a")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="mine · gate PASS").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save").click()
        assert download.value.suggested_filename == "report-d-1.html"
        assert "evidence" in Path(download.value.path()).read_text()


def test_traces_are_browsed_found_and_deleted_and_their_text_is_inert(
    browser: Browser, tmp_path: Path
) -> None:
    engine = FakeEngine(characters(f"<think>{HOSTILE}</think>{HOSTILE}"))
    settings = Settings(traces=TraceStore(tmp_path / "traces.db"))
    with running(engine, settings) as server, opened(browser, server.url) as page:
        for question in ("first", HOSTILE):
            asked(page, question)
        page.get_by_role("link", name="Traces").click()
        traces = page.get_by_role("main").locator(".list a")
        expect(traces).to_have_count(2)
        page.get_by_label("Search traces").press_sequentially("first")
        expect(traces).to_have_count(2)  # the second holds the first as its history
        traces.last.click()
        expect(page.locator(".sheet .said")).to_have_text(["first"])
        page.locator(".sheet .thought summary").click()
        expect(page.locator(".sheet pre")).to_contain_text("<script>window.pwned=1</script>")
        assert is_inert(page)
        check_accessibility(page)
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(traces).to_have_count(1)
        assert is_inert(page)
        check_accessibility(page)
        page.go_back()
        expect(page.get_by_role("main")).to_contain_text("there is no trace")


def test_votes_are_shown(browser: Browser) -> None:
    answers = iter(["9", "8", "9"])
    engine = FakeEngine(lambda *_: characters(f"<think>why</think>{next(answers)}"))
    with running(engine) as server, opened(browser, server.url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("1")
        page.get_by_role("button", name="Save").click()
        page.get_by_role("combobox", name="Consensus").select_option("Vote of 3")
        asked(page, "8+7-6")
        votes = page.get_by_role("region", name="Votes")
        expect(votes.get_by_role("heading")).to_have_text("2 of 3 agree (67 %)")
        expect(votes.locator("li")).to_have_text(["92 of 3", "81 of 3"])
        expect(page.locator(".prose")).to_have_text("9")
        check_accessibility(page)
        page.reload()
        expect(votes).to_be_visible()


def check_accessibility(page: Page) -> None:
    """axe-core finds nothing serious."""
    result = Axe().run(page)
    serious = [v for v in result.response["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"] for n in v["nodes"]]) for v in serious]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(browser: Browser, scheme: str, width: int) -> None:
    text = "<think>why</think># A\n\n| a | b |\n|---|---|\n| 1 | $x$ |\n\n```\ncode\n```\n\\[y\\]"
    size = {"width": width, "height": 800}
    with (
        running(FakeEngine(characters(text))) as server,
        opened(browser, server.url, color_scheme=scheme, viewport=size) as page,
    ):
        expect(page.locator("#badge")).to_be_visible()
        check_accessibility(page)
        asked(page, "hi")
        page.locator(".thought summary").click()
        check_accessibility(page)
        across = "() => document.documentElement.scrollWidth - innerWidth"
        assert page.evaluate(across) <= 0, "the page scrolls sideways"
        if width < 600:
            page.get_by_role("button", name="Conversations").click()
        page.get_by_role("button", name="Settings").click()
        check_accessibility(page)


def test_vendored_files_are_what_their_table_says() -> None:
    table = (UI / "vendor" / "README.md").read_text()
    sums = dict(re.findall(r"^\| `(\S+)` .* `([0-9a-f]{64})` \|$", table, re.MULTILINE))
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (UI / "vendor").glob("*.js")
    }
    assert sums == found


@pytest.mark.slow
def test_on_vllm_with_a_gated_model(browser: Browser, served: LocalServer) -> None:
    with opened(browser, served.base_url) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_role("button", name="Save").click()
        asked(page, "closed")
        thought, answer = LESSONS["closed"].removeprefix("<think>").split("</think>")
        expect(page.locator(".prose")).to_have_text(answer)
        page.locator(".thought summary").click()
        expect(page.locator(".thought pre")).to_have_text(thought)
        expect(page.locator("#ungated")).to_be_hidden()
        page.get_by_role("button", name="gate PASS").click()
        expect(page.get_by_role("dialog")).to_contain_text("d-test")
        page.keyboard.press("Escape")
        ask(page, "who knows")
        page.keyboard.press("Escape")

        metrics = served.base_url.replace("/v1", "/metrics")
        assert eventually(lambda: "\nthinkgate_running_requests 0.0\n" in httpx.get(metrics).text)
