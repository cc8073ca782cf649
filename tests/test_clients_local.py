"""Waiting for a server of one's own: an answer that is not yet "ready" leaves nothing open."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Says, ScriptedEndpoint

from thinkgate.errors import ServerError
from thinkgate_clients import local
from thinkgate_clients.local import local_server


def test_an_answer_that_is_not_ready_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[urllib.error.HTTPError] = []
    urlopen = urllib.request.urlopen

    def kept(*args: Any, **more: Any) -> Any:
        try:
            return urlopen(*args, **more)
        except urllib.error.HTTPError as error:
            answers.append(error)
            raise

    monkeypatch.setattr(urllib.request, "urlopen", kept)
    with ScriptedEndpoint(lambda _: Says("1")) as endpoint:  # it answers 404 to /ready
        announced = f"thinkgate: serving m (digest 0) on {endpoint.base_url}"
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\necho '{announced}'\nexec cat\n")
        os.chmod(script, 0o755)
        monkeypatch.setattr(local.sys, "executable", str(script))
        with (
            pytest.raises(ServerError, match="not ready after 1 s"),
            local_server("x", timeout=1),
        ):
            pytest.fail("it was never ready")
    assert answers and all(error.closed for error in answers)
