"""Exec and attach over WebSockets: every sub-protocol, with aiohttp's client."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming.remote_command import Output, Streams
from pyctrd.cri.streaming.requests import Attach, Exec
from pyctrd.cri.streaming.server import StreamingServer
from support.patience import DEADLINE
from support.streaming_clients import ScriptedSession, ScriptedSessions, until, within_deadline

ALL = Streams(stdin=True, stdout=True, stderr=True)
TERMINAL = Streams(tty=True, stdin=True, stdout=True)
SUCCESS = b'{"metadata":{},"status":"Success"}'
JSON_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
TEXT_PROTOCOLS = ("channel.k8s.io", "base64.channel.k8s.io", "")


class Client:
    """Channels, coded as the sub-protocol demands."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._text = "base64" in (socket.protocol or "")

    async def send(self, channel: int, data: bytes) -> None:
        if self._text:
            await self.socket.send_str(f"{channel}{base64.b64encode(data).decode()}")
        else:
            await self.socket.send_bytes(bytes([channel]) + data)

    async def receive(self) -> tuple[int, bytes] | None:
        """Return a channel and its bytes, None at the end."""
        message = await self.socket.receive(timeout=DEADLINE)
        if message.type is aiohttp.WSMsgType.TEXT and self._text:
            return int(message.data[0]), base64.b64decode(message.data[1:], validate=True)
        if message.type is aiohttp.WSMsgType.BINARY and not self._text:
            return message.data[0], message.data[1:]
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
        return None

    async def receive_all(self) -> list[tuple[int, bytes]]:
        messages = []
        while (message := await self.receive()) is not None:
            messages.append(message)
        return messages


@asynccontextmanager
async def connected(url: str, *protocols: str, method: str = "GET") -> AsyncIterator[Client]:
    timeout = aiohttp.ClientWSTimeout(ws_close=DEADLINE)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=protocols, method=method, timeout=timeout) as socket,
    ):
        yield Client(socket)


@pytest.mark.parametrize("protocol", [*JSON_PROTOCOLS, *TEXT_PROTOCOLS])
async def test_every_sub_protocol(server: StreamingServer, sessions: ScriptedSessions, protocol: str) -> None:
    url = await server.url(Exec("c1", ("cat",), ALL))
    async with connected(url, *([protocol] if protocol else [])) as client:
        assert client.socket.protocol == (protocol or None)
        assert await client.receive() == (1, b"")  # tells old clients that the connection is there
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        await client.send(0, b"\0hello\xff")
        await until(lambda: session.stdin == b"\0hello\xff")
        session.write(Output.STDOUT, b"\0out\xff")
        session.write(Output.STDERR, b"err")
        session.end(5)
        out, err, status = await client.receive_all()
        assert (out, err) == ((1, b"\0out\xff"), (2, b"err"))
        assert status[0] == 3
        if protocol in JSON_PROTOCOLS:
            assert json.loads(status[1])["details"]["causes"] == [{"reason": "ExitCode", "message": "5"}]
        else:
            assert status[1] == b"command terminated with non-zero exit code: 5"
        assert client.socket.close_code == 1000
    assert session.abandoned.is_set()
    assert not session.stdin_closed.is_set()


@pytest.mark.parametrize(("protocol", "told"), [("v4.channel.k8s.io", [(3, SUCCESS)]), ("channel.k8s.io", [])])
async def test_success_is_told(
    server: StreamingServer, sessions: ScriptedSessions, protocol: str, told: list[tuple[int, bytes]]
) -> None:
    sessions.script = lambda session: session.end(0)
    async with connected(await server.url(Attach("c1", Streams(stderr=True))), protocol, method="POST") as client:
        assert await client.receive_all() == [(2, b""), *told]


async def test_v5_ends_the_input(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("cat",), ALL))
    async with connected(url, "v9.channel.k8s.io", "v5.channel.k8s.io", "v4.channel.k8s.io") as client:
        assert client.socket.protocol == "v5.channel.k8s.io"
        await client.send(0, b"all of it")
        await client.send(255, b"\0")
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        await within_deadline(session.stdin_closed.wait())
        assert session.stdin == b"all of it"
        session.end(0)
        assert await client.receive_all() == [(1, b""), (3, SUCCESS)]


