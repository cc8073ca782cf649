"""Several addresses of one model: a worker asks one of them, and the next where that fails.

Owns which addresses are still asked. It knows failures of requests, and nothing of samples.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from thinkgate.console import warn
from thinkgate.errors import EndpointError
from thinkgate_clients.client import AsyncClient, Failure, RequestFailed

__all__ = ["GIVE_UP_AFTER", "Replicas"]

GIVE_UP_AFTER = 20
"""This many requests failing inside a server in a row, none succeeding, and it is asked no more."""


class Replicas:
    """The addresses; one that is down, or only fails, is given up for the rest of the run."""

    def __init__(self, urls: Iterable[str]) -> None:
        self.urls = tuple(dict.fromkeys(urls))
        self._failed_in_a_row: Counter[str] = Counter()
        self._gone: set[str] = set()

    def order(self, worker: int, clients: Sequence[AsyncClient]) -> list[AsyncClient]:
        """The clients to try, the worker's own first: workers spread evenly over what is left."""
        left = [c for c in clients if c.base_url not in self._gone] or list(clients)
        first = worker % len(left)
        return left[first:] + left[:first]

    def answered(self, url: str) -> None:
        """A request succeeded."""
        self._failed_in_a_row[url] = 0

    def failed(self, url: str, error: RequestFailed) -> None:
        """A request failed; returns where another address may succeed.

        Raises `error` itself where every address would say the same, EndpointError when no address
        is left.
        """
        if error.failure in (Failure.REFUSED, Failure.REJECTED):
            raise error
        self._failed_in_a_row[url] += 1
        count, known = self._failed_in_a_row[url], url in self._gone
        fails = error.failure is Failure.FAILING
        if not fails or count >= GIVE_UP_AFTER:
            self._gone.add(url)
        why = f"{count} requests in a row failed: {error}" if fails else str(error)
        if len(self._gone) == len(self.urls):
            raise EndpointError(why) from error
        if url in self._gone and not known:
            warn(f"{why}; the other addresses do its work")
