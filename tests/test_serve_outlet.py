"""What a request's outlet gives is what vLLM's own queue gives, whoever is ahead of whom."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from thinkgate_serve.inbox import process_on_arrival
from thinkgate_serve.outlet import Outlet, Part

REQUEST = "r"


class Llm:
    """vLLM's output processor without an engine behind it."""

    log_stats: bool
    output_handler: Any
    renderer: Any
    engine_core: Any
    _run_output_handler: Any

    def __init__(self, tokenizer: Any, interval: int = 1, logprobs: int | None = None) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

        delta = RequestOutputKind.DELTA
        self.output_processor = OutputProcessor(
            tokenizer, log_stats=False, stream_interval=interval
        )
        self.queue = RequestOutputCollector(delta, REQUEST)
        self.output_processor.add_request(
            EngineCoreRequest(
                request_id=REQUEST,
                prompt_token_ids=tokenizer.encode("hi"),
                mm_features=None,
                sampling_params=SamplingParams(output_kind=delta, logprobs=logprobs),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                external_req_id=REQUEST,
            ),
            None,
            queue=self.queue,
        )
        self.aborted: list[str] = []

    async def abort(self, request_id: str, *, internal: bool) -> None:
        assert internal
        self.aborted += self.output_processor.abort_requests([request_id], internal=True)

    def generated(self, ids: list[int], *, last: bool, logprobs: bool = False) -> None:
        """The engine process has made these tokens."""
        import numpy as np
        from vllm.v1.engine import EngineCoreOutput, FinishReason
        from vllm.v1.outputs import LogprobsLists

        found = None
        if logprobs:
            column = np.array(ids).reshape(-1, 1)
            found = LogprobsLists(column, -1.0 * column, np.zeros(len(ids), dtype=int))
        finish = FinishReason.LENGTH if last else None
        output = EngineCoreOutput(REQUEST, list(ids), new_logprobs=found, finish_reason=finish)
        self.output_processor.process_outputs([output])


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


TEXT = "<think>ünï ☂☂</think>çà ☂ and on"
CHUNKS = st.lists(st.integers(1, 4), min_size=1, max_size=30)


def chunked(ids: list[int], sizes: list[int]) -> list[list[int]]:
    chunks: list[list[int]] = []
    for size in sizes:
        chunks, ids = [*chunks, ids[:size]] if ids else chunks, ids[size:]
    return [*chunks, ids] if ids else chunks


@given(sizes=CHUNKS, early=st.integers(0, 3), reads=st.lists(st.booleans()))
def test_all_that_was_generated_comes_out_in_order(
    tokenizer: Any, sizes: list[int], early: int, reads: list[bool]
) -> None:
    ids: list[int] = tokenizer.encode(TEXT, add_special_tokens=False)
    chunks = chunked(ids, sizes)

    async def run() -> list[Part]:
        llm = Llm(tokenizer, logprobs=0)
        pending = list(enumerate(chunks))

        def one() -> None:
            at, chunk = pending.pop(0)
            llm.generated(chunk, last=at == len(chunks) - 1, logprobs=True)

        for _ in range(min(early, len(pending))):  # before anybody could take it
            one()
        outlet = Outlet(llm, llm.queue)
        parts: list[Part] = []
        for ahead in reads:
            if not pending:
                break
            if ahead:
                one()
                continue
            reader = asyncio.create_task(outlet.next())
            await asyncio.sleep(0)
            one()
            parts.append(await reader)
        while pending:
            one()
        while not parts or parts[-1][2] is None:
            parts.append(await outlet.next())
        await outlet.close()
        assert llm.aborted == []
        return parts

    texts, token_ids, finishes, logprobs = zip(*asyncio.run(run()), strict=True)
    assert [i for some in token_ids for i in some] == ids
    assert "".join(texts) == TEXT
    assert list(finishes) == [None] * (len(finishes) - 1) + ["length"]
    assert [list(one) for some in logprobs for one in some or ()] == [[i] for i in ids]


def test_several_tokens_at_once_when_vllm_is_told_so(tokenizer: Any) -> None:
    async def run() -> list[int]:
        llm = Llm(tokenizer, interval=3)
        outlet = Outlet(llm, llm.queue)
        sizes: list[int] = []
        for n in range(9):
            reader = asyncio.create_task(outlet.next())
            await asyncio.sleep(0)
            llm.generated([65 + n], last=n == 8)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if reader.done():
                sizes.append(len(reader.result()[1]))
            else:
                reader.cancel()
        return sizes

    assert asyncio.run(run()) == [1, 3, 3, 2]


def test_who_leaves_before_the_end_aborts(tokenizer: Any) -> None:
    async def run() -> None:
        llm = Llm(tokenizer)
        outlet = Outlet(llm, llm.queue)
        llm.generated([65], last=False)
        assert (await outlet.next())[1] == [65]
        await outlet.close()
        assert llm.aborted == [REQUEST]
        assert (await outlet.next())[2] == "abort"

    asyncio.run(run())


@pytest.mark.parametrize("reading", [True, False])
def test_an_engine_that_dies_is_heard_of(tokenizer: Any, reading: bool) -> None:
    async def run() -> None:
        llm = Llm(tokenizer)
        outlet = Outlet(llm, llm.queue)
        reader = asyncio.create_task(outlet.next())
        if reading:
            await asyncio.sleep(0)
        llm.output_processor.propagate_error(RuntimeError("gone"))
        with pytest.raises(RuntimeError, match="gone"):
            await reader
        await outlet.close()
        assert llm.aborted == []

    asyncio.run(run())


def test_outputs_that_cannot_be_processed_end_every_request_and_the_engine(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        llm = Llm(tokenizer)
        llm.log_stats, llm.output_handler = False, None
        llm.renderer = SimpleNamespace(mm_processor_cache=None)
        llm.engine_core = SimpleNamespace(_ensure_output_queue_task=lambda: None)
        process_on_arrival(llm)
        llm._run_output_handler()
        llm._run_output_handler()  # as vLLM does at every request
        outlet = Outlet(llm, llm.queue)
        reader = asyncio.create_task(outlet.next())
        await asyncio.sleep(0)
        assert not llm.output_handler.done()
        llm.engine_core.outputs_queue.put_nowait(SimpleNamespace(outputs=[None], timestamp=0.0))
        with pytest.raises(AttributeError):
            await reader
        assert llm.output_handler.done()

    asyncio.run(run())
    assert "could not be processed" in caplog.text
