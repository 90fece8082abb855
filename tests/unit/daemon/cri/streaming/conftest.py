"""A streaming server on the loopback, with containers that do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import uvloop

from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming.server import StreamingServer
from pyctrd.offload import Offload
from support.streaming_clients import LocalPorts, ScriptedSessions


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the standard loop and on the daemon's: a connection is taken over from either's transport."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def offload() -> Iterator[Offload]:
    threads = Offload(2)
    yield threads
    threads.close()


@pytest.fixture
def sessions() -> ScriptedSessions:
    return ScriptedSessions()


@pytest.fixture
def ports() -> LocalPorts:
    return LocalPorts()


@pytest.fixture
def settings() -> Streaming:
    return Streaming()


@pytest.fixture
async def server(
    settings: Streaming, sessions: ScriptedSessions, ports: LocalPorts, offload: Offload
) -> AsyncIterator[StreamingServer]:
    streaming = StreamingServer(settings, sessions, ports, offload)
    yield streaming
    await streaming.close()
