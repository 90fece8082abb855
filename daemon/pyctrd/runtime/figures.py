"""What a container uses, read from its cgroup: no shim is asked, or woken, for that."""

import os
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_sys import cgroup_counters
from pyctr_sys.cgroups import cgroups_of
from pyctr_wire import cgroup_metrics

_ROOT: Final = "/sys/fs/cgroup"
_SCOPE: Final = ".scope"


def read(pid: int, recorded: str) -> AnyMessage:
    """Return io.containerd.cgroups.v1.Metrics or v2.Metrics of the cgroup that the process `pid` is in.

    A process that has moved itself further down, as a systemd does, is counted where `recorded`, the cgroup that the
    runtime has noted ("" if none), says. Raises OSError if the process has ended, or its cgroup cannot be seen.
    """
    paths = {
        controller: _container(path, recorded)
        for controller, path in cgroups_of(pid).items()
        if not controller.startswith("name=")
    }
    if any(path.startswith("/..") for path in paths.values()):
        raise FileNotFoundError(f"process {pid} is in a cgroup outside of ours")
    unified = paths.pop("", None)
    if paths:
        mounted = {name: f"{_ROOT}/{name}{path}" for name, path in paths.items() if os.path.isdir(f"{_ROOT}/{name}")}
        url, value = cgroup_metrics.of_version_1(cgroup_counters.version_1(lambda name: mounted.get(name, "")))
    elif unified is not None:
        url, value = cgroup_metrics.of_version_2(cgroup_counters.version_2(f"{_ROOT}{unified}"))
    else:
        raise FileNotFoundError(f"process {pid} is in no cgroup")
    return AnyMessage(type_url=url, value=value)


def _container(path: str, recorded: str) -> str:
    """Return the container's own cgroup, given that of a process in it and what was recorded: a path or a scope."""
    if recorded.startswith("/"):
        return recorded if path.startswith(f"{recorded}/") else path
    before, scope, _ = path.partition(f"{_SCOPE}/")
    return f"{before}{_SCOPE}" if recorded and scope else path
