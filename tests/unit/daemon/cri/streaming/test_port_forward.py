"""Port-forward over SPDY, over channels of a WebSocket, and over SPDY in a WebSocket."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from pyctr_wire.errors import UnknownError
from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming import spdy_frames as frames
from pyctrd.cri.streaming.requests import PortForward
from pyctrd.cri.streaming.server import StreamingServer
from support.patience import DEADLINE
from support.streaming_clients import (
    LocalPorts,
    SpdyClient,
    SpdyStream,
    request,
    until,
    upgrade_to_spdy,
    within_deadline,
)


class Pod:
    """A port that answers each line in capitals, and says bye at the end of what it hears."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while (line := await reader.readline()) and line != b"quit\n":
                writer.write(line.upper())
                await writer.drain()
            writer.write(b"bye\n")
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    pod = Pod()
    server = await asyncio.start_server(pod.serve, "127.0.0.1", 0)
    pod.port = server.sockets[0].getsockname()[1]
    yield pod
    server.close()
    await until(lambda: pod.open == 0)


@asynccontextmanager
async def forwarding(server: StreamingServer, sandbox_id: str = "p1") -> AsyncIterator[SpdyClient]:
    client = await request(await server.url(PortForward(sandbox_id)), upgrade_to_spdy("portforward.k8s.io"))
    assert client.status == 101, client.head
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(client.receive())
        yield client
        client.writer.close()
        await within_deadline(receiving)


async def open_pair(client: SpdyClient, port: int, request_id: str = "0") -> tuple[SpdyStream, SpdyStream]:
    error = await client.open("error", port=str(port), requestid=request_id, fin=True)
    return error, await client.open("data", port=str(port), requestid=request_id)


async def test_connections_side_by_side(server: StreamingServer, pod: Pod, ports: LocalPorts) -> None:
    async with forwarding(server, "p1") as client:
        pairs = [await open_pair(client, pod.port, str(number)) for number in range(20)]
        for number, (_, data) in enumerate(pairs):
            await data.write(f"hello {number}\n".encode())
        for number, (_, data) in enumerate(pairs):
            await data.read_until(f"HELLO {number}\n".encode())
        assert pod.connections == 20
        error, data = pairs[7]
        await data.write(b"quit\n")
        assert await data.read_all() == b"HELLO 7\nbye\n"
        assert await error.read_all() == b""
        await pairs[8][1].write(b"still here\n")
        await pairs[8][1].read_until(b"STILL HERE\n")
    await until(lambda: pod.open == 0)
    assert ports.asked == [("p1", pod.port)] * 20


async def test_the_answer_to_all_that_was_said_comes_back(server: StreamingServer, pod: Pod) -> None:
    async with forwarding(server) as client:
        error, data = await open_pair(client, pod.port)
        await data.write(b"one\ntwo\n")
        await data.close()
        assert await data.read_all() == b"ONE\nTWO\nbye\n"
        assert await error.read_all() == b""


async def test_a_pair_may_have_no_id(server: StreamingServer, pod: Pod) -> None:
    async with forwarding(server) as client:
        await client.open("error", port=str(pod.port))
        data = await client.open("data", port=str(pod.port))
        await data.write(b"quit\n")
        assert await data.read_all() == b"bye\n"


async def test_what_fails_concerns_one_connection(server: StreamingServer, pod: Pod, ports: LocalPorts) -> None:
    async with forwarding(server, "p1") as client:
        _, good = await open_pair(client, pod.port, "1")
        await good.write(b"a\n")
        await good.read_until(b"A\n")
        ports.error = UnknownError("failed to connect to localhost:81")
        error, data = await open_pair(client, 81, "2")
        told = await error.read_all()
        assert told == b"error forwarding port 81 to pod p1, uid : failed to connect to localhost:81"
        await data.read_all()
        assert data.was_reset
        await good.write(b"b\n")
        await good.read_until(b"B\n")


async def test_a_stream_that_is_reset_closes_the_pod_s_connection(server: StreamingServer, pod: Pod) -> None:
    async with forwarding(server) as client:
        _, data = await open_pair(client, pod.port)
        await data.write(b"a\n")
        await data.read_until(b"A\n")
        await client.send(frames.reset(data.stream_id, frames.ResetStatus.CANCEL))
        await until(lambda: pod.open == 0)


