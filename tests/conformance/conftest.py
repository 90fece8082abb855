"""What several modules of this directory share."""

from collections.abc import Iterator

import pytest

from support.nerdctl import Nerdctl, leaving_nothing, nerdctl_with_image


@pytest.fixture(scope="module")
def loaded() -> Iterator[Nerdctl]:
    """nerdctl on a daemon of its own, with one image."""
    with nerdctl_with_image() as nerdctl:
        yield nerdctl


@pytest.fixture
def nerdctl(loaded: Nerdctl) -> Iterator[Nerdctl]:
    """nerdctl, with one image; a test leaves nothing else."""
    with leaving_nothing(loaded):
        yield loaded
