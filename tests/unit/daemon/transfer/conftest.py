"""Stores as transfers see them, and a session in them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pyctrd.core.platforms import Platform
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.stores import Session, Stores, session
from support.stores import NS, open_stores
from support.stores import Stores as RealStores
from support.transfers import FakeRepository, HashingDiffer, transfer_stores

HOST = Platform("linux", "amd64")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealStores]:
    with open_stores(tmp_path) as stores:
        yield stores


@pytest.fixture
async def both(real: RealStores) -> AsyncIterator[tuple[Stores, HashingDiffer]]:
    async with transfer_stores(real) as found:
        yield found


@pytest.fixture
def stores(both: tuple[Stores, HashingDiffer]) -> Stores:
    return both[0]


@pytest.fixture
def differ(both: tuple[Stores, HashingDiffer]) -> HashingDiffer:
    return both[1]


@pytest.fixture
async def opened(stores: Stores) -> AsyncIterator[Session]:
    async with session(stores, NS, "") as found:
        yield found


@pytest.fixture
def repository() -> FakeRepository:
    return FakeRepository()


@pytest.fixture
def progress() -> Progress:
    return Progress()
