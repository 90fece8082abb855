"""A host of one's own: a network namespace that takes this machine's place, and pods in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys.namespaces import Clone, setns, unshare
from pyctrd.network.netns import set_loopback_up
from support.pod_networks import Lab


@pytest.fixture
def host() -> Iterator[None]:
    """Let this thread, and those that it starts, be in a new network namespace."""
    own_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    unshare(Clone.NEWNET)
    try:
        set_loopback_up()
        yield
    finally:
        setns(own_fd, Clone.NEWNET)
        os.close(own_fd)


@pytest.fixture
def lab(host: None, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()
