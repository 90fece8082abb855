"""Stores of a test's own and a differ that works on them with real worker processes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pyctrd.offload import Offload
from support.stores import Stores, open_stores
from support.unpacking import Unpacking


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """The stores of a new root."""
    with open_stores(tmp_path) as opened:
        yield opened


@pytest.fixture
async def unpacking(stores: Stores) -> AsyncIterator[Unpacking]:
    """A differ with those stores."""
    offload = Offload(4)
    opened = Unpacking(stores, offload)
    yield opened
    opened.differ.close()
    offload.close()
