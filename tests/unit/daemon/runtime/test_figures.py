"""Where the daemon looks for what a container uses."""

import os

import pytest

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from pyctrd.runtime import figures

_KINDS: dict[str, type[v1.Metrics | v2.Metrics]] = {
    "io.containerd.cgroups.v1.Metrics": v1.Metrics,
    "io.containerd.cgroups.v2.Metrics": v2.Metrics,
}


@pytest.mark.parametrize(
    ("path", "recorded", "counted"),
    [
        ("/web/1", "/web/1", "/web/1"),
        ("/web/1/init.scope", "/web/1", "/web/1"),  # a systemd as init
        ("/web/10", "/web/1", "/web/10"),  # moved to another place by somebody
        ("/elsewhere", "", "/elsewhere"),  # made by another runtime
        ("/system.slice/pyctr-1.scope", "system.slice:pyctr:1", "/system.slice/pyctr-1.scope"),
        ("/system.slice/pyctr-1.scope/init.scope", "system.slice:pyctr:1", "/system.slice/pyctr-1.scope"),
    ],
)
def test_a_process_that_has_moved_further_down_is_counted_with_its_container(
    path: str, recorded: str, counted: str
) -> None:
    assert figures._container(path, recorded) == counted


def test_our_own() -> None:
    found = figures.read(os.getpid(), "")

    metrics = _KINDS[found.type_url].FromString(found.value)
    assert metrics.ByteSize()


def test_who_has_ended_uses_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        figures.read(1 << 22, "")


def test_who_is_in_no_cgroup_of_ours_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen in ({"": "/../other"}, {"name=systemd": "/x"}):
        monkeypatch.setattr(figures, "cgroups_of", lambda _pid, seen=seen: seen)
        with pytest.raises(FileNotFoundError):
            figures.read(1, "")
