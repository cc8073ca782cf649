"""Spans of generation requests: the SDK's own exporter in memory, and a collector over HTTP."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fake_engine import CARD, HELLO, FakeEngine, ask, characters
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from thinkgate.cli import main
from thinkgate.errors import ConfigError, MissingDependencyError
from thinkgate_serve.service import Settings
from thinkgate_serve.tracing import Tracing, wants_tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def traced(engine: FakeEngine, path: str = "/v1/chat/completions", **body: Any) -> Any:
    """The one span of a request."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter=exporter)
    ask(engine, path, settings=Settings(tracing=tracing), headers=CALLER, **body)
    tracing.close()
    (span,) = exporter.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_says_what_the_conventions_say(stream: bool) -> None:
    text = "<think>why</think>42"
    engine = FakeEngine(characters(text))
    span = traced(engine, messages=HELLO, stream=stream, temperature=0.5, seed=7, max_tokens=100)
    assert (span.name, span.kind) == ("chat m", SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.end_time > span.start_time
    assert span.status.status_code is StatusCode.UNSET
    found = dict(span.attributes)
    assert found.pop("gen_ai.response.time_to_first_chunk") > 0
    assert found.pop("thinkgate.request_id")
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "thinkgate",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 20,
        "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": len("[user]hi[assistant]"),
        "gen_ai.usage.output_tokens": len(text),
        "gen_ai.usage.reasoning.output_tokens": len("<think>why</think>"),
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "thinkgate.digest": CARD.digest,
        "thinkgate.decision": "ungated",
    }


def test_names_are_those_of_the_published_conventions() -> None:
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    known = {value for key, value in vars(gen_ai_attributes).items() if key.startswith("GEN_AI_")}
    span = traced(FakeEngine(characters("x")), "/v1/completions", prompt="q", seed=1)
    assert span.name == "text_completion m"
    ours = {name for name in span.attributes if name.startswith("gen_ai.")}
    assert len(ours) > 12 and ours <= known


@pytest.mark.parametrize("stream", [False, True])
def test_what_failed_is_an_error(stream: bool) -> None:
    engine = FakeEngine(characters("<think>half"))
    engine.die = True
    span = traced(engine, messages=HELLO, stream=stream)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == ("engine_dead" if stream else "503")
    assert span.attributes["gen_ai.response.finish_reasons"] == ("aborted",)


def test_a_refusal_is_the_clients_mistake() -> None:
    span = traced(FakeEngine([]), messages=HELLO, n=0)
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["error.type"] == "400"
    assert "gen_ai.usage.input_tokens" not in span.attributes


def test_only_generation_is_traced() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter=exporter)
    settings = Settings(tracing=tracing)
    for path in ("/health", "/v1/models", "/metrics", "/v1/nothing"):
        ask(FakeEngine([]), path, settings=settings, method="GET")
    tracing.close()
    assert exporter.get_finished_spans() == ()


def test_spans_reach_a_collector() -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        tracing = Tracing(f"http://127.0.0.1:{collector.server_port}/")
        private = [{"role": "user", "content": "private words"}]
        engine = FakeEngine(characters("secret answer"))
        ask(engine, settings=Settings(tracing=tracing), messages=private)
        tracing.close()
        collector.shutdown()
        thread.join()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"gen_ai.usage.output_tokens" in body and b"thinkgate" in body
    assert b"private" not in body and b"secret" not in body


# Configuration


def test_off_until_asked_for() -> None:
    assert not wants_tracing(None, {})
    assert not wants_tracing(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert wants_tracing(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"})
    assert wants_tracing("http://c:4318", {})


def test_without_it_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from fake_engine import HELLO, FakeEngine, ask, characters\n"
        "assert ask(FakeEngine(characters('x')), messages=HELLO).status_code == 200\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_mistakes_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="try http://collector:4318"):
        Tracing("collector:4318")
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        with pytest.raises(ConfigError, match="OTLP over 'grpc' is not supported"):
            Tracing("http://collector:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'thinkgate\[otel\]'"):
        Tracing("http://collector:4318")
    assert main(["serve", "x", "--otlp-endpoint", "http://collector:4318"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
