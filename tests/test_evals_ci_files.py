"""`docs/ci`: the workflow is one, and the script ends as the gate does. Real models and vLLM go
through the same script in `test_quickstart.py`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from thinkgate_evals.policy import load_policy

ROOT = Path(__file__).parent.parent
CI = ROOT / "docs" / "ci"

# Says what it was asked, and leaves what a gate leaves.
STUB = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
[ "$1" = gate ] || exit 0
[ "$CODE" -eq 2 ] || for file in summary.md report.html report.json junit.xml decision.json; do
  echo "$CODE" > "$CANDIDATE/thinkgate/$file"
done
exit "$CODE"
"""


def test_the_workflow_is_one() -> None:
    command = [sys.executable, "-m", "check_jsonschema"]
    command += ["--builtin-schema", "vendor.github-workflows"]
    file = CI / "github-actions.yaml"
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_what_is_there() -> None:
    workflow: dict[str, Any] = yaml.safe_load((CI / "github-actions.yaml").read_text())
    [job] = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    for script in re.findall(r"bash (\S+)", " ".join(runs)):
        assert (ROOT / script).is_file()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make (\S+)", " ".join(runs))) <= set(targets)
    load_policy(job["env"]["POLICY"])
    # What fails comes before what shows, and showing happens all the same.
    gated = next(n for n, step in enumerate(job["steps"]) if "gate.sh" in step.get("run", ""))
    assert all("always()" in step["if"] for step in job["steps"][gated + 1 :])


@pytest.mark.parametrize("code", [0, 1, 3, 2])
@pytest.mark.parametrize("trained", [True, False])
def test_the_script_ends_as_the_gate_does(code: int, trained: bool, tmp_path: Path) -> None:
    candidate, report = tmp_path / "candidate", tmp_path / "report"
    report.mkdir()
    (report / "summary.md").write_text("of an earlier run")
    (report / "thesis.tex").write_text("whoever names a folder that is not empty keeps it")
    (candidate / "thinkgate").mkdir(parents=True)
    if trained:
        (candidate / "thinkgate" / "manifest.json").write_text("{}")
    stub, calls = tmp_path / "stub", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    settings = {
        "THINKGATE": str(stub),
        "CALLS": str(calls),
        "CODE": str(code),
        "CANDIDATE": str(candidate),
        "REPORT": str(report),
        "AGAINST": "production",
        "OPTIONS": "--sequential --order-seed 3",
    }
    done = subprocess.run(["bash", str(CI / "gate.sh")], env=os.environ | settings, check=False)
    assert done.returncode == code
    asked = calls.read_text().splitlines()
    assert [line.split()[0] for line in asked] == ([] if trained else ["train"]) + ["eval", "gate"]
    assert asked[-1].endswith("--against production --sequential --order-seed 3")
    assert (report / "thesis.tex").is_file()
    assert len(list(report.iterdir())) == 1 + (0 if code == 2 else 5)
