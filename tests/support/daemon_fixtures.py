"""A daemon for all tests of a module, and what they ask it with; who needs another one has a `daemon` of its own.

Apart from `support.daemon_process`, which programs without pytest import.
"""

import itertools
from collections.abc import Iterator
from typing import Final

import pytest

from support.containers import Containers
from support.cri_client import CriClient
from support.daemon_process import DaemonProcess
from support.footprint import unchanged
from support.pyctr_command import Pyctr, running_pyctr

_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    """One for all tests of a module: a start takes a second or more on a busy machine."""
    with DaemonProcess() as running:
        yield running


@pytest.fixture
def leaving_nothing(daemon: DaemonProcess) -> Iterator[None]:
    """Check that a test leaves nothing; `usefixtures` has it look before and after all others."""
    with unchanged(daemon):
        yield


@pytest.fixture
def containers(daemon: DaemonProcess) -> Iterator[Containers]:
    """Containers by containerd's API, which all are gone afterwards."""
    with Containers(daemon) as client:
        yield client


@pytest.fixture(scope="module")
def cri_client(daemon: DaemonProcess) -> CriClient:
    """One image for all tests of a module."""
    return CriClient(daemon)


@pytest.fixture
def cri(cri_client: CriClient) -> Iterator[CriClient]:
    """Pods by Kubernetes's API, which all are gone afterwards."""
    cri_client.logs.mkdir(exist_ok=True)
    with cri_client:
        yield cri_client


@pytest.fixture(scope="module")
def pyctr(request: pytest.FixtureRequest) -> Iterator[Pyctr]:
    """The command on a daemon of its own, with an image `demo` of the programs that the module lists as PROGRAMS."""
    with running_pyctr(request.module.PROGRAMS) as command:
        yield command


@pytest.fixture
def name(pyctr: Pyctr) -> Iterator[str]:
    """A name for the container of a test; whatever the test leaves under it goes, also if it was renamed NAME-new."""
    name = f"box{next(_numbers)}"
    yield name
    pyctr.run("rm", "-f", name, f"{name}-new")
