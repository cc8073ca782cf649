"""examples:
  thinkgate serve production                            the alias, verified against its gate
  thinkgate serve runs/quickstart/grpo --port 8001      a checkpoint folder that passed its gate
  thinkgate serve Qwen/Qwen3-0.6B --allow-ungated       any Hub model or folder, for development
  thinkgate serve production --max-model-len 8192 --engine.gpu_memory_utilization 0.8

--engine.KEY VALUE sets any field of vLLM's AsyncEngineArgs (tensor_parallel_size, dtype, …).
Exit codes: 0 stopped, 2 a mistake to fix, 70 the engine died.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinkgate.config import apply_overrides
from thinkgate.errors import ConfigError
from thinkgate.registry import Registry
from thinkgate_serve.card import Card, find_target
from thinkgate_serve.engine import VLLMEngine, require_vllm
from thinkgate_serve.process import bind, end_with_stdin, serve, stop_while_loading
from thinkgate_serve.service import ReasoningField, Settings

__all__ = ["add_arguments", "run"]

PREFIX = "--engine."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `thinkgate serve`; `--engine.KEY VALUE` lands in `engine`, a dict."""
    add = parser.add_argument
    add("target", metavar="TARGET", help="registry alias, checkpoint folder, or Hub id")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    add("--allow-ungated", action="store_true", help="serve what passed no gate, and say so")
    add("--registry", type=Path, metavar="DIR", help="registry folder (default: runs/registry)")
    add("--model-name", metavar="NAME", help="name clients use (default: the alias or manifest's)")
    add(
        "--reasoning-field",
        type=ReasoningField,
        choices=list(ReasoningField),
        default=ReasoningField.BOTH,
        help="which message field carries the thought (default: %(default)s)",
    )
    add("--max-model-len", type=int, metavar="N", help="context length (default: the model's)")
    add(
        "--drain",
        type=int,
        default=60,
        metavar="SECONDS",
        help="how long running requests may go on after SIGTERM (default: %(default)s)",
    )
    add("--stop-with-stdin", action="store_true", help="stop when standard input closes")
    _accept_engine_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    require_vllm()
    card = find_target(
        args.target,
        registry=Registry(args.registry),
        allow_ungated=args.allow_ungated,
        name=args.model_name,
    )
    options = _engine_options(args)
    sock = bind(args.host, args.port)
    stopped = stop_while_loading()
    if args.stop_with_stdin:
        end_with_stdin()
    settings = Settings(reasoning_field=args.reasoning_field, drain_seconds=args.drain)
    try:
        engine = VLLMEngine.load(card.source, options, visible=(card.tags.open, card.tags.close))
    except Exception:
        if (code := stopped()) is not None:
            return code
        raise
    try:
        if (code := stopped()) is not None:
            return code
        from thinkgate_serve.app import create_app

        return serve(
            create_app(engine, card, settings),
            sock,
            engine,
            announce=lambda: _announce(card, args.host, sock.getsockname()[1]),
            drain_seconds=args.drain,
        )
    finally:
        engine.shutdown()


def _announce(card: Card, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"thinkgate: serving {card.describe()} on http://{shown}:{port}/v1", flush=True)


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = dict(args.engine)
    for key in ("model", "tokenizer"):
        if key in options:
            raise ConfigError(f"--engine.{key}: the TARGET decides it")
    if args.max_model_len is not None:
        if "max_model_len" in options:
            raise ConfigError("--max-model-len and --engine.max_model_len are the same; give one")
        options["max_model_len"] = args.max_model_len
    return options


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port (0 to 65535)")
    return int(text)


def _accept_engine_options(parser: argparse.ArgumentParser) -> None:
    """Teach this parser options it cannot list without importing vLLM."""
    parse_rest = parser.parse_known_args

    def parse_known_args(
        args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        overrides, rest = _take_engine_options(list(sys.argv[1:] if args is None else args))
        parsed, unknown = parse_rest(rest, namespace or argparse.Namespace())
        # Intermixed parsing comes here twice; the second time our words are gone.
        parsed.engine = apply_overrides(getattr(parsed, "engine", {}), overrides)
        return parsed, unknown

    parser.parse_known_args = parse_known_args  # pyright: ignore[reportAttributeAccessIssue]


def _take_engine_options(words: list[str]) -> tuple[list[str], list[str]]:
    """`key=value` for each engine option, and the words that are none."""
    overrides: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if not word.startswith(PREFIX):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(PREFIX).partition("=")
        key = key.replace("-", "_")
        if not equals:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{word}: give it a value, for example {word} 1")
        overrides.append(f"{key}={value}")
    return overrides, rest
