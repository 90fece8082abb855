"""Being in another network namespace."""

import threading
from pathlib import Path

import pytest

from pyctrd.network.netns import inside, is_open
from support.pod_networks import NetworkNamespaces

pytestmark = pytest.mark.root


def test_what_is_done_inside_is_done_there(tmp_path: Path) -> None:
    namespaces = NetworkNamespaces(tmp_path)
    path = namespaces.create()
    try:
        devices = inside(path, lambda: Path("/proc/thread-self/net/dev").read_text())
        assert is_open(path)
        assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
        assert Path("/proc/thread-self/net/dev").read_text() != devices
    finally:
        namespaces.close()
    assert not is_open(path)


def test_what_is_no_namespace_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert not is_open(tmp_path / "file")
    assert not is_open(tmp_path / "nothing")
    before = threading.active_count()
    with pytest.raises(OSError, match="Invalid argument"):
        inside(tmp_path / "file", lambda: None)
    assert threading.active_count() == before
