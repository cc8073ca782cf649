"""What an operator may choose: the keys of `serve.yaml`, and of the command line with dashes.

Owns defaults and merging: environment, file, `key=value` words, options. It starts nothing.
"""

import argparse
import ipaddress
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from thinkgate.config import Config, apply_overrides, parse, read_yaml
from thinkgate.errors import ConfigError
from thinkgate_serve.auth import ENV_KEY, Keyring
from thinkgate_serve.deploy import Placement
from thinkgate_serve.engine import SCHEMA_SECONDS
from thinkgate_serve.logs import LogFormat
from thinkgate_serve.service import ReasoningField, Settings
from thinkgate_serve.traces import TraceStore
from thinkgate_serve.tracing import Tracing, wants_tracing
from thinkgate_serve.vllm_tools import VLLMToolParser

__all__ = ["ServeConfig", "load_options"]

ENV_ENGINE = "THINKGATE_ENGINE"
ORIGIN = re.compile(r"\*|https?://[^/\s]+")
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")


class ServeConfig(Config):
    """All settings of one server."""

    target: str
    """Registry alias, checkpoint folder, or Hub id."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allow_ungated: bool = False
    registry: Path | None = None
    model_name: str | None = None
    reasoning_field: ReasoningField = ReasoningField.BOTH
    tool_parser: str | None = None
    """A tool parser of vLLM's."""
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    drain: Annotated[int, Field(ge=0)] = 60
    drain_delay: Annotated[int, Field(ge=0)] = 0
    stop_with_stdin: bool = False
    keys: Path | None = None
    no_keys: bool = False
    max_queue: Annotated[int, Field(ge=1)] = 1024
    request_timeout: Annotated[float, Field(gt=0)] | None = None
    max_body_mib: Annotated[int, Field(ge=1)] = 4
    max_schema_seconds: Annotated[int, Field(ge=1)] = SCHEMA_SECONDS
    log_format: LogFormat = LogFormat.TEXT
    log_prompts: bool = False
    traces: Path | None = None
    traces_keep_days: Annotated[float, Field(gt=0)] = 30
    traces_max_rows: Annotated[int, Field(ge=1)] = 100_000
    cors_origin: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    deploy: Placement = Placement.AUTO
    deploy_drain: Annotated[float, Field(ge=0)] = 600
    no_watch: bool = False
    lora: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters by the name clients use: checkpoints trained from the target, or aliases."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Fields of vLLM's AsyncEngineArgs."""

    def settings(self) -> Settings:
        """What the application needs to know. ConfigError for a door left open by mistake."""
        keyring = Keyring.load(self.keys)
        if self.no_keys and keyring:
            raise ConfigError(f"--no-keys contradicts --keys and {ENV_KEY}; give one")
        if not keyring and not self.no_keys and not _is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and there are no API "
                f"keys; give --keys FILE or {ENV_KEY}, or --no-keys to let everyone ask"
            )
        for origin in self.cors_origin:
            if not ORIGIN.fullmatch(origin):  # browsers would never send it
                raise ConfigError(
                    f"--cors-origin {origin}: not a web origin; write it as https://example.org, "
                    "without a path"
                )
        return Settings(
            reasoning_field=self.reasoning_field,
            max_body_bytes=self.max_body_mib * 2**20,
            keyring=keyring,
            max_queue=self.max_queue,
            request_timeout=self.request_timeout,
            cors_origins=self.cors_origin,
            log_format=self.log_format,
            log_prompts=self.log_prompts,
            traces=self.trace_store(),
            tracing=Tracing(self.otlp_endpoint) if wants_tracing(self.otlp_endpoint) else None,
            tool_parser=None if self.tool_parser is None else VLLMToolParser(self.tool_parser),
        )

    def trace_store(self) -> TraceStore | None:
        """Where traces are kept; ConfigError when that cannot be."""
        if self.traces is None:
            return None
        return TraceStore(
            self.traces, keep_days=self.traces_keep_days, max_rows=self.traces_max_rows
        )

    def engine_options(self) -> dict[str, Any]:
        """`engine`, with what has an option of its own."""
        options = dict(self.engine)
        for key in ("model", "tokenizer"):
            if key in options:
                raise ConfigError(f"--engine.{key}: the TARGET decides it")
        if self.max_model_len is not None:
            if "max_model_len" in options:
                raise ConfigError(
                    "--max-model-len and --engine.max_model_len are the same; give one"
                )
            options["max_model_len"] = self.max_model_len
        return options


def load_options(args: argparse.Namespace) -> ServeConfig:
    """Environment, file, `key=value` words and options given, the later before the earlier."""
    given: dict[str, Any] = dict(vars(args))
    words: list[str] = given.pop("words")
    engine: Mapping[str, Any] = given.pop("engine", {})
    file: Path | None = given.pop("config", None)
    data = read_yaml(file) if file is not None else {}
    targets, overrides = _sort(words)
    data = apply_overrides(data, overrides)
    data |= {"target": targets[0]} if targets else {}
    data |= given
    if "lora" in given:
        data["lora"] = _by_name(given["lora"])
    if engine := {**_engine_of_environment(), **(data.get("engine") or {}), **engine}:
        data["engine"] = engine
    if "target" not in data:
        raise ConfigError("what to serve? give a TARGET, or 'target:' in --config FILE")
    return parse(ServeConfig, data, file or "thinkgate serve")


def _engine_of_environment() -> dict[str, Any]:
    """For the servers that `eval`, `gate` and `quickstart` start as well."""
    try:
        return apply_overrides({}, shlex.split(os.environ.get(ENV_ENGINE, "")))
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{ENV_ENGINE}: {error}") from error


def _by_name(pairs: Sequence[str]) -> dict[str, str]:
    adapters: dict[str, str] = {}
    for pair in pairs:
        name, equals, target = pair.partition("=")
        if not (name and equals and target):
            raise ConfigError(f"--lora {pair}: give NAME=FOLDER")
        if name in adapters:
            raise ConfigError(f"--lora {pair}: '{name}' is given twice")
        adapters[name] = target
    return adapters


def _sort(words: Sequence[str]) -> tuple[list[str], list[str]]:
    targets = [word for word in words if Path(word).exists() or not OVERRIDE.match(word)]
    if len(targets) > 1:
        raise ConfigError(f"one TARGET at a time: '{targets[0]}' and '{targets[1]}' were given")
    return targets, [word for word in words if word not in targets]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
