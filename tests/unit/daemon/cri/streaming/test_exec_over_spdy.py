"""Exec and attach as kubectl and crictl did them first: a real server, a client of our own."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyctr_wire.errors import NotFound
from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming import spdy_frames as frames
from pyctrd.cri.streaming.remote_command import Output, Streams
from pyctrd.cri.streaming.requests import Attach, Exec
from pyctrd.cri.streaming.server import StreamingServer
from pyctrd.cri.streaming.spdy import MAX_STREAMS
from support.streaming_clients import (
    ScriptedSession,
    ScriptedSessions,
    SpdyClient,
    SpdyStream,
    header,
    request,
    until,
    upgrade_to_spdy,
    within_deadline,
)

V4 = "v4.channel.k8s.io"
ALL = Streams(stdin=True, stdout=True, stderr=True)
SUCCESS = b'{"metadata":{},"status":"Success"}'


@asynccontextmanager
async def connected(url: str, *versions: str, opening: tuple[str, ...] = ()) -> AsyncIterator[SpdyClient]:
    """Upgrade a connection, and read what comes until the block is left."""
    client = await request(url, upgrade_to_spdy(*versions or (V4,)))
    assert client.status == 101, client.head
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(client.receive())
        for kind in opening:
            await client.open(kind)
        yield client
        client.writer.close()
        await within_deadline(receiving)


def opened(client: SpdyClient) -> list[SpdyStream]:
    return list(client.streams.values())


async def test_what_a_process_does_comes_out_and_its_exit_code_last(
    server: StreamingServer, sessions: ScriptedSessions
) -> None:
    def script(session: ScriptedSession) -> None:
        session.write(Output.STDOUT, b"out\n")
        session.write(Output.STDERR, b"err\n")
        session.write(Output.STDOUT, b"put\n")
        session.end(3)

    sessions.script = script
    url = await server.url(Exec("c1", ("sh", "-c", "x"), ALL))
    assert url.startswith("http://127.0.0.1:")
    async with connected(url, opening=("error", "stdin", "stdout", "stderr")) as client:
        error, stdin, stdout, stderr = opened(client)
        assert await stdout.read_all() == b"out\nput\n"
        assert await stderr.read_all() == b"err\n"
        status = json.loads(await error.read_all())
        assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
        assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}
        await within_deadline(client.gone_away.wait())
        assert stdin.accepted.is_set()
        await within_deadline(sessions.sessions[0].abandoned.wait())
        await within_deadline(client.ended.wait())  # the server closes its side
    assert sessions.commands == [("c1", ("sh", "-c", "x"))]
    assert header(client.head, "X-Stream-Protocol-Version") == [V4]
    assert header(client.head, "Upgrade") == ["SPDY/3.1"]


async def test_input_goes_in_and_its_end_too(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("cat",), ALL))
    async with connected(url, opening=("error", "stdin", "stdout", "stderr")) as client:
        error, stdin, stdout, _ = opened(client)
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        await stdin.write(b"hello ")
        await until(lambda: session.stdin == b"hello ")
        session.write(Output.STDOUT, b"heard")
        await stdout.read_until(b"heard")
        await stdin.write(b"world")
        await stdin.close()
        await within_deadline(session.stdin_closed.wait())
        assert session.stdin == b"hello world"
        session.end(0)
        assert await error.read_all() == SUCCESS


async def test_a_terminal_has_sizes_and_no_stderr(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("sh",), Streams(tty=True, stdin=True, stdout=True)))
    async with connected(url, opening=("error", "stdin", "stdout", "resize")) as client:
        error, _, _, resize = opened(client)
        await resize.write(b'{"Width":80,"Height":24}{"Width":1')
        await within_deadline(sessions.started.wait())
        (session,) = sessions.sessions
        await until(lambda: session.sizes == [(80, 24)])
        await resize.write(b'20,"Height":50}\n{"Width":0,"Height":50} nonsense')
        await until(lambda: session.sizes == [(80, 24), (120, 50)])
        session.end(0)
        assert await error.read_all() == SUCCESS


@pytest.mark.parametrize(
    ("version", "exit_code", "told"),
    [
        ("v3.channel.k8s.io", 0, b""),
        ("v2.channel.k8s.io", 7, b"command terminated with non-zero exit code: 7"),
        ("channel.k8s.io", 0, b""),
        (V4, 0, SUCCESS),
    ],
)
async def test_older_versions_tell_the_outcome_as_text(
    server: StreamingServer, sessions: ScriptedSessions, version: str, exit_code: int, told: bytes
) -> None:
    sessions.script = lambda session: session.end(exit_code)
    url = await server.url(Exec("c1", ("true",), Streams(stdout=True)))
    async with connected(url, "v9.channel.k8s.io", version, "v2.channel.k8s.io", opening=("error", "stdout")) as client:
        assert header(client.head, "X-Stream-Protocol-Version") == [version]
        error, _ = opened(client)
        assert await error.read_all() == told


async def test_what_cannot_start_is_told_on_the_error_stream(
    server: StreamingServer, sessions: ScriptedSessions
) -> None:
    sessions.error = NotFound('container "c1" in namespace "k8s.io"')
    url = await server.url(Attach("c1", Streams(stdout=True)))
    async with connected(url, opening=("error", "stdout")) as client:
        error, stdout = opened(client)
        status = json.loads(await error.read_all())
        assert status["reason"] == "InternalError"
        assert status["code"] == 500
        assert status["message"] == 'Internal error occurred: container "c1" in namespace "k8s.io": not found'
        assert await stdout.read_all() == b""


async def test_streams_that_break_off_are_told(server: StreamingServer, sessions: ScriptedSessions) -> None:
    sessions.script = lambda session: session.fail(NotFound("the shim"))
    url = await server.url(Attach("c1", Streams(stdout=True)))
    async with connected(url, opening=("error", "stdout")) as client:
        assert json.loads(await opened(client)[0].read_all())["message"].endswith("the shim: not found")
        await within_deadline(sessions.sessions[0].abandoned.wait())


async def test_pings_are_answered_also_before_streams_are_opened(
    server: StreamingServer, sessions: ScriptedSessions
) -> None:
    async with connected(await server.url(Exec("c1", ("sh",), Streams(stdout=True)))) as client:
        await client.send(frames.ping(1) + frames.ping(2) + frames.ping(3))  # an even one is no client's
        await until(lambda: client.pongs == [1, 3])
    assert not sessions.sessions


async def test_a_client_that_leaves_abandons_its_session(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("sleep", "1000"), ALL))
    async with connected(url, opening=("error", "stdin", "stdout", "stderr")) as client:
        await within_deadline(sessions.started.wait())
        assert not sessions.sessions[0].abandoned.is_set()
        client.writer.transport.abort()
    await within_deadline(sessions.sessions[0].abandoned.wait())


async def test_streams_beyond_those_asked_for_are_refused(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("true",), Streams(stdout=True)))
    async with connected(url, opening=("stdin", "error", "error", "nonsense", "stdout")) as client:
        stdin, error, second, nonsense, _ = opened(client)
        await within_deadline(sessions.started.wait())
        for stream in (stdin, second, nonsense):
            await stream.read_all()
            assert stream.was_reset
        sessions.sessions[0].end(0)
        assert await error.read_all() == SUCCESS


async def test_a_slow_client_holds_the_process_up(server: StreamingServer, sessions: ScriptedSessions) -> None:
    """What it does not take is not read from the process either: nothing piles up here."""
    chunk, count = bytes(64 << 10), 1000

    def script(session: ScriptedSession) -> None:
        for _ in range(count):
            session.write(Output.STDOUT, chunk)
        session.end(0)

    sessions.script = script
    client = await request(
        await server.url(Exec("c1", ("cat", "/dev/zero"), Streams(stdout=True))), upgrade_to_spdy(V4)
    )
    error, stdout = await client.open("error"), await client.open("stdout")
    await within_deadline(sessions.started.wait())
    (session,) = sessions.sessions
    # The kernel's buffers take some megabytes; then nothing moves although nobody has told it to stop.
    seen = -1
    while seen != session.yielded:
        seen = session.yielded
        await asyncio.sleep(0.3)
    assert 0 < session.yielded < len(chunk) * count // 2
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(client.receive())
        assert len(await stdout.read_all()) == len(chunk) * count
        assert await error.read_all() == SUCCESS
        client.writer.close()
        await within_deadline(receiving)


async def test_a_process_that_takes_no_input_holds_the_client_up(
    server: StreamingServer, sessions: ScriptedSessions
) -> None:
    sessions.script = lambda session: session.takes_stdin.clear()
    url = await server.url(Exec("c1", ("sleep", "1000"), ALL))
    async with connected(url, opening=("error", "stdin", "stdout", "stderr")) as client:
        error, stdin, _, _ = opened(client)
        chunk, count = bytes(1 << 20), 40

        async def send_all() -> None:
            for _ in range(count):
                await stdin.write(chunk)

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_all())
            await within_deadline(sessions.started.wait())
            (session,) = sessions.sessions
            done, _ = await asyncio.wait((sending,), timeout=1)
            assert not done
            session.takes_stdin.set()
            await within_deadline(sending)
        await until(lambda: len(session.stdin) == len(chunk) * count)
        session.end(0)
        assert await error.read_all() == SUCCESS


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
        bytes(1000),
        b"\x80\x03\x00\x01\x00\x00\x00\x10" + bytes(16),
        b"\x80\x03\x00\x01\x00\xff\xff\xff" + bytes(1000),
        frames.data(4, b"data of a stream of ours"),
        frames.Encoder().syn_reply(1, {}),
        frames.Encoder().syn_stream(2, {}),
    ],
)
async def test_garbage_ends_the_connection(server: StreamingServer, garbage: bytes) -> None:
    async with connected(await server.url(Exec("c1", ("sh",), ALL))) as client:
        await client.send(garbage)
        await within_deadline(client.ended.wait())
        assert client.gone_away.is_set()


async def test_streams_are_limited(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(Exec("c1", ("sh",), Streams(stdout=True)))
    async with connected(url, opening=("error", "stdout")) as client:
        await within_deadline(sessions.started.wait())
        for _ in range(MAX_STREAMS + 10):  # nobody asks for more once the command runs
            await client.open("stdin")
        await until(lambda: opened(client)[-1].was_reset)
        assert [stream.was_reset for stream in opened(client)].count(True) == 12
        for stream in opened(client)[2:]:  # those that were reset by the client, and that nobody has seen, count too
            await client.send(frames.reset(stream.stream_id, frames.ResetStatus.CANCEL))
        more = [await client.open("stdin") for _ in range(3)]
        await until(lambda: more[2].was_reset)
        assert [stream.was_reset for stream in more] == [False, False, True]
        sessions.sessions[0].end(0)
        assert await opened(client)[0].read_all() == SUCCESS


class TestSilence:
    @pytest.fixture
    def settings(self) -> Streaming:
        return Streaming(idle_timeout=0.5)

    async def test_ends_a_session(self, server: StreamingServer, sessions: ScriptedSessions) -> None:
        url = await server.url(Exec("c1", ("sleep", "1000"), Streams(stdout=True)))
        async with connected(url, opening=("error", "stdout")) as client:
            await within_deadline(client.ended.wait())
        assert sessions.sessions[0].abandoned.is_set()


class TestStreamsThatDoNotCome:
    @pytest.fixture
    def settings(self) -> Streaming:
        return Streaming(creation_timeout=0.2)

    async def test_end_the_connection(self, server: StreamingServer, sessions: ScriptedSessions) -> None:
        url = await server.url(Exec("c1", ("sh",), Streams(stdout=True, stderr=True)))
        async with connected(url, opening=("error", "stdout")) as client:
            await within_deadline(client.ended.wait())
        assert not sessions.sessions
