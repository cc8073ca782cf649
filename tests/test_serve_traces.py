"""The trace store: what is kept, who sees it, how it ends, and that no request waits for it."""

import asyncio
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import CARD, HELLO, FakeEngine, ask, characters
from serving import Running, client, eventually, running

from thinkgate.errors import ConfigError
from thinkgate_serve.auth import ApiKey, Keyring, digest
from thinkgate_serve.engine import RequestRefused
from thinkgate_serve.service import Settings
from thinkgate_serve.traces import Filter, TraceStore

REPLY = "<think>why</think>42 ☂"


def keyring(*names: str) -> Keyring:
    keys = [
        ApiKey(name=name, sha256=digest(f"secret-of-{name}"), admin=name == "boss")
        for name in names
    ]
    return Keyring(keys)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer secret-of-{name}"}


def get(server: Running, path: str = "", key: str | None = None, **query: Any) -> httpx.Response:
    headers = bearer(key) if key else {}
    return httpx.get(f"{server.url}/traces{path}", params=query, headers=headers)


def settled(server: Running, count: int, **more: Any) -> list[dict[str, Any]]:
    """The traces once there are `count`: they are written a moment after the answer."""
    assert eventually(lambda: len(get(server, **more).json()["data"]) >= count)
    return get(server, **more).json()["data"]


def post(server: Running, key: str | None = None, **body: Any) -> httpx.Response:
    body = {"messages": HELLO} | body
    headers = bearer(key) if key else {}
    return httpx.post(f"{server.url}/chat/completions", json=body, headers=headers)


