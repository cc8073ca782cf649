"""Prometheus metrics of one server. Owns their names; counts nothing by itself.

Labels take values from lists the operator knows (paths, statuses, reasons, names of keys, deployed
models), never from requests: the number of series is bounded.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Its own registry, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "HTTP requests by path and status; 499 is a client that went away.",
            "path", "status",
        )  # fmt: skip
        self.model_requests = self._counter(
            "model_requests", "Requests by the model that answered: its digest and gate decision.",
            "model", "digest", "decision",
        )  # fmt: skip
        self.model_info = Gauge(
            "thinkgate_model_info", "1 for each model being served: its digest and gate decision.",
            ("model", "digest", "decision"), registry=self.registry,
        )  # fmt: skip
        self.deploys = self._counter(
            "deploys", "Deploys while serving, by how they ended: deployed, canary_failed, …",
            "outcome",
        )  # fmt: skip
        self.key_requests = self._counter(
            "key_requests", "Generation requests taken, by the name of the API key.", "key"
        )
        self.key_tokens = self._counter(
            "key_tokens", "Prompt and completion tokens, by the name of the API key.", "key"
        )
        self.refused = self._counter(
            "requests_refused",
            "Requests not taken, by reason: unauthorized, forbidden, requests_per_minute, "
            "tokens_per_minute, concurrency, queue_full, draining.",
            "reason",
        )
        self.timeouts = self._counter(
            "request_timeouts", "Generation requests ended by the time limit."
        )
        self.log_lines_lost = self._counter(
            "log_lines_lost",
            "Requests whose log line could not be written, such as to a full disk.",
        )
        self.tokens = self._counter(
            "tokens", "Tokens by channel: prompt, reasoning, answer.", "channel"
        )
        self.finished = self._counter(
            "completions", "Completions by how they ended: stop, length, aborted, …", "finish"
        )
        self.truncated = self._counter(
            "reasoning_truncated", "Completions that ended inside the thought."
        )
        self.traces_lost = self._counter(
            "traces_lost", "Traces that could not be kept: the disk is full, or the queue."
        )
        self.running = Gauge(
            "thinkgate_running_requests",
            "Generation requests the engine is working on, those in its queue included.",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "thinkgate_waiting_requests",
            "Generation requests taken whose first token has not come: the queue.",
            registry=self.registry,
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token."
        )
        self.first_answer = self._histogram(
            "time_to_first_answer_seconds",
            "From the request's arrival to the first text of its answer.",
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Between two tokens of a completion: its mean, one observation per request.",
            BETWEEN,
        )
        self.duration = self._histogram(
            "generation_seconds", "From the request's arrival to its last token."
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"thinkgate_{name}", words, labels, registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"thinkgate_{name}", words, buckets=buckets, registry=self.registry)
