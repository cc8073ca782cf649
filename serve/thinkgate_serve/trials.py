"""Trying what clients want texts held to, before the engine compiles it beside everybody's tokens.

Owns what a shape may cost. Some take minutes to compile, or to be read seconds at each request, so
each new one is tried in a process of its own within limits (`trial_process.py`). What was found
is remembered.
"""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from thinkgate_serve.trial_process import Finding, serve_trials

__all__ = ["Finding", "Trials", "TrialsFailed"]

KEPT = 10_000
"""Findings remembered."""
START_SECONDS = 120
RETRY_SECONDS = 0.05


class TrialsFailed(Exception):
    """A shape could not be tried, through no fault of its own."""


class Trials:
    """The process for one engine's shapes, from its start on; belongs to one event loop."""

    def __init__(self, config: Any, folder: Path, cpu_seconds: int, *, fork: bool) -> None:
        """`config` is vLLM's; `fork` says that this process may still be forked, which spares the
        new one the imports."""
        self._address = folder / f"trials-{id(self):x}"
        self._arguments = (str(self._address), config, cpu_seconds)
        self._cpu_seconds = cpu_seconds
        self._trials: dict[bytes, asyncio.Task[Finding]] = {}
        """By the shape's digest, those that go on and those that are over."""
        self._process = self._start("fork" if fork else "spawn")

    async def find(self, shape: Mapping[str, Any]) -> Finding:
        """What is wrong with `{"schema": …}` or with one of xgrammar's structural tags, as JSON.

        It is tried once for all who ask, and to the end also when they no longer wait.
        """
        text = json.dumps(shape)
        key = sha256(text.encode()).digest()
        trial = self._trials.get(key)
        if trial is None:
            trial = self._trials[key] = asyncio.create_task(self._try(text))
            trial.add_done_callback(partial(self._keep, key))
        return await asyncio.shield(trial)

    def stop(self) -> None:
        """End the process, and every trial in it."""
        self._process.kill()
        self._process.join()
        self._address.unlink(missing_ok=True)

    def _keep(self, key: bytes, trial: asyncio.Task[Finding]) -> None:
        if trial.cancelled() or trial.exception() is not None:
            self._trials.pop(key, None)
        elif len(self._trials) > KEPT:
            del self._trials[next(iter(self._trials))]  # the oldest

    async def _try(self, text: str) -> Finding:
        reader, writer = await self._connect()
        line = b""
        try:
            with suppress(ConnectionError):
                writer.write(text.encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
        finally:
            writer.close()
        if line:
            return Finding(*json.loads(line))
        if not self._process.is_alive():
            raise TrialsFailed("the process that tries schemas has died")
        return Finding(
            f"compiling it takes more than {self._cpu_seconds} s of processor time, or more memory "
            "than this server gives ('--max-schema-seconds'); what costs most is counting: "
            "'maxLength', 'maxItems', '{0,200}' in patterns"
        )

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._process.is_alive():
            self._address.unlink(missing_ok=True)
            self._process = self._start("spawn")
        given_up = time.monotonic() + START_SECONDS
        while True:
            try:
                return await asyncio.open_unix_connection(self._address)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if not self._process.is_alive() or time.monotonic() > given_up:
                    raise TrialsFailed("the process that tries schemas does not start") from error
            await asyncio.sleep(RETRY_SECONDS)

    def _start(self, method: str) -> Any:
        context: Any = multiprocessing.get_context(method)
        process = context.Process(
            target=serve_trials, args=self._arguments, name="schema-trials", daemon=True
        )
        process.start()
        return process
