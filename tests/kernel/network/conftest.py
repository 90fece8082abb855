"""A host of one's own: a network namespace that takes this machine's place, and pods in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pod_networks import Lab, own_host


@pytest.fixture
def host() -> Iterator[None]:
    with own_host():
        yield


@pytest.fixture
def lab(host: None, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()
