"""What libzmq sends reaches one reader, whole and in order, however the stream is cut."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from thinkgate_serve.inbox import GREETING, READY, Inbox, receiving_directly

Scenario = Callable[[Inbox, str], Awaitable[None]]
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


def with_inbox(run: Callable[[Any], None], scenario: Scenario) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/inbox"
            inbox = Inbox(path)
            try:
                await asyncio.wait_for(scenario(inbox, path), 30)
            finally:
                inbox.close()

    run(main())


@contextmanager
def pushing(path: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as sender:
        sender.linger = 0
        sender.connect(f"ipc://{path}")
        yield sender


@RUNNERS
def test_bursts_and_single_messages_arrive_in_order(run: Callable[[Any], None]) -> None:
    async def scenario(inbox: Inbox, path: str) -> None:
        sent = 0
        with pushing(path) as sender:
            for burst in [1, 1, 500, 1, 3, 200, 1]:
                waiting = asyncio.create_task(inbox.recv_multipart())
                await asyncio.sleep(0.01)  # it waits before anything comes
                for _ in range(burst):
                    sender.send_multipart([b"head", str(sent).encode()])
                    sent += 1
                got = [await waiting]
                got += [await inbox.recv_multipart() for _ in range(burst - 1)]
                first = sent - burst
                assert got == [[b"head", str(first + n).encode()] for n in range(burst)]

    with_inbox(run, scenario)


@RUNNERS
def test_frames_of_every_size_from_several_peers(run: Callable[[Any], None]) -> None:
    sizes = [0, 1, 255, 256, 70_000, 5_000_000]

    async def scenario(inbox: Inbox, path: str) -> None:
        with pushing(path) as one, pushing(path) as other:
            for size in sizes:
                one.send(b"1" * size)
                other.send_multipart([b"2" * size, b"", b"2"])
            got = [await inbox.recv_multipart() for _ in range(2 * len(sizes))]
        ones = [message for message in got if len(message) == 1]
        others = [message for message in got if len(message) == 3]
        assert ones == [[b"1" * size] for size in sizes]
        assert others == [[b"2" * size, b"", b"2"] for size in sizes]
        assert got[0][0].buffer == got[0][0]  # as vLLM asks pyzmq's frames

    with_inbox(run, scenario)


@RUNNERS
def test_what_is_sent_before_anybody_receives_is_kept(run: Callable[[Any], None]) -> None:
    async def scenario(inbox: Inbox, path: str) -> None:
        with pushing(path) as sender:
            sender.send(b"early")
            await asyncio.sleep(0.1)
            assert await inbox.recv_multipart() == [b"early"]

    with_inbox(run, scenario)


@RUNNERS
def test_a_reader_that_was_cancelled_loses_nothing(run: Callable[[Any], None]) -> None:
    async def scenario(inbox: Inbox, path: str) -> None:
        with pushing(path) as sender:
            for number in range(20):
                reader = asyncio.create_task(inbox.recv_multipart())
                await asyncio.sleep(0.001)
                reader.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reader
                sender.send(str(number).encode())
                assert await inbox.recv_multipart() == [str(number).encode()]

    with_inbox(run, scenario)


def test_closing_hangs_up(tmp_path: Path) -> None:
    async def main() -> None:
        inbox = Inbox(str(tmp_path / "inbox"))
        waiting = asyncio.create_task(inbox.recv_multipart())
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "inbox"))
        await reader.readexactly(len(GREETING))
        inbox.close()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(str(tmp_path / "inbox"))
        waiting.cancel()

    asyncio.run(main())


def written(message: list[bytes]) -> bytes:
    """As libzmq writes it; it may also write short frames as long ones."""
    out = bytearray()
    for at, frame in enumerate(message):
        more = at + 1 < len(message)
        out += (
            bytes([more, len(frame)])
            if len(frame) < 256
            else bytes([more | 2]) + len(frame).to_bytes(8, "big")
        )
        out += frame
    return bytes(out)


@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=3), min_size=1, max_size=6),
    st.lists(st.integers(0, 2000), max_size=6),
)
def test_it_does_not_matter_where_the_stream_is_cut(
    messages: list[list[bytes]], cuts: list[int]
) -> None:
    ping = b"\x04\x07\x04PING\x00\x00"  # a command between messages is none of them
    stream = GREETING + b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH"
    stream += ping.join(map(written, messages))
    ends = sorted({*(cut for cut in cuts if cut < len(stream)), len(stream)})

    async def main(path: str) -> None:
        inbox = Inbox(path)
        first = asyncio.create_task(inbox.recv_multipart())
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_unix_connection(path)
        for begin, end in zip([0, *ends], ends, strict=False):
            writer.write(stream[begin:end])
            await asyncio.sleep(0.001)
        got = [await first] + [await inbox.recv_multipart() for _ in messages[1:]]
        assert got == messages
        assert await reader.readexactly(len(GREETING) + len(READY)) == GREETING + READY
        writer.close()
        inbox.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(f"{folder}/inbox"))


def test_only_sockets_that_receive_on_this_machine_are_replaced(tmp_path: Path) -> None:
    from vllm.v1.engine import core_client

    async def main() -> None:
        context = zmq.asyncio.Context()
        path = f"ipc://{tmp_path}/socket"
        with receiving_directly():
            ours = core_client.make_zmq_socket(context, path, zmq.PULL)
            theirs = core_client.make_zmq_socket(context, "tcp://127.0.0.1:0", zmq.PULL)
        assert ours.getsockopt(zmq.LAST_ENDPOINT) == path.encode()
        assert isinstance(ours.recv_multipart.__self__, Inbox)
        assert theirs.recv_multipart.__self__ is theirs
        for socket in (ours, theirs):
            socket.close(linger=0)
        assert ours.closed and theirs.closed
        context.term()

    asyncio.run(main())
