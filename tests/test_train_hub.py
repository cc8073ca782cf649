"""Pushing to the Hub: the real Hub client against a small server that speaks its protocol."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fake_checkpoint import make_checkpoint


@contextmanager
def hub(refuse: bool = False) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
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
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            return self.say(
                200,
                {
                    "commitUrl": "http://127.0.0.1/me/mine/commit/1",
                    "commitOid": "1",
                    "success": True,
                },
            )

        def do_GET(self) -> None:
            asked.append(self.path)
            self.say(200, {"id": "me/mine", "sha": "0" * 40, "siblings": []})

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


def push(folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub client reads its address when it is imported."""
    code = (
        "import sys; from pathlib import Path; from thinkgate.errors import ThinkgateError\n"
        "from thinkgate_train.hub import push\n"
        "try: print(push(Path(sys.argv[1]), 'me/mine'))\n"
        "except ThinkgateError as error: sys.exit(str(error))"
    )
    environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def test_a_checkpoint_arrives_whole_with_its_provenance(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    with hub() as (address, files, _):
        done = push(folder, address)
    assert done.returncode == 0, done.stderr
    here = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == here and "thinkgate/manifest.json" in files


def test_a_refusal_says_how_to_push_later(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    with hub(refuse=True) as (address, files, asked):
        done = push(folder, address)
    assert asked and not files
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "push_to 'me/mine': " in done.stderr
    assert f"push it later with: hf upload me/mine {folder}" in done.stderr
