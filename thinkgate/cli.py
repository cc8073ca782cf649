"""The `thinkgate` command: finds the subcommand's module, runs it, words its errors.

The only place that names the parts, by string, so that `thinkgate --help` imports none of them.
A command module has `add_arguments(parser)`, `run(args) -> int` and a docstring with examples.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from thinkgate import __version__
from thinkgate.errors import MissingDependencyError, ThinkgateError, explain_os_error

__all__ = ["main", "run_command"]

COMMANDS = {
    "quickstart": ("thinkgate.quickstart", "train, gate, promote and serve a small reasoner here"),
    "train": ("thinkgate_train.command", "run a training recipe"),
    "eval": ("thinkgate_evals.eval_command", "measure a checkpoint, alias or endpoint"),
    "eval compare": ("thinkgate_evals.compare_command", "compare two measurements, paired"),
    "eval contamination": (
        "thinkgate_evals.contamination_command",
        "search training data for benchmark problems",
    ),
    "gate": ("thinkgate_evals.gate_command", "decide PASS, FAIL or INCONCLUSIVE for a checkpoint"),
    "keys": ("thinkgate.keys_command", "make signing keys, and say whose signatures count"),
    "sign": ("thinkgate.sign_command", "sign a checkpoint that passed its gate"),
    "verify": ("thinkgate.verify_command", "say what in a checkpoint matches its signature"),
    "promote": ("thinkgate.promote_command", "point an alias at a checkpoint that passed"),
    "rollback": ("thinkgate.rollback_command", "point an alias at what it pointed at before"),
    "list": ("thinkgate.list_command", "show the registry's aliases and their history"),
    "show": ("thinkgate.show_command", "show all that is known about an alias or a checkpoint"),
    "prune": ("thinkgate.prune_command", "forget old history, and delete what no alias needs"),
    "push": ("thinkgate.push_command", "push a checkpoint to the Hugging Face Hub, card included"),
    "serve": ("thinkgate_serve.command", "serve a gated checkpoint over an OpenAI-compatible API"),
    "api-keys": ("thinkgate_serve.api_keys_command", "make, list and remove a server's API keys"),
    "chat": ("thinkgate_clients.chat", "talk to a server, reasoning dim, answer bold"),
    "batch": ("thinkgate_clients.batch", "ask a file of requests, resumable"),
    "score": ("thinkgate.score_command", "grade recorded answers with the verifier"),
    "split": ("thinkgate.split_command", "split recorded completions into reasoning and answer"),
    "doctor": ("thinkgate.doctor", "show versions and devices, what is missing and the fix"),
}
EXTRA_OF = {"thinkgate_train": "train", "thinkgate_evals": "evals", "thinkgate_serve": "serve"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 done, 1 a negative result, 2 a mistake to fix, 3 inconclusive, 130 ^C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = run_command(arguments)
        sys.stdout.flush()  # here a full disk is still a sentence
        return code
    except ThinkgateError as error:
        return _mistake(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("thinkgate: stopped; finished work is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `thinkgate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        _abandon_stdout()
        return _mistake(sentence, ThinkgateError.exit_code)


def _mistake(sentence: str, code: int) -> int:
    """Say what to fix. Parts of the sentence may come from a server, whose escapes are dropped."""
    from thinkgate.console import printable

    print(f"thinkgate: {printable(sentence)}", file=sys.stderr)
    return code


def _abandon_stdout() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(arguments: Sequence[str]) -> int:
    """Run one command in this process; ThinkgateError and Ctrl-C reach the caller."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"thinkgate {__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        from thinkgate.config import nearest  # pydantic: `main` should be reached in no time

        raise ThinkgateError(f"unknown command '{name}'; {nearest(name, COMMANDS)}")
    module_name, summary = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        extra = EXTRA_OF.get(module_name.split(".")[0], "all")
        raise MissingDependencyError(
            f"'thinkgate {name}' needs {error.name}, which is not installed; "
            f"pip install 'thinkgate[{extra}]'"
        ) from error
    parser = argparse.ArgumentParser(
        prog=f"thinkgate {name}",
        description=summary[0].upper() + summary[1:] + ".",
        epilog=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    try:
        parsed = parser.parse_intermixed_args(rest)  # options may follow key=value items
    except SystemExit as stop:  # argparse has printed the help (0) or the mistake (2)
        return int(stop.code or 0)
    return int(module.run(parsed))


def _overview() -> str:
    lines = [
        "thinkgate: train a reasoner, prove it is better, serve it.",
        "",
        "usage: thinkgate COMMAND [options]     (thinkgate COMMAND --help for each)",
        "",
        *(f"  {name:<20}{summary}" for name, (_, summary) in COMMANDS.items()),
    ]
    return "\n".join(lines)
