"""The zygote's side of the pair is played by a small program."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyctr_wire.errors import Unavailable
from pyctrd.runtime import zygote_client
from pyctrd.runtime.zygote_client import ShimRequest, Zygote
from support.runtime_engine import until

# Writes the request's own id to the connection that came with it, and answers with its pid.
PROGRAM = """
import json, os, socket
control = socket.socket(fileno=3)
while True:
    data, fds, _, _ = socket.recv_fds(control, 65536, 1)
    if not data: break
    request = json.loads(data)
    os.write(fds[0], request["id"].encode())
    os.close(fds[0])
    answer = {"error": "out of pids"} if request["id"] == "refused" else {"pid": os.getpid()}
    control.send(json.dumps({"instance": request["instance"], **answer}).encode())
"""


def request(id: str) -> ShimRequest:
    return ShimRequest("default", id, "/b", "/s", "/a", "/t", "/g", "info", instance=f"instance of {id}")


@asynccontextmanager
async def zygote(program: str = PROGRAM) -> AsyncIterator[Zygote]:
    one = Zygote([sys.executable, "-c", program])
    one.spawn()
    serving = asyncio.ensure_future(one.serve())
    await asyncio.sleep(0)
    try:
        yield one
    finally:
        serving.cancel()
        one.close()


async def test_request_carries_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with zygote() as one:
            assert await one.request(request("web"), theirs) == one.pid
            theirs.close()
            assert ours.recv(100) == b"web"
            assert ours.recv(100) == b""


async def test_refusal() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with zygote() as one:
            with pytest.raises(Unavailable, match="out of pids"):
                await one.request(request("refused"), theirs)


async def test_killed_zygote_fails_its_requests_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote_client, "_RESPAWN_PAUSE", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with zygote() as one:
            pid = one.pid
            os.kill(pid, signal.SIGSTOP)
            future = one.request(request("web"), theirs)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Unavailable, match="ended"):
                await future
            await until(lambda: one.pid not in (0, pid))
            assert await one.request(request("again"), theirs) == one.pid


async def test_closing_ends_the_process() -> None:
    async with zygote() as one:
        pid = one.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_no_zygote() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Unavailable):
        Zygote().request(request("web"), theirs)
