"""OpenTelemetry: one span for each generation request, under the caller's trace.

Owns what a span says, in the names of the GenAI and HTTP semantic conventions, and where spans go.
Text of prompts and answers is never in one. Optional: without an endpoint nothing here is imported.
"""

import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from thinkgate import __version__
from thinkgate.errors import ConfigError, MissingDependencyError
from thinkgate_serve.logs import Exchange

__all__ = ["Tracing", "wants_tracing"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/responses": "chat"}
"""`gen_ai.operation.name` by path; the others complete text."""

REQUEST = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
}
"""Fields of `Sampling`, as they were after defaults."""


def wants_tracing(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the operator named a collector, here or in OpenTelemetry's own variables."""
    return endpoint is not None or any(environment.get(name) for name in ENDPOINTS)


class Tracing:
    """Writes spans. ConfigError or MissingDependencyError when it could not."""

    def __init__(self, endpoint: str | None = None, exporter: Any = None) -> None:
        """Spans go to `exporter`, else by OTLP over HTTP to `endpoint`, the address of a collector
        such as `http://localhost:4318`, else to where OpenTelemetry's variables say."""
        protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), HTTP)
        if exporter is None and protocol != HTTP:
            raise ConfigError(f"OTLP over '{protocol}' is not supported; use {HTTP}")
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--otlp-endpoint {endpoint}: not a URL; try http://{endpoint}")
        try:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter
            from opentelemetry.sdk import trace
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            raise MissingDependencyError(
                f"traces for a collector need OpenTelemetry ({error.name} is missing); "
                "run: pip install 'thinkgate[otel]'"
            ) from error
        self._sdk, self._otlp = trace, trace_exporter
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._context = tracecontext.TraceContextTextMapPropagator()
        self._endpoint = endpoint
        self._exporter = exporter

    @cached_property
    def _provider(self) -> Any:
        """Made with the first span: its thread must not exist when the engine is forked."""
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        about = Resource.create({"service.name": "thinkgate", "service.version": __version__})
        provider = self._sdk.TracerProvider(resource=about.merge(OTELResourceDetector().detect()))
        exporter = self._exporter
        if exporter is None:
            base = self._endpoint and self._endpoint.rstrip("/").removesuffix("/v1/traces")
            exporter = self._otlp.OTLPSpanExporter(endpoint=base and f"{base}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider

    def record(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """Write the span of a finished request; `headers` may hold the caller's trace."""
        operation = OPERATIONS.get(exchange.path, "text_completion")
        end = time.time_ns()
        span = self._provider.get_tracer("thinkgate", __version__).start_span(
            f"{operation} {exchange.model.card.name}" if exchange.model else operation,
            context=self._context.extract(headers),
            kind=self._server,
            start_time=end - int((time.perf_counter() - exchange.began) * 1e9),
            attributes=_attributes(exchange, operation),
        )
        if exchange.status >= 500 or (exchange.status < 400 and exchange.error is not None):
            span.set_status(self._error, exchange.error)
        span.end(end)

    def close(self) -> None:
        """Send what is left."""
        if "_provider" in self.__dict__:
            self._provider.shutdown()


def _attributes(exchange: Exchange, operation: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "thinkgate",
        "http.request.method": exchange.method,
        "http.response.status_code": exchange.status,
        "url.path": exchange.path,
        "thinkgate.request_id": exchange.request_id,
    }
    if exchange.model is not None:
        labels = exchange.model.card.labels()
        found |= dict.fromkeys(("gen_ai.request.model", "gen_ai.response.model"), labels["model"])
        found |= {"thinkgate.digest": labels["digest"], "thinkgate.decision": labels["decision"]}
    if exchange.sampling is not None:
        values = {name: getattr(exchange.sampling, key) for key, name in REQUEST.items()}
        found |= {name: value for name, value in values.items() if value is not None}
        found |= {
            "gen_ai.request.choice.count": len(exchange.finish),
            "gen_ai.response.finish_reasons": exchange.finish,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.reasoning_tokens + exchange.answer_tokens,
            "gen_ai.usage.reasoning.output_tokens": exchange.reasoning_tokens,
        }
    if exchange.first_token is not None:
        found["gen_ai.response.time_to_first_chunk"] = exchange.first_token
    if exchange.key is not None:
        found["thinkgate.key"] = exchange.key
    if exchange.error is not None or exchange.status >= 400:
        found["error.type"] = exchange.error or str(exchange.status)
    return found
