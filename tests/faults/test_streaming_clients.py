"""Clients of exec, attach and port-forward that go away, send garbage or never come: F36 for streams."""

import asyncio
import os
import random
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import runtime_pb2
from support.cri_client import CriClient
from support.daemon_process import DaemonProcess
from support.streaming_clients import SpdyClient, request, until, upgrade_to_spdy

pytestmark = pytest.mark.root

_CLIENTS = 40
_LISTENING = "0A"


def exec_url(cri: CriClient, container: str, *command: str) -> str:
    asked = runtime_pb2.ExecRequest(container_id=container, cmd=command, stdin=True, stdout=True)
    return cri.runtime.Exec(asked).url


async def leave_early(url: str, steps: int, chance: random.Random) -> None:
    """Do so many steps of an exec, then be gone."""
    client = await request(url, upgrade_to_spdy("v4.channel.k8s.io"))
    try:
        for step in range(steps):
            await _step(client, step, chance)
    except ConnectionError:
        pass  # after garbage
    finally:
        client.writer.transport.abort()


async def _step(client: SpdyClient, step: int, chance: random.Random) -> None:
    match step:
        case 0 | 1 | 2:
            await client.open(("error", "stdin", "stdout")[step])
        case 3:
            await client.streams[3].write(b"data\n" * 100)
        case 4:
            await asyncio.wait_for(client.reader.read(100), 30)
        case 5:
            await client.send(chance.randbytes(200))


def connections(daemon: DaemonProcess) -> list[str]:
    """Return the daemon's TCP connections, without the socket that listens."""
    inodes = set()
    for path in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(path))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if f"socket:[{row[9]}]" in inodes and row[3] != _LISTENING]


def open_files(daemon: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


async def test_nothing_is_left_of_clients_that_leave(daemon: DaemonProcess, cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    chance = random.Random(4)

    async def come_and_go() -> int:
        """Return how many files the daemon has open once all have left."""
        urls = [exec_url(cri, container, "cat") for _ in range(_CLIENTS)]
        await asyncio.gather(*(leave_early(url, number % 7, chance) for number, url in enumerate(urls)))
        await until(lambda: b"cat" not in cri.exec(container, "ps").stdout)
        await until(lambda: not connections(daemon))
        return open_files(daemon)

    before = await come_and_go()  # starts threads, whose connections to the database stay
    for _ in range(3):
        after = await come_and_go()
    assert after < before + 10


@pytest.mark.usefixtures("leaving_nothing")
def test_urls_that_nobody_fetches_are_few(daemon: DaemonProcess, cri: CriClient) -> None:
    container = cri.run(cri.run_pod(), "sleep", "1000")
    urls = {exec_url(cri, container, "true") for _ in range(1000)}
    assert len(urls) == 1000
    with pytest.raises(grpc.RpcError) as failure:
        exec_url(cri, container, "true")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert cri.exec(container, "true").exit_code == 0
    daemon.restart()  # which forgets them


@pytest.mark.usefixtures("leaving_nothing")
async def test_a_container_survives_the_end_of_the_daemon_under_a_session(
    daemon: DaemonProcess, cri: CriClient
) -> None:
    """The session ends with the daemon; its command reads the end of its input, as when the client had left."""
    container = cri.run(cri.run_pod(), "sleep", "1000")
    client = await request(exec_url(cri, container, "cat"), upgrade_to_spdy("v4.channel.k8s.io"))
    streams = [await client.open(kind) for kind in ("error", "stdin", "stdout")]
    await streams[1].write(b"hello\n")
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(client.receive())
        await streams[2].read_until(b"hello\n")
        daemon.kill()
        async with asyncio.timeout(30):
            await receiving
    client.writer.close()
    daemon.start()
    await until(lambda: cri.status(container).state == runtime_pb2.CONTAINER_RUNNING)
    await until(lambda: b"cat" not in cri.exec(container, "ps").stdout)
