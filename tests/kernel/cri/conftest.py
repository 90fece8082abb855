"""One daemon and one image for all tests of a module, and a client that leaves nothing of a test's pods."""

from collections.abc import Iterator

import pytest

from support.cri_client import CriClient
from support.daemon_process import DaemonProcess


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """One for all tests."""
    with DaemonProcess() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(daemon: DaemonProcess) -> CriClient:
    """One image for all tests."""
    return CriClient(daemon)


@pytest.fixture
def cri(client: CriClient) -> Iterator[CriClient]:
    """Leaves nothing of a test's pods."""
    client.logs.mkdir(exist_ok=True)
    with client:
        yield client
