"""The process that tries schemas: forks a child for each, which compiles it as the engine would.

Owns the limits a child has, and what it finds. Whoever connects writes one line of JSON, a shape,
and reads one, a `Finding`. A child that takes too much is killed, and its connection closes without
an answer.
"""

import gc
import json
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer
from typing import Any, NamedTuple

from thinkgate_serve.offspring import die_with_server, give_way
from thinkgate_serve.schemas import no_schema, rule_not_kept
from thinkgate_serve.start_failures import first_line

__all__ = ["Finding", "serve_trials"]

MEMORY = 4 * 2**30
"""Bytes a trial may take."""
AT_ONCE = 4
READ_SECONDS = 0.25
"""What reading a shape may take: vLLM does so in the server's event loop, for each request."""
LONGEST = 1000
"""Characters of a problem told."""
LOCATION = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
"""Where in its own source xgrammar found an error."""


class Finding(NamedTuple):
    """What a trial came to."""

    problem: str | None
    """Why texts cannot be held to the shape."""
    no_schema: bool = False
    """Because it is none."""


def serve_trials(address: str, config: Any, cpu_seconds: int) -> None:
    """The whole of that process; it ends with the one that started it.

    `config` is vLLM's, of the engine whose grammars are tried; `cpu_seconds` is for each trial.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the server's, if this was forked from it
    die_with_server()
    give_way()
    with _Trials(address, config, cpu_seconds) as trials:
        trials.serve_forever()


class _Trial(StreamRequestHandler):
    """What happens in a child."""

    server: "_Trials"  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        from jsonschema.exceptions import SchemaError

        line = self.rfile.readline()
        die_with_server()
        _limit(self.server.cpu_seconds)
        try:
            finding = self._try(json.loads(line))
        except SchemaError as error:  # of a part that only a reference knows of
            finding = Finding(error.message, no_schema=True)
        except RecursionError:
            finding = Finding("it is nested too deeply")
        said = finding.problem
        if said is not None and len(said) > LONGEST:  # it may quote all of the schema
            half = LONGEST // 2
            finding = finding._replace(problem=f"{said[:half]} … {said[-half:]}")
        self.wfile.write(json.dumps(finding).encode() + b"\n")

    def _try(self, shape: Mapping[str, Any]) -> Finding:
        """Of `{"schema": …}`, or of a structural tag, whose schemas were tried one by one."""
        from vllm.v1.structured_output.backend_types import StructuredOutputOptions as Kind
        from xgrammar import Grammar

        if "format" in shape:
            return Finding(
                self._uncompiled(Kind.STRUCTURAL_TAG, Grammar.from_structural_tag, shape)
            )
        schema = shape["schema"]
        if (fault := no_schema(schema)) is not None:
            return Finding(fault, no_schema=True)
        unkept = rule_not_kept(schema)
        return Finding(unkept or self._uncompiled(Kind.JSON, Grammar.from_json_schema, schema))

    def _uncompiled(self, kind: Any, read: Callable[[str], Any], shape: Any) -> str | None:
        text = json.dumps(shape)
        try:
            began = time.process_time()
            read(text)
            seconds = time.process_time() - began
            if seconds > READ_SECONDS:
                return (
                    f"each request that has it would hold up all others for {seconds:.1f} s; count "
                    "less in its patterns, or give it fewer properties"
                )
            self.server.grammars.compile_grammar(kind, text)
        except Exception as error:  # xgrammar's are of many classes
            return f"vLLM cannot compile it: {LOCATION.sub('', first_line(error))}"
        return None


class _Trials(ForkingMixIn, UnixStreamServer):
    request_queue_size = 1024
    max_children = AT_ONCE

    def __init__(self, address: str, config: Any, cpu_seconds: int) -> None:
        self._config = config
        self.cpu_seconds = cpu_seconds
        self.grammars: Any = None
        super().__init__(address, _Trial)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.grammars is None:
            self._load()
        super().process_request(request, client_address)

    def _load(self) -> None:
        """What every child needs: vLLM's backend, made as the engine makes it."""
        import jsonschema.exceptions  # noqa: F401
        from vllm.tokenizers import cached_tokenizer_from_config
        from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

        model = self._config.model_config
        tokenizer: Any = cached_tokenizer_from_config(model_config=model)
        self.grammars = XgrammarBackend(
            self._config, tokenizer=tokenizer, vocab_size=model.get_vocab_size()
        )
        gc.freeze()  # a collection in a child would touch, and so copy, every page


def _limit(cpu_seconds: int) -> None:
    limits = {resource.RLIMIT_CPU: cpu_seconds, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + MEMORY
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(
            kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )
