"""Where shims live, decided from the daemon's own cgroup."""

from pathlib import Path

import pytest

from pyctr_shim import placement
from pyctr_shim.placement import shims_below
from pyctr_sys.cgroups import Hierarchy


@pytest.mark.parametrize(
    ("own", "shims"),
    [
        ("/", "/shims"),
        ("/system.slice/pyctrd.service", "/system.slice/pyctrd.service/shims"),
        ("/system.slice/pyctrd.service/daemon", "/system.slice/pyctrd.service/shims"),
        ("/system.slice/pyctrd.service/shims", "/system.slice/pyctrd.service/shims"),
    ],
)
def test_shims_live_beside_the_daemon(own: str, shims: str) -> None:
    assert shims_below(own) == shims


def test_what_cannot_be_entered_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchies = [Hierarchy(tmp_path / "gone", True, "/"), Hierarchy(tmp_path / "gone", False, "/")]
    monkeypatch.setattr(placement, "own_hierarchies", lambda: hierarchies)
    placement.leave_the_daemon()
    placement.enter("/x")
