"""Pushing to the Hub: the real Hub client against a small server that speaks its protocol."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint, record_decision
from huggingface_hub import ModelCard

from thinkgate.answers import Verdict
from thinkgate.checkpoint import DataFingerprint, GateVerdict, load_checkpoint
from thinkgate.cli import main
from thinkgate.format import SplitStatus
from thinkgate.hub import prepare
from thinkgate.provenance import verify
from thinkgate.provenance.keys import trusted_keys
from thinkgate_evals.measure import records_folder
from thinkgate_evals.records import Record, Recording
from thinkgate_evals.suites import load_suite

KEYS = frozenset({"aa", "bb"})
DATA = (DataFingerprint(name="tests-data", count=2, sha256="0" * 64),)


@contextmanager
def hub(
    refuse: bool = False, there: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A Hub on a loopback port: its address, the files pushed to it, and what was asked of it."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            asked.append(self.path)
            if refuse:
                return self.say(403, {"error": "no write access to this repository"})
            if self.path == "/api/repos/create":
                assert b"private" in body
                return self.say(
                    200, {"url": f"http://{self.headers['host']}/me/mine", "name": "me/mine"}
                )
            if "/preupload/" in self.path:
                wanted = [f["path"] for f in json.loads(body)["files"]]
                answer = [
                    {"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in wanted
                ]
                return self.say(200, {"files": answer})
            if "/validate-yaml" in self.path:
                return self.say(200, {"errors": [], "warnings": []})
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "deletedFile":
                    asked.append(f"deleted {item['value']['path']}")
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            return self.say(
                200,
                {
                    "commitUrl": f"http://{self.headers['host']}/me/mine/commit/1",
                    "commitOid": "1",
                    "success": True,
                },
            )

        def do_GET(self) -> None:
            asked.append(self.path)
            self.say(
                200,
                {"id": "me/mine", "sha": "0" * 40, "siblings": [{"rfilename": f} for f in there]},
            )

        def say(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", files, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def push(folder: Path, address: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub client reads its address when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "COLUMNS": "300"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-m", "thinkgate", "push", str(folder), "me/mine", *options],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint the real gate has passed, on records of its own, and signed."""
    folder = make_checkpoint(tmp_path_factory.mktemp("hub") / "model", data=DATA, seen=KEYS)
    recorded(folder)
    assert main(["gate", str(folder), "--policy", "smoke", "--limit", "60"]) == 0
    return folder


def recorded(folder: Path) -> None:
    """Sixty right answers to the suite of the policy, as if asked."""
    checkpoint, loaded = load_checkpoint(folder), load_suite("arithmetic")
    path = records_folder(folder) / "arithmetic.jsonl"
    with Recording(path, loaded, checkpoint.digest) as recording:
        for problem in loaded.planned(60):
            recording.append(
                Record(
                    problem_id=problem.id,
                    prompt=problem.prompt,
                    gold=str(problem.gold),
                    verdict=Verdict.CORRECT,
                    reasoning=f"{problem.prompt}={problem.gold}",
                    answer=str(problem.gold),
                    status=SplitStatus.CLOSED,
                    reasoning_tokens=9,
                    answer_tokens=2,
                    latency_s=0.1,
                )
            )


def test_a_checkpoint_arrives_whole_with_its_card_in_one_commit(passed: Path) -> None:
    with hub(there=["old-shard.safetensors", ".gitattributes"]) as (address, files, asked):
        done = push(passed, address)
    assert done.returncode == 0, done.stderr
    assert f"pushed   {address}/me/mine/commit/1" in done.stdout
    card = files.pop("README.md").decode()
    here = {str(p.relative_to(passed)): p.read_bytes() for p in passed.rglob("*") if p.is_file()}
    assert files == here and "thinkgate/signature.json" in files
    assert sum("/commit/" in path for path in asked) == 1
    assert "deleted old-shard.safetensors" in asked and "deleted .gitattributes" not in asked
    verify(passed, trusted_keys()).require()  # the card is not in the folder
    assert "**Gated: PASS** by policy `smoke`" in card


