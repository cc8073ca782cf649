"""examples:
  thinkgate serve production                            the alias, verified against its gate
  thinkgate serve runs/quickstart/grpo --port 8001      a checkpoint folder that passed its gate
  thinkgate serve Qwen/Qwen3-0.6B --allow-ungated       any Hub model or folder, for development
  thinkgate serve production --max-model-len 8192 --engine.gpu_memory_utilization 0.8
  thinkgate serve production --lora math=runs/math/grpo adapters of it as further models
  thinkgate serve production --host 0.0.0.0 --keys keys.yaml --log-format json
  thinkgate serve --config serve.yaml engine.max_num_seqs=64

--engine.KEY VALUE sets any field of vLLM's AsyncEngineArgs (tensor_parallel_size, dtype, …).
Exit codes: 0 stopped, 2 a mistake to fix, 70 the engine died.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thinkgate.config import apply_overrides
from thinkgate.errors import ConfigError, ThinkgateError
from thinkgate.registry import Registry
from thinkgate_serve.adapters import find_adapters, lora_options
from thinkgate_serve.card import Card, find_target
from thinkgate_serve.deploy import Placement, Source
from thinkgate_serve.launch import require_vllm, room_beside
from thinkgate_serve.logs import LogFormat
from thinkgate_serve.model import Deployment
from thinkgate_serve.options import ServeConfig, load_options
from thinkgate_serve.process import bind, end_with_stdin, make_server, serve, stop_while_loading
from thinkgate_serve.service import ReasoningField

__all__ = ["add_arguments", "run"]

PREFIX = "--engine."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `thinkgate serve`; `--engine.KEY VALUE` lands in `engine`, a dict.

    Options have no defaults here: what is not given comes from --config, then `ServeConfig`.
    """

    def add(name: str, words: str, **more: Any) -> None:
        parser.add_argument(name, help=words, default=argparse.SUPPRESS, **more)

    parser.add_argument(
        "words",
        nargs="*",
        metavar="TARGET | key=value",
        help="registry alias, checkpoint folder, or Hub id; key=value changes a key of --config",
    )
    add("--config", "settings as YAML; options given here win", type=Path, metavar="FILE")
    add("--host", "address to listen on (default: 127.0.0.1)")
    add("--port", "0 takes a free one (default: 8000)", type=_port)
    add(
        "--lora",
        "serve the adapter of a checkpoint trained from TARGET as NAME; may be repeated",
        action="append",
        metavar="NAME=FOLDER",
    )
    add("--allow-ungated", "serve what passed no gate, and say so", action="store_true")
    add("--registry", "registry folder (default: runs/registry)", type=Path, metavar="DIR")
    add("--model-name", "name clients use (default: the alias or manifest's)", metavar="NAME")
    add(
        "--reasoning-field",
        "which message field carries the thought (default: both)",
        choices=[*map(str, ReasoningField)],
    )
    add(
        "--tool-parser",
        "how the model writes tool calls: hermes, or another of vLLM's parsers",
        metavar="NAME",
    )
    add("--max-model-len", "context length (default: the model's)", type=int, metavar="N")
    add(
        "--deploy",
        "where a new checkpoint's engine goes: beside the old one, or in its place (default: auto)",
        choices=[*map(str, Placement)],
    )
    add(
        "--deploy-drain",
        "how long the old checkpoint's requests may go on after a deploy (default: 600)",
        type=float,
        metavar="SECONDS",
    )
    add("--no-watch", "do not follow the alias when it is promoted", action="store_true")
    add(
        "--drain",
        "how long running requests may go on after SIGTERM (default: 60)",
        type=int,
        metavar="SECONDS",
    )
    add(
        "--drain-delay",
        "how long requests are still taken after SIGTERM, /ready saying 503 (default: 0)",
        type=int,
        metavar="SECONDS",
    )
    add("--stop-with-stdin", "stop when standard input closes", action="store_true")
    _add_protection(add)
    _accept_engine_options(parser)