async def test_v4_cannot_end_the_input(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("cat",), ALL))
    async with connected(url, "v4.channel.k8s.io") as client:
        await client.send(255, b"\0")
        await client.send(0, b"more")
        await within_deadline(sessions.started.wait())
        await until(lambda: sessions.sessions[0].stdin == b"more")
        assert not sessions.sessions[0].stdin_closed.is_set()


async def test_a_terminal_has_sizes(server: StreamingServer, sessions: ScriptedSessions) -> None:
    async with connected(await server.url(Exec("c1", ("sh",), TERMINAL)), "v5.channel.k8s.io") as client:
        await client.send(4, b'{"Width":132,"Height":43}')
        await client.send(9, b"a channel that there is not")
        await within_deadline(sessions.started.wait())
        await within_deadline(sessions.sessions[0].resized.wait())
        assert sessions.sessions[0].sizes == [(132, 43)]


async def test_pings_are_answered(server: StreamingServer, sessions: ScriptedSessions) -> None:
    async with connected(await server.url(Exec("c1", ("sh",), TERMINAL)), "v5.channel.k8s.io") as client:
        client.socket._autoping = False
        await client.socket.ping(b"still there?")
        assert (await client.socket.receive(timeout=DEADLINE)).data == b"\1"
        message = await client.socket.receive(timeout=DEADLINE)
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"still there?")


async def test_a_client_that_leaves_abandons_its_session(server: StreamingServer, sessions: ScriptedSessions) -> None:
    async with connected(await server.url(Exec("c1", ("sleep", "9"), ALL)), "v5.channel.k8s.io") as client:
        await within_deadline(sessions.started.wait())
        response = client.socket._response.connection
        assert response is not None
        assert response.transport is not None
        response.transport.abort()
    await within_deadline(sessions.sessions[0].abandoned.wait())


async def test_a_message_may_come_in_fragments_but_not_be_huge(
    server: StreamingServer, sessions: ScriptedSessions
) -> None:
    async with connected(await server.url(Exec("c1", ("cat",), ALL)), "v5.channel.k8s.io") as client:
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        await client.send(0, bytes(500_000))
        await until(lambda: len(session.stdin) == 500_000)
        await client.send(0, bytes(2 << 20))
        await within_deadline(session.abandoned.wait())
        assert len(session.stdin) == 500_000


async def test_text_that_is_not_base64_ends_the_session(server: StreamingServer, sessions: ScriptedSessions) -> None:
    async with connected(await server.url(Exec("c1", ("cat",), ALL)), "v4.base64.channel.k8s.io") as client:
        await within_deadline(sessions.started.wait())
        await client.socket.send_str("0not base64!")
        assert await client.receive_all() == [(1, b"")]
        await within_deadline(sessions.sessions[0].abandoned.wait())
        assert client.socket.close_code == aiohttp.WSCloseCode.INVALID_TEXT


async def test_a_slow_client_holds_the_process_up(server: StreamingServer, sessions: ScriptedSessions) -> None:
    chunk, count = bytes(64 << 10), 1000

    def script(session: ScriptedSession) -> None:
        for _ in range(count):
            session.write(Output.STDOUT, chunk)
        session.end(0)

    sessions.script = script
    async with connected(await server.url(Exec("c1", ("zeros",), Streams(stdout=True))), "v5.channel.k8s.io") as client:
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        seen = -1
        while seen != session.yielded:
            seen = session.yielded
            await asyncio.sleep(0.3)
        assert 0 < session.yielded < len(chunk) * count // 2
        *outputs, status = await client.receive_all()
        assert sum(len(data) for _, data in outputs) == len(chunk) * count
        assert status == (3, SUCCESS)


async def test_only_unknown_sub_protocols_are_refused(server: StreamingServer) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
        async with connected(await server.url(Exec("c1", ("cat",), ALL)), "v9.channel.k8s.io"):
            pass
    assert raised.value.status == 403


class TestSilence:
    @pytest.fixture
    def settings(self) -> Streaming:
        return Streaming(idle_timeout=0.5)

    async def test_ends_a_session(self, server: StreamingServer, sessions: ScriptedSessions) -> None:
        async with connected(await server.url(Exec("c1", ("sleep", "9"), ALL)), "v5.channel.k8s.io") as client:
            assert await client.receive_all() == [(1, b"")]
        assert sessions.sessions[0].abandoned.is_set()
