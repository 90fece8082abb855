"""When a shim falls asleep."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim import keeper
from pyctr_shim.identity import Identity
from pyctr_shim.loop import Loop
from pyctr_shim.shim import Shim


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    identity = Identity(
        namespace="ns",
        id="web",
        bundle=str(tmp_path),
        socket=str(tmp_path / "s"),
        attach=str(tmp_path / "a"),
        ttrpc_address="",
        grpc_address="",
        instance="x",
        log_level="info",
    )
    common = keeper.share()
    made = Shim(Loop(common.epoll_fd), identity, "boot", common)
    made._tasks._being_created.add("web")  # so that it has something to keep
    yield made
    for fd in (made._lock_fd, common.notices_fd, common.notify_fd, common.memory_fd):
        os.close(fd)
    made._loop.close()


def test_who_cannot_fall_asleep_tries_more_and_more_seldom_until_another_wakes(shim: Shim) -> None:
    shim._service.under_way = lambda: None  # type: ignore[attr-defined]  # what cannot be written down
    assert [shim._idle() for _ in range(7)] == [3, 6, 12, 24, 48, 60, 60]
    del shim._service.under_way  # type: ignore[attr-defined]
    shim.woken()
    assert shim._loop._idle_seconds == 1.5
    shim._service.under_way = lambda: None  # type: ignore[attr-defined]
    assert shim._idle() == 3
