"""Where the daemon goes."""

import pytest

from pyctrd.placement import daemon_below


@pytest.mark.parametrize(
    ("own", "target"),
    [
        ("/system.slice/pyctrd.service", "/system.slice/pyctrd.service/daemon"),
        ("/system.slice/pyctrd.service/daemon", "/system.slice/pyctrd.service/daemon"),  # started by a predecessor
        ("/", "/daemon"),
    ],
)
def test_the_daemon_goes_below_its_unit_once(own: str, target: str) -> None:
    assert daemon_below(own) == target
