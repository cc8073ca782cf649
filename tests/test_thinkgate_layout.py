"""Who may import whom, and that looking at the command line loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "thinkgate": ROOT / "thinkgate",
    "thinkgate_train": ROOT / "train" / "thinkgate_train",
    "thinkgate_serve": ROOT / "serve" / "thinkgate_serve",
    "thinkgate_evals": ROOT / "evals" / "thinkgate_evals",
    "thinkgate_clients": ROOT / "clients" / "thinkgate_clients",
}
ALLOWED = {
    "thinkgate": set(),
    "thinkgate_clients": {"thinkgate"},
    "thinkgate_evals": {"thinkgate", "thinkgate_clients"},
    "thinkgate_serve": {"thinkgate"},
    "thinkgate_train": {"thinkgate"},
}
HEAVY = ("torch", "transformers", "trl", "vllm", "lm_eval", "datasets", "math_verify", "openai")


def imported(file: Path) -> set[str]:
    """Top-level packages imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_dependency_direction(package: str) -> None:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    for file in files:
        foreign = (imported(file) & set(PACKAGES)) - {package} - ALLOWED[package]
        assert not foreign, f"{file} imports {foreign}"


def test_only_the_answers_module_imports_math_verify() -> None:
    users = {
        file.name
        for folder in PACKAGES.values()
        for file in folder.rglob("*.py")
        if "math_verify" in imported(file)
    }
    assert users and all(name.startswith("answer") for name in users)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["promote", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from thinkgate.cli import main; code = main(sys.argv[1:]); "
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; "
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "thinkgate" in done.stdout


def test_ctrl_c_finds_the_command_line_ready_to_word_it() -> None:
    """What is imported before `main` runs has its traceback shown."""
    code = "import sys, thinkgate.cli; sys.exit('pydantic' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_python_in_docker() -> None:
    assert not list((ROOT / "docker").rglob("*.py"))
