"""Whether mounts may travel between this machine and a container."""

import os

import pytest

from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import UnknownError
from pyctrd.cri import host_mounts

LINES = [
    "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw",
    "2 1 0:40 / /private\\040\u00fc rw - tmpfs tmpfs rw",
    "3 1 0:41 / /\udcfc rw shared:2 - tmpfs  rw",
]


@pytest.fixture(autouse=True)
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_mounts, "read_lines", lambda path: LINES)
    monkeypatch.setattr(os.path, "exists", lambda path: True)


def mount(path: str) -> list[runtime_pb2.Mount]:
    return [runtime_pb2.Mount(host_path=path, container_path="/x", propagation=runtime_pb2.PROPAGATION_BIDIRECTIONAL)]


def test_what_is_on_a_shared_mount_may() -> None:
    assert host_mounts.sources(mount("/data")) == {"/data": "/data"}


def test_what_is_on_a_private_one_may_not_whatever_it_is_called() -> None:
    with pytest.raises(UnknownError, match="not a shared mount"):
        host_mounts.sources(mount("/private \u00fc/data"))
