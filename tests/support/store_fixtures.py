"""The stores as a fixture, apart from `support.stores`, which programs without pytest import."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stores import Stores, open_stores


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """The stores of a new root."""
    with open_stores(tmp_path) as opened:
        yield opened
