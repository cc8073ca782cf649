"""Messages of another process's socket reach one reader, whole, in order, and without a rest."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio

from thinkgate_serve.inbox import receive_directly

Scenario = Callable[[zmq.Socket[bytes], zmq.asyncio.Socket], Awaitable[None]]
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


def with_sockets(run: Callable[[Any], None], scenario: Scenario) -> None:
    async def main() -> None:
        receiver = zmq.asyncio.Context.instance().socket(zmq.PULL)
        port = receiver.bind_to_random_port("tcp://127.0.0.1")
        receive_directly(receiver)
        with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
            sender.connect(f"tcp://127.0.0.1:{port}")
            await asyncio.wait_for(scenario(sender, receiver), 30)
        receiver.close(linger=0)

    run(main())


@RUNNERS
def test_bursts_and_single_messages_arrive_in_order(run: Callable[[Any], None]) -> None:
    async def scenario(sender: zmq.Socket[bytes], receiver: zmq.asyncio.Socket) -> None:
        sent = 0
        for burst in [1, 1, 500, 1, 3, 200, 1]:
            waiting = asyncio.create_task(receiver.recv_multipart(copy=True))
            await asyncio.sleep(0.01)  # it waits before anything comes
            for _ in range(burst):
                sender.send_multipart([b"head", str(sent).encode()])
                sent += 1
            got = [await waiting]
            got += [await receiver.recv_multipart(copy=True) for _ in range(burst - 1)]
            first = sent - burst
            assert got == [[b"head", str(first + n).encode()] for n in range(burst)]

    with_sockets(run, scenario)


@RUNNERS
def test_a_reader_that_was_cancelled_loses_nothing(run: Callable[[Any], None]) -> None:
    async def scenario(sender: zmq.Socket[bytes], receiver: zmq.asyncio.Socket) -> None:
        for number in range(20):
            reader = asyncio.create_task(receiver.recv_multipart(copy=True))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            sender.send_multipart([str(number).encode()])
            assert await receiver.recv_multipart(copy=True) == [str(number).encode()]

    with_sockets(run, scenario)


@RUNNERS
def test_closing_leaves_the_loop_without_a_reader(run: Callable[[Any], None]) -> None:
    async def scenario(sender: zmq.Socket[bytes], receiver: zmq.asyncio.Socket) -> None:
        sender.send_multipart([b"x"])
        await receiver.recv_multipart(copy=True)
        descriptor = receiver.FD
        assert isinstance(descriptor, int)
        receiver.close(linger=0)
        assert not asyncio.get_running_loop().remove_reader(descriptor)

    with_sockets(run, scenario)
