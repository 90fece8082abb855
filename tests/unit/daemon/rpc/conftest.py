"""The services of metadata, called over a real socket."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from pyctrd.server.listener import Listener
from support.metadata_services import Wired


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[Wired]:
    with ExitStack() as resources:
        yield Wired(tmp_path, resources)


@pytest.fixture
async def channel(tmp_path: Path, wired: Wired) -> AsyncIterator[grpc.aio.Channel]:
    listener = Listener(wired.dispatch, [tmp_path / "s"], uid=-1, gid=-1, connection_age=600)
    await listener.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        yield channel
    await listener.stop(0)
