"""Trying schemas apart: within limits, once each, and by a process that may die."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from thinkgate_serve.trials import Finding, Trials

CPU_SECONDS = 2
COSTLY = {"type": "string", "pattern": f"^{'(.?a?){0,128}' * 6}$"}
"""Grows without end while it is compiled."""

Find = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def trials(gated_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = AsyncEngineArgs(model=str(gated_checkpoint)).create_engine_config()
    trials = Trials(config, tmp_path_factory.mktemp("trials"), CPU_SECONDS, fork=False)
    yield trials
    trials.stop()


@pytest.fixture(scope="module")
def run() -> Iterator[Find]:
    with asyncio.Runner() as runner:
        yield runner.run


def test_what_is_found(trials: Trials, run: Find) -> None:
    assert run(trials.find({"schema": {"type": "integer"}})) == Finding(None)
    assert run(trials.find({"schema": {"type": "word"}})).no_schema
    lost = {"$ref": "#/components/a", "components": {"a": {"type": "word"}}}
    assert run(trials.find({"schema": lost})).no_schema
    unkept = run(trials.find({"schema": {"not": {}}}))
    assert unkept == Finding("at '/' 'not' is not supported")
    slow = {"type": "string", "pattern": f"^{'(a?b?){0,128}' * 400}$"}
    assert "hold up all others" in run(trials.find({"schema": slow})).problem
    assert run(trials.find({"schema": {"type": "string", "format": "date"}})) == Finding(None)
    long = run(trials.find({"schema": {"type": ["no type"] * 50_000}}))
    assert long.no_schema and len(long.problem) < 1100
    assert (
        "counts to 999999999"
        in run(trials.find({"schema": {"type": "string", "pattern": f"a{{{'9' * 5000}}}"}})).problem
    )
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {}}}
    assert run(trials.find(tag)) == Finding(None)
    assert "cannot compile" in run(trials.find(tag | {"format": {"type": "no such"}})).problem


def test_one_that_takes_too_much_is_ended_and_holds_up_no_other(trials: Trials, run: Find) -> None:
    async def beside() -> tuple[list[Finding], bool]:
        costly = [asyncio.create_task(trials.find({"schema": COSTLY})) for _ in range(20)]
        await asyncio.sleep(0.1)
        other = await trials.find({"schema": {"type": "string", "maxLength": 7}})
        still = not any(task.done() for task in costly)
        assert other == Finding(None)
        return await asyncio.gather(*costly), still

    found, still = run(beside())
    assert still
    assert found[0].problem is not None
    assert f"more than {CPU_SECONDS} s of processor time" in found[0].problem
    assert all(finding is found[0] for finding in found)  # it was tried once for all who asked
    assert run(trials.find({"schema": COSTLY})) is found[0]


def test_one_goes_on_when_nobody_waits_for_it(trials: Trials, run: Find) -> None:
    shape = {"schema": COSTLY | {"title": "asked for once and again"}}

    async def asked_again_and_again() -> Finding:
        for _ in range(500):
            with suppress(TimeoutError):
                return await asyncio.wait_for(trials.find(shape), 0.2)
        raise AssertionError("it begins anew each time")

    assert run(asked_again_and_again()).problem is not None


def test_another_process_takes_the_place_of_one_that_died(trials: Trials, run: Find) -> None:
    trials._process.kill()
    trials._process.join()
    assert run(trials.find({"schema": {"type": "string", "minLength": 3}})) == Finding(None)