def _add_protection(add: Callable[..., None]) -> None:
    add("--keys", "API keys, made with 'thinkgate api-keys'", type=Path, metavar="FILE")
    add("--no-keys", "let everyone ask who reaches a public address", action="store_true")
    add(
        "--max-queue",
        "requests that may wait for their first token (default: 1024)",
        type=int,
        metavar="N",
    )
    add(
        "--request-timeout",
        "how long a request may take (default: no limit)",
        type=float,
        metavar="SECONDS",
    )
    add("--max-body-mib", "largest request body (default: 4)", type=int, metavar="N")
    add(
        "--max-schema-seconds",
        "processor time that compiling a request's schema may take (default: 30)",
        type=int,
        metavar="N",
    )
    add(
        "--log-format",
        "one line per request on stderr (default: text)",
        choices=[*map(str, LogFormat)],
    )
    add("--log-prompts", "write request bodies to the log", action="store_true")
    add(
        "--traces",
        "keep requests, thoughts and answers in this SQLite file",
        type=Path,
        metavar="FILE",
    )
    add("--traces-keep-days", "how long (default: 30)", type=float, metavar="DAYS")
    add("--traces-max-rows", "how many at most (default: 100000)", type=int, metavar="N")
    add(
        "--otlp-endpoint",
        "send traces to this OpenTelemetry collector, such as http://localhost:4318",
        metavar="URL",
    )
    add(
        "--cors-origin",
        "a web origin whose pages may ask; may be repeated",
        action="append",
        metavar="URL",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until stopped."""
    require_vllm()
    chosen = load_options(args)
    settings = chosen.settings()
    source = _source(chosen)
    card, adapters = source.find(chosen.target, source.lora)
    sock = bind(chosen.host, chosen.port)
    stopped = stop_while_loading()
    if chosen.stop_with_stdin:
        end_with_stdin()
    try:
        deployment = source.load(card, adapters)
    except Exception:
        if (code := stopped()) is not None:
            return code
        raise
    with ExitStack() as at_end:
        if settings.tracing is not None:
            at_end.callback(settings.tracing.close)
        at_end.callback(deployment.stop)
        if (code := stopped()) is not None:
            return code
        from thinkgate_serve.app import create_app

        if settings.tool_parser is not None:
            settings.tool_parser.check(deployment.engine.tokenizer)
        app = create_app(deployment, settings, source)
        at_end.callback(lambda: app.state.service.deployment.stop())
        server = make_server(
            app,
            announce=lambda: _announce(card, chosen.host, sock.getsockname()[1]),
            drain_seconds=chosen.drain,
            drain_delay=chosen.drain_delay,
        )
        return serve(server, sock)


def _source(chosen: ServeConfig) -> Source:
    """Where the first deployment comes from, and every later one."""
    registry = Registry(chosen.registry)
    options = chosen.engine_options()
    watched = chosen.target in registry.aliases() and not chosen.no_watch
    # An alias or manifest names what is served at the start; clients keep that name.
    names = {"name": chosen.model_name}

    def find(target: str, lora: Mapping[str, str]) -> tuple[Card, list[Card]]:
        allow = chosen.allow_ungated
        card = find_target(target, registry=registry, allow_ungated=allow, name=names["name"])
        names["name"] = card.name
        return card, find_adapters(lora, card, registry=registry, allow_ungated=allow)

    def version() -> object | None:
        try:
            return registry.history(chosen.target)[-1]
        except (ThinkgateError, OSError):  # being mended; what is served stays
            return None

    return Source(
        target=chosen.target,
        find=find,
        load=lambda card, adapters: Deployment.load(
            card,
            adapters,
            lora_options(adapters) | options,
            schema_seconds=chosen.max_schema_seconds,
        ),
        room_beside=lambda card: room_beside(card.source, options),
        version=version if watched else None,
        known=version() if watched else None,
        lora=chosen.lora,
        placement=chosen.deploy,
        drain_seconds=chosen.deploy_drain,
    )


def _announce(card: Card, host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    print(f"thinkgate: serving {card.describe()} on http://{shown}:{port}/v1", flush=True)


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
