"""How much may be asked at once and per minute: admission of generation requests.

Owns counting what is in flight, the queue's length and each key's rates. It knows nothing of HTTP
beyond the wording of refusals, and nothing of what a request says.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from thinkgate_serve.auth import ApiKey

__all__ = ["Admission", "Limiter", "Reason", "Refusal"]

MINUTE = 60.0
RETRY_SECONDS = 1
"""When to come back if only the other requests know."""


class Reason(StrEnum):
    """Why a request was not taken."""

    REQUEST_RATE = "requests_per_minute"
    TOKEN_RATE = "tokens_per_minute"
    CONCURRENCY = "concurrency"
    QUEUE = "queue_full"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that must come back later."""

    reason: Reason
    message: str
    retry_after: int
    """Seconds."""

    @property
    def status(self) -> int:
        """429 when the client asked too much, 503 when the server has too much to do."""
        return 503 if self.reason in (Reason.QUEUE, Reason.DRAINING) else 429


class Bucket:
    """`per_minute` of something, saved up for a minute at most. May go below zero: what was used
    is sometimes known only afterwards."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.limit = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at = clock()

    @property
    def level(self) -> float:
        """What may be used now."""
        now = self._clock()
        filled = self._level + (now - self._at) * self.limit / MINUTE
        self._level, self._at = min(float(self.limit), filled), now
        return self._level

    def take(self, amount: float) -> None:
        """Use it, whether it is there or not."""
        self._level = self.level - amount

    def wait(self, amount: float) -> int:
        """Seconds until `amount` may be used, rounded up; 0 is now."""
        missing = amount - self.level
        return math.ceil(missing * MINUTE / self.limit) if missing > 1e-9 else 0


@dataclass(slots=True)
class Account:
    """What one key has used."""

    key: ApiKey | None
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0


@dataclass(slots=True)
class Admission:
    """A request that was taken; `Limiter.release` ends it."""

    account: Account
    waiting: bool = True
    """No token has come yet: it is in the queue, or its prompt is being read."""
    released: bool = field(default=False)


class Limiter:
    """Takes requests or refuses them. Not thread-safe: it belongs to the event loop."""

    def __init__(self, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_queue = max_queue
        self.in_flight = 0
        self.waiting = 0
        self.leaving = False
        """Load balancers are told to send no more; what they still send is taken."""
        self.draining = False
        """Nothing new is taken."""
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def admit(self, key: ApiKey | None) -> Admission | Refusal:
        """Take a request of `key`, or say when to come back. A refused one costs nothing."""
        if self.draining:
            return Refusal(Reason.DRAINING, "the server is shutting down", RETRY_SECONDS)
        account = self._account(key)
        refusal = self._over(account)
        if refusal is not None:
            return refusal
        if self.waiting >= self.max_queue:
            words = f"{self.waiting} requests wait for their first token, no more are taken"
            return Refusal(Reason.QUEUE, words, RETRY_SECONDS)
        if account.requests is not None:
            account.requests.take(1)
        account.running += 1
        self.in_flight += 1
        self.waiting += 1
        return Admission(account)

    def started(self, admission: Admission) -> None:
        """Its first token came; said twice, it counts once."""
        if admission.waiting:
            admission.waiting = False
            self.waiting -= 1

    def used(self, admission: Admission, tokens: int) -> None:
        """Prompt and completion tokens, when known."""
        if admission.account.tokens is not None:
            admission.account.tokens.take(tokens)

    def release(self, admission: Admission) -> None:
        """The request is over; said twice, it counts once."""
        if admission.released:
            return
        self.started(admission)
        admission.released = True
        admission.account.running -= 1
        self.in_flight -= 1

    def headers(self, admission: Admission) -> dict[str, str]:
        """What is left, under OpenAI's header names; nothing for what is not limited."""
        found: dict[str, str] = {}
        account = admission.account
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
                found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
                found[f"x-ratelimit-reset-{name}"] = f"{bucket.wait(bucket.limit)}s"
        return found

    def _account(self, key: ApiKey | None) -> Account:
        """Of one key; requests without keys share one that has no limits."""
        name = key.name if key else ""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(key)
            if key is not None and key.requests_per_minute is not None:
                account.requests = Bucket(key.requests_per_minute, self._clock)
            if key is not None and key.tokens_per_minute is not None:
                account.tokens = Bucket(key.tokens_per_minute, self._clock)
        return account

    def _over(self, account: Account) -> Refusal | None:
        key = account.key
        if key is None:
            return None
        if key.concurrency is not None and account.running >= key.concurrency:
            words = f"key '{key.name}' has {account.running} requests running, its limit"
            return Refusal(Reason.CONCURRENCY, words, RETRY_SECONDS)
        if account.requests is not None and (wait := account.requests.wait(1)):
            words = f"key '{key.name}' may send {account.requests.limit} requests per minute"
            return Refusal(Reason.REQUEST_RATE, words, wait)
        if account.tokens is not None and (wait := account.tokens.wait(1)):
            words = f"key '{key.name}' may use {account.tokens.limit} tokens per minute"
            return Refusal(Reason.TOKEN_RATE, words, wait)
        return None