def test_the_card_is_valid_and_says_what_is_known(passed: Path) -> None:
    with hub() as (address, files, asked):
        done = push(passed, address, "--dry-run")
    assert done.returncode == 0 and not files and not asked
    assert "nothing was pushed" in done.stdout and "config.json: 2 bytes" in done.stdout
    text = done.stdout.partition("README.md: the card above")[0]
    card = ModelCard(text)
    data = card.data.to_dict()
    assert {"thinkgate", "gated"} <= set(data["tags"]) and "base_model" not in data
    [result] = card.data.eval_results or []
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "arithmetic", "accuracy", 100.0
    )  # fmt: skip
    assert "95 % interval 94.0 to 100.0, n = 60" in str(result.metric_name)
    for words in (
        "## ✅ PASS: model",
        r"| ✅ pass | format\_rate | arithmetic | 100.0% (94.0% to 100.0%) |",
        "Measured on `arithmetic`, and on nothing else",
        "Nothing watched its training.",
        "| `tests-data` | 2 |",
        "The policy</summary>",
        "thinkgate verify mine",
        "thinkgate serve mine",
        "Reasoning stands between `<think>` and `</think>`",
    ):
        assert words in text, words


def test_a_download_as_the_card_says_it_verifies(passed: Path, tmp_path: Path) -> None:
    """What the Hub hands out beside the checkpoint, and the two things the card does about it."""
    with hub() as (address, files, _):
        assert push(passed, address).returncode == 0
    [command] = [line for line in files["README.md"].decode().splitlines() if "hf download" in line]
    excluded = re.findall(r"--exclude (\S+)", command)
    for name, content in (files | {".gitattributes": b"*.bin filter=lfs"}).items():
        if name not in excluded:
            (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / name).write_bytes(content)
    verify(tmp_path / "mine", trusted_keys()).require()


@pytest.mark.parametrize("decision", [None, GateVerdict.FAIL])
def test_what_is_not_gated_is_pushed_only_when_asked(
    tmp_path: Path, decision: GateVerdict | None
) -> None:
    folder = make_checkpoint(tmp_path / "model")
    if decision:
        record_decision(folder, decision)
    with hub() as (address, files, asked):
        refused = push(folder, address)
        assert refused.returncode == 2 and not asked
        assert "--allow-ungated pushes it" in refused.stderr
        assert push(folder, address, "--allow-ungated").returncode == 0
    card = files["README.md"].decode()
    assert "**Not gated.**" in card and "ungated" in str(ModelCard(card).data.tags)
    assert "thinkgate serve mine --allow-ungated" in card
    (folder / "config.json").write_text("changed")
    with hub() as (address, _, asked):
        changed = push(folder, address, "--allow-ungated")
    assert changed.returncode == 2 and not asked and "changed, added or removed" in changed.stderr


def test_a_refusal_says_how_to_push_later(passed: Path) -> None:
    with hub(refuse=True) as (address, files, asked):
        done = push(passed, address)
    assert asked and not files
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the Hub did not take 'me/mine': " in done.stderr
    assert f"push it later with: thinkgate push {passed} me/mine" in done.stderr


@pytest.mark.parametrize("name", ["mine", "me/a/b", "me/..", "-x/y z"])
def test_a_repository_has_a_user_and_a_name(
    passed: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(passed), "--dry-run", "--", name]) == 2
    error = capsys.readouterr().err
    assert "use USER/" in error and error.count("\n") == 1


def test_training_pushes_what_is_not_gated_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `push_to` of a recipe does."""
    monkeypatch.setenv("THINKGATE_TRUSTED", "")
    upload = prepare(make_checkpoint(tmp_path / "model"), "me/mine", allow_ungated=True)
    assert upload.files[0] == "config.json" and "**Not gated.**" in upload.card
