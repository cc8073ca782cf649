"""Prometheus metrics of one server. Owns their names; counts nothing by itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Its own registry, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "thinkgate_requests",
            "HTTP requests by path and status; 499 is a client that went away.",
            ["path", "status"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "thinkgate_tokens",
            "Tokens by channel: prompt, reasoning, answer.",
            ["channel"],
            registry=self.registry,
        )
        self.truncated = Counter(
            "thinkgate_reasoning_truncated",
            "Completions that ended inside the thought.",
            registry=self.registry,
        )
        self.running = Gauge(
            "thinkgate_running_requests",
            "Generation requests the engine is working on.",
            registry=self.registry,
        )
        self.first_token = Histogram(
            "thinkgate_time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_answer = Histogram(
            "thinkgate_time_to_first_answer_seconds",
            "From the request's arrival to the first text of its answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "thinkgate_generation_seconds",
            "From the request's arrival to its last token.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
