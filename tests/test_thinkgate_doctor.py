"""`thinkgate doctor`: what is missing is named with a command that can be pasted."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from rich.console import Console

from thinkgate.cli import main


def test_the_fix_of_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_lm_eval(name: str) -> str:
        if name == "lm-eval":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("thinkgate.doctor.version", without_lm_eval)
    monkeypatch.setattr("thinkgate.doctor.console", Console(width=200))
    assert main(["doctor"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "lm-eval" in line)
    assert "missing" in line and "pip install 'thinkgate[evals]'" in line
