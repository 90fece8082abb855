"""Who gets in: tokens, upgrades, TLS, limits, and the end of the server."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pyctr_wire.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming.remote_command import Streams
from pyctrd.cri.streaming.requests import Attach, Exec, PortForward, Request
from pyctrd.cri.streaming.server import StreamingServer
from pyctrd.cri.streaming.tokens import LIMIT
from pyctrd.offload import Offload
from support.streaming_clients import (
    LocalPorts,
    ScriptedSessions,
    header,
    request,
    until,
    upgrade_to_spdy,
    within_deadline,
)

V4 = "v4.channel.k8s.io"
COMMAND = Exec("c1", ("true",), Streams(stdout=True))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (Exec("", ("sh",), Streams(stdout=True)), "missing required container_id"),
        (Attach("", Streams(stdout=True)), "missing required container_id"),
        (PortForward(""), "missing required pod_sandbox_id"),
        (PortForward("p1", (0,)), "port 0 is not between 1 and 65535"),
        (Exec("c1", ("sh",), Streams(tty=True, stdout=True, stderr=True)), "tty and stderr cannot both be true"),
        (Exec("c1", ("sh",), Streams()), "one of stdin, stdout, or stderr must be set"),
        (Exec("c1", (), Streams(stdout=True)), "missing required cmd"),
    ],
)
async def test_what_makes_no_sense_gets_no_url(server: StreamingServer, wrong: Request, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        await server.url(wrong)


async def answer(url: str, headers: Sequence[tuple[str, str]], method: str = "POST") -> tuple[int, str]:
    client = await request(url, headers, method=method)
    client.writer.close()
    return client.status, client.head


async def test_a_url_works_once(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(COMMAND)
    assert (await answer(url, upgrade_to_spdy(V4)))[0] == 101
    assert (await answer(url, upgrade_to_spdy(V4), "GET"))[0] == 404
    assert (await answer(url[:-8] + "AAAAAAAA", upgrade_to_spdy(V4)))[0] == 404


async def test_a_url_works_for_what_it_was_given_for(server: StreamingServer) -> None:
    url = await server.url(COMMAND)
    assert (await answer(url.replace("/exec/", "/attach/"), upgrade_to_spdy(V4)))[0] == 404
    url = await server.url(COMMAND)
    assert (await answer(url.replace("/exec/", "/"), upgrade_to_spdy(V4)))[0] == 404
    assert (await answer(await server.url(COMMAND), upgrade_to_spdy(V4), "DELETE"))[0] == 405


async def test_upgrades_that_cannot_be(server: StreamingServer) -> None:
    assert (await answer(await server.url(COMMAND), []))[0] == 400
    assert (await answer(await server.url(COMMAND), [("Connection", "Upgrade"), ("Upgrade", "h2c")]))[0] == 400
    assert (await answer(await server.url(COMMAND), upgrade_to_spdy()))[0] == 400
    status, head = await answer(await server.url(COMMAND), upgrade_to_spdy("v9.channel.k8s.io"))
    assert status == 403
    known = [V4, "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
    assert header(head, "X-Accepted-Stream-Protocol-Versions") == known
    status, head = await answer(await server.url(COMMAND), upgrade_to_spdy("v9.channel.k8s.io, v3.channel.k8s.io", V4))
    assert (status, header(head, "X-Stream-Protocol-Version")) == (101, ["v3.channel.k8s.io"])


async def test_a_thousand_may_wait(server: StreamingServer) -> None:
    urls = [await server.url(COMMAND) for _ in range(LIMIT)]
    with pytest.raises(ResourceExhausted):
        await server.url(COMMAND)
    assert (await answer(urls[500], upgrade_to_spdy(V4)))[0] == 101
    assert await server.url(COMMAND)


async def test_strangers_are_few(server: StreamingServer) -> None:
    """Who has no token cannot take all file descriptors: connections beyond a number are closed at once."""
    url = urlsplit(await server.url(COMMAND))
    connections = [await asyncio.open_connection(url.hostname, url.port) for _ in range(200)]
    ended = [asyncio.ensure_future(reader.read()) for reader, _ in connections]
    await until(lambda: sum(future.done() for future in ended) >= 72)
    assert sum(future.done() for future in ended) == 72
    for _, writer in connections:
        writer.close()
    await asyncio.gather(*ended, return_exceptions=True)

    async def served() -> bool:
        try:
            return (await answer(await server.url(COMMAND), upgrade_to_spdy(V4)))[0] == 101
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async with asyncio.timeout(30):
        while not await served():
            await asyncio.sleep(0.05)


async def test_garbage_instead_of_a_request(server: StreamingServer) -> None:
    url = urlsplit(await server.url(COMMAND))
    for garbage in (bytes(100), b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 100_000):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(garbage)
        writer.write_eof()
        await within_deadline(reader.read())
        writer.close()
    assert (await answer(await server.url(COMMAND), upgrade_to_spdy(V4)))[0] == 101


async def test_the_end_of_the_server_cuts_sessions_off(server: StreamingServer, sessions: ScriptedSessions) -> None:
    url = await server.url(COMMAND)
    client = await request(url, upgrade_to_spdy(V4))
    for kind in ("error", "stdout"):
        await client.open(kind)
    await within_deadline(sessions.started.wait())
    await within_deadline(server.close())
    assert sessions.sessions[0].abandoned.is_set()
    await within_deadline(client.receive())
    client.writer.close()
    with pytest.raises(OSError):
        await request(url, [])


async def test_the_end_of_the_server_can_wait_for_sessions(server: StreamingServer, sessions: ScriptedSessions) -> None:
    client = await request(await server.url(COMMAND), upgrade_to_spdy(V4))
    error = await client.open("error")
    await client.open("stdout")
    await within_deadline(sessions.started.wait())
    async with asyncio.TaskGroup() as group:
        closing = group.create_task(server.close(30))
        receiving = group.create_task(client.receive())
        sessions.sessions[0].end(0)
        assert await error.read_all() == b'{"metadata":{},"status":"Success"}'
        client.writer.close()
        await within_deadline(receiving)
        await within_deadline(closing)


async def test_an_address_that_cannot_be_had(sessions: ScriptedSessions, ports: LocalPorts, offload: Offload) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = StreamingServer(Streaming(port=port), sessions, ports, offload)
        with pytest.raises(Unavailable, match=f"cri.streaming cannot listen on 127.0.0.1:{port}"):
            await server.url(COMMAND)
    assert f":{port}/exec/" in await server.url(COMMAND)  # tried anew
    await server.close()


class TestTls:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Streaming:
        certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-keyout", key, "-out", certificate, "-days", "1", "-subj", "/CN=node"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
        return Streaming(certificate=str(certificate), key=str(key))

    async def test_speaks_spdy(self, server: StreamingServer, sessions: ScriptedSessions, settings: Streaming) -> None:
        sessions.script = lambda session: session.end(4)
        url = await server.url(COMMAND)
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=settings.certificate)
        client = await request(url, upgrade_to_spdy(V4), context=context)
        error = await client.open("error")
        await client.open("stdout")
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(client.receive())
            assert b'"message":"4"' in await error.read_all()
            client.writer.close()
            await within_deadline(receiving)

    async def test_says_which_file_is_wrong(
        self, settings: Streaming, sessions: ScriptedSessions, ports: LocalPorts, offload: Offload
    ) -> None:
        Path(settings.key).write_text("no key")
        server = StreamingServer(settings, sessions, ports, offload)
        with pytest.raises(FailedPrecondition, match=r"cri\.streaming cannot use .*tls\.crt and .*tls\.key"):
            await server.url(COMMAND)
