"""A lab for containers, per test."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyctr_sys import stub
from support.oci_bundle import BUSYBOX, Lab
from support.oci_command import Command


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Make containers, and remove what is left of them."""
    if not BUSYBOX.exists():
        pytest.skip("needs /bin/busybox (package busybox-static)")
    # Some containers' users are not root: they must be able to reach their root's parents.
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, stat.S_IMODE(directory.stat().st_mode) | 0o755)  # /tmp stays everybody's
    with suppress(OSError):
        stub.program()  # opened once, and for good
    made = Lab(tmp_path, cgroup=f"/pyctr-test-{uuid.uuid4().hex[:12]}")
    yield made
    made.close()


@pytest.fixture
def oci(lab: Lab) -> Iterator[Command]:
    """Run `pyctr-oci`, and end what it has made."""
    command = Command(lab.base / "state")
    yield command
    command.close()