async def test_a_pod_that_resets_while_the_client_sends_ends_only_that(server: StreamingServer, pod: Pod) -> None:
    def reset_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    resetting = await asyncio.start_server(reset_at_once, "127.0.0.1", 0)
    async with resetting, forwarding(server) as client:
        for number in range(10):
            _, data = await open_pair(client, resetting.sockets[0].getsockname()[1], f"r{number}")
            while not data.ended.is_set():
                await data.write(bytes(10_000))
                await asyncio.sleep(0)
        _, good = await open_pair(client, pod.port, "good")
        await good.write(b"quit\n")
        assert await good.read_all() == b"bye\n"


@pytest.mark.parametrize("port", ["", "0", "65536", "x", "-1", "1" * 50, "²"])
async def test_a_port_that_is_none_is_refused(server: StreamingServer, ports: LocalPorts, port: str) -> None:
    async with forwarding(server) as client:
        stream = await client.open("data", port=port, requestid="1")
        await stream.read_all()
        assert stream.was_reset
    assert not ports.asked


async def test_two_halves_that_do_not_fit_are_refused(server: StreamingServer, ports: LocalPorts) -> None:
    async with forwarding(server) as client:
        streams = [
            await client.open("data", port="80", requestid="1"),
            await client.open("data", port="80", requestid="1"),
            await client.open("data", port="80", requestid="2"),
            await client.open("error", port="81", requestid="2"),
            await client.open("stdin", port="80", requestid="3"),
        ]
        for stream in streams:
            await stream.read_all()
            assert stream.was_reset
    assert not ports.asked


class TestHalfAPair:
    @pytest.fixture
    def settings(self) -> Streaming:
        return Streaming(creation_timeout=0.2)

    async def test_is_given_up(self, server: StreamingServer, pod: Pod) -> None:
        async with forwarding(server) as client:
            half = await client.open("data", port=str(pod.port), requestid="1")
            await half.read_all()
            assert half.was_reset
            _, whole = await open_pair(client, pod.port, "1")
            await whole.write(b"quit\n")
            assert await whole.read_all() == b"bye\n"


async def test_over_channels(server: StreamingServer, pod: Pod) -> None:
    url = await server.url(PortForward("p1", (pod.port, pod.port)))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=("v4.channel.k8s.io",)) as socket,
    ):
        port = struct.pack("<H", pod.port)
        for channel in range(4):
            assert await socket.receive_bytes(timeout=DEADLINE) == bytes([channel]) + port
        await socket.send_bytes(b"\x02second\n")
        assert await socket.receive_bytes(timeout=DEADLINE) == b"\x02SECOND\n"
        await socket.send_bytes(b"\x00quit\n")
        assert await socket.receive_bytes(timeout=DEADLINE) == b"\x00bye\n"
        await socket.send_bytes(b"\x02quit\n")
        assert await socket.receive_bytes(timeout=DEADLINE) == b"\x02bye\n"
        assert (await socket.receive(timeout=DEADLINE)).type is aiohttp.WSMsgType.CLOSE


async def test_what_fails_is_told_on_the_error_channel(server: StreamingServer, ports: LocalPorts) -> None:
    ports.error = UnknownError("nobody listens")
    url = await server.url(PortForward("p1", (81,)))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=("v4.base64.channel.k8s.io",)) as socket,
    ):
        messages = [await socket.receive_str(timeout=DEADLINE) for _ in range(3)]
        assert [message[0] for message in messages] == ["0", "1", "1"]
        assert (await socket.receive(timeout=DEADLINE)).type is aiohttp.WSMsgType.CLOSE


async def test_through_a_tunnel(server: StreamingServer, pod: Pod) -> None:
    """SPDY's bytes as messages, cut anywhere."""
    url = await server.url(PortForward("p1"))
    encoder, decoder = frames.Encoder(), frames.Decoder()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=("SPDY/3.1+portforward.k8s.io",)) as socket,
    ):
        assert socket.protocol == "SPDY/3.1+portforward.k8s.io"
        sent = encoder.syn_stream(1, {"streamtype": "error", "port": str(pod.port), "requestid": "0"})
        sent += encoder.syn_stream(3, {"streamtype": "data", "port": str(pod.port), "requestid": "0"})
        sent += frames.data(3, b"hello\nquit\n")
        for start in range(0, len(sent), 7):
            await socket.send_bytes(sent[start : start + 7])
        answer, ended = b"", set[int]()
        while ended != {1, 3}:
            for frame in decoder.feed(await socket.receive_bytes(timeout=DEADLINE)):
                if isinstance(frame, frames.Data):
                    answer += frame.data
                    ended |= {frame.stream_id} if frame.fin else set()
        assert answer == b"HELLO\nbye\n"