def test_a_trace_holds_request_thought_answer_usage_times_model_and_decision(
    tmp_path: Path,
) -> None:
    store = TraceStore(tmp_path / "traces.db")
    with running(FakeEngine(characters(REPLY)), Settings(traces=store)) as server:
        for stream in (False, True):
            post(server, temperature=0.5, stream=stream)
        client(server).completions.create(model="m", prompt="raw", max_tokens=99)
        listed = settled(server, 3)
        assert [trace["question"] for trace in listed] == ["raw", "hi", "hi"]
        assert {trace["status"] for trace in listed} == {"ok"}
        for summary in listed[1:]:
            trace = get(server, f"/{summary['id']}").json()
            assert trace["request"]["messages"] == HELLO
            assert trace["request"]["temperature"] == 0.5
            (choice,) = trace["choices"]
            assert (choice["reasoning"], choice["answer"]) == ("why", "42 ☂")
            assert choice["finish_reason"] == "stop"
            thought = len("<think>why</think>")
            assert trace["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought
            assert trace["usage"]["completion_tokens"] == len(REPLY)
            assert 0 < trace["timings"]["first_token_s"] <= trace["timings"]["total_s"]
            assert (trace["digest"], trace["gate"]) == (CARD.digest, "ungated")
        raw = get(server, f"/{listed[0]['id']}").json()
        assert raw["choices"][0]["answer"] == REPLY
    with sqlite3.connect(store.file) as database:  # kept when the server has ended
        assert database.execute("SELECT count(*) FROM traces").fetchone() == (3,)


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    file = tmp_path / "traces.db"
    TraceStore(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_votes_are_kept_with_all_samples(tmp_path: Path) -> None:
    engine = FakeEngine(characters("<think>why</think>42"))
    with running(engine, Settings(traces=TraceStore(tmp_path / "t.db"))) as server:
        reply = post(server, consensus=3, temperature=1.0).json()
        (summary,) = settled(server, 1)
        trace = get(server, f"/{summary['id']}").json()
        assert trace["status"] == "ok"
        assert trace["consensus"] == reply["consensus"]
        assert len(trace["choices"]) == 3


def test_how_a_request_ended(tmp_path: Path) -> None:
    engine = FakeEngine(characters("<think>on"))
    with running(engine, Settings(traces=TraceStore(tmp_path / "t.db"))) as server:
        post(server)
        assert settled(server, 1)[0]["status"] == "truncated"
        engine.hang = True
        with client(server).chat.completions.create(
            model="m",
            messages=HELLO,  # type: ignore[arg-type]
            stream=True,
        ) as stream:
            thought = ""
            while thought != "on":
                thought += getattr(next(stream).choices[0].delta, "reasoning", None) or ""
        aborted = settled(server, 2)[0]
        assert aborted["status"] == "aborted"
        assert get(server, f"/{aborted['id']}").json()["choices"][0]["reasoning"] == "on"
        engine.failure = RequestRefused("no <b>room</b>")
        post(server)
        failed = settled(server, 3)[0]
        assert (failed["status"], failed["http_status"]) == ("error", 400)
        assert failed["error"] == "no <b>room</b>"
        assert [t["status"] for t in settled(server, 1, status="aborted")] == ["aborted"]


def test_traces_are_found_paged_and_deleted(tmp_path: Path) -> None:
    with running(
        FakeEngine(characters('<think>50% "done"</think>it_is')),
        Settings(traces=TraceStore(tmp_path / "t.db")),
    ) as server:
        for number in range(5):
            post(server, messages=[{"role": "user", "content": f"question {number}"}])
        settled(server, 5)
        first = get(server, limit=2).json()
        second = get(server, limit=2, after=first["last_id"]).json()
        last = get(server, limit=2, after=second["last_id"]).json()
        pages = [[t["question"][-1] for t in page["data"]] for page in (first, second, last)]
        assert pages == [["4", "3"], ["2", "1"], ["0"]]
        assert [page["has_more"] for page in (first, second, last)] == [True, True, False]
        found = {
            q: len(get(server, q=q).json()["data"]) for q in ('50% "D', "5_%", "it_is", "ion 3")
        }
        assert found == {'50% "D': 5, "5_%": 0, "it_is": 5, "ion 3": 1}
        gone = first["data"][0]["id"]
        assert httpx.delete(f"{server.url}/traces/{gone}").json()["deleted"] is True
        assert get(server, f"/{gone}").status_code == 404
        assert httpx.delete(f"{server.url}/traces/{gone}").status_code == 404
        assert len(get(server).json()["data"]) == 4
        assert get(server, limit=0).status_code == 400


def test_a_key_sees_its_own_traces_and_an_admin_all(tmp_path: Path) -> None:
    settings = Settings(traces=TraceStore(tmp_path / "t.db"), keyring=keyring("ann", "bob", "boss"))
    with running(FakeEngine(characters(REPLY)), settings) as server:
        for key in ("ann", "bob"):
            post(server, key)
        both = settled(server, 2, key="boss")
        assert {trace["key"] for trace in both} == {"ann", "bob"}
        (anns,) = get(server, key="ann").json()["data"]
        assert anns["key"] == "ann"
        assert get(server, f"/{anns['id']}", key="bob").status_code == 404
        headers = bearer("bob")
        url = f"{server.url}/traces/{anns['id']}"
        assert httpx.delete(url, headers=headers).status_code == 404
        assert get(server, key="bob", q="hi").json()["data"][0]["key"] == "bob"
        assert get(server).status_code == 401
        assert httpx.delete(url, headers=bearer("ann")).status_code == 200


def test_without_a_store_nothing_is_kept_and_the_answer_says_how() -> None:
    response = ask(FakeEngine([]), "/v1/traces", method="GET")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "traces_off"
    assert "--traces" in response.json()["error"]["message"]


def test_a_store_that_cannot_be_written_costs_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TraceStore(tmp_path / "t.db")
    with running(FakeEngine(characters(REPLY)), Settings(traces=store)) as server:
        with sqlite3.connect(store.file) as database:
            database.execute("DROP TABLE traces")
        assert post(server).json()["choices"][0]["message"]["content"] == "42 ☂"
        metrics = server.url.replace("/v1", "/metrics")
        lost = "thinkgate_traces_lost_total 1.0"
        assert eventually(lambda: lost in httpx.get(metrics).text)
        assert post(server).status_code == 200
    assert "traces not kept: 1 (no such table: traces)" in capsys.readouterr().err


def test_a_full_queue_drops_traces_and_delays_nothing(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "t.db")
    lost: list[int] = []
    store.on_failure = lost.append
    for _ in range(1001):
        store.record({})
    assert lost == [1]


def test_old_traces_and_too_many_go(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "t.db", keep_days=1, max_rows=3)
    with sqlite3.connect(store.file) as database:
        for number in range(6):
            created = time.time() - (86_500 if number == 5 else 0)
            record = f'{{"id":"t{number}"}}'
            row = (f"t{number}", created, "r", "m", "ok", "q", "{}", record)
            database.execute(
                "INSERT INTO traces (id, created, request_id, model, status, question, texts, "
                "record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )

    async def kept() -> list[str]:
        async with store.opened():
            await store.sweep()
            return [trace["id"] for trace in (await store.page(Filter(), 10)).traces]

    assert asyncio.run(kept()) == ["t4", "t3", "t2"]


@pytest.mark.parametrize("content", [None, b"not a database at all, but long enough to be read"])
def test_a_file_that_cannot_be_is_refused_before_a_model_is_loaded(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / ("t.db" if content else "no/folder/t.db")
    if content:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--traces .*t\.db: .*; name a file"):
        TraceStore(file)
