"""Where processes are among the cgroups of both versions, and moving oneself. Source: cgroups(7), cpuset(7)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.namespaces import in_user_namespace
from pyctr_sys.proc_lines import read_lines

_ROOT: Final = Path("/sys/fs/cgroup")
_CPUSET: Final = ("cpuset.cpus", "cpuset.mems")
_SHARES: Final = (("cpu.shares", 1024), ("cpu.weight", 100))  # version 1, version 2


def cgroups_of(pid: int) -> dict[str, str]:
    """Return a process's cgroup in each hierarchy, as `by_controller` does. Raises OSError if it has ended."""
    return by_controller(read_lines(f"/proc/{pid}/cgroup"))


def by_controller(lines: Iterable[str]) -> dict[str, str]:
    """Return the cgroup by controller that the lines of a process's file name.

    Version 2 is "", a hierarchy of version 1 without a controller is called as it is mounted, "name=systemd". Source:
    cgroups(7), /proc/PID/cgroup.
    """
    found: dict[str, str] = {}
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


class Hierarchy(NamedTuple):
    """A mounted cgroup hierarchy, and the cgroup of this process in it."""

    mount_point: Path
    is_v2: bool
    own: str


def own_hierarchies() -> list[Hierarchy]:
    """Return the hierarchies below /sys/fs/cgroup, with where this process is in each. Raises OSError.

    Root of a user namespace gets those in which its own cgroup has been delegated to it: mostly version 2, or none.
    """
    found = read_hierarchies(read_lines("/proc/self/mountinfo"), read_lines("/proc/self/cgroup"))
    return [one for one in found if is_delegated(one)] if in_user_namespace() else found


def is_delegated(hierarchy: Hierarchy) -> bool:
    """Whether this process may make cgroups where it is, or was before it went into a leaf of ours."""
    directory = f"{hierarchy.mount_point}{base_of(hierarchy.own)}"
    return all(os.access(path, os.W_OK) for path in (directory, f"{directory}/cgroup.procs"))


def base_of(own: str) -> str:
    """Return the cgroup that the daemon was started in, given its own or a shim's; "" is the root."""
    for leaf in ("/daemon", "/shims"):
        own = own.removesuffix(leaf)
    return own.rstrip("/")


def read_hierarchies(mountinfo: list[str], own_cgroups: list[str]) -> list[Hierarchy]:
    """Return the hierarchies that the lines of two files describe. Source: proc_pid_mountinfo(5), cgroups(7)."""
    own = by_controller(own_cgroups)
    found = []
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split(" ")[4])
        kind, _source, options = after.split(" ")[:3]
        if not mount_point.is_relative_to(_ROOT) or kind not in ("cgroup", "cgroup2"):
            continue
        is_v2 = kind == "cgroup2"
        names = [""] if is_v2 else options.split(",")
        path = next((own[name] for name in names if name in own), "/")
        found.append(Hierarchy(mount_point, is_v2, path))
    return found


def enter(hierarchy: Hierarchy, path: str) -> None:
    """Move this process, which must have one thread, to the cgroup `path`, made if it is not there.

    Raises OSError, whose filename is the cgroup's.
    """
    directory = hierarchy.mount_point / path.strip("/")
    _make(hierarchy.mount_point, directory)
    # v1: `tasks` moves the writing thread alone, which is all of us and cheap: cgroup.procs waits 10 to 20 ms.
    (directory / ("cgroup.procs" if hierarchy.is_v2 else "tasks")).write_text("0")


def weigh(hierarchy: Hierarchy, path: str, times: int) -> None:
    """Give the cgroup `path` so many times the usual share of the processors.

    Nothing happens where the hierarchy does not share them out, and where somebody has chosen another share. Raises
    OSError. Source: kernel Documentation/scheduler/sched-design-CFS.rst, admin-guide/cgroup-v2.rst "cpu.weight".
    """
    for name, usual in _SHARES:
        file = hierarchy.mount_point / path.strip("/") / name
        if file.exists() and file.read_text().strip() == str(usual):
            file.write_text(str(times * usual))


def _make(mount_point: Path, directory: Path) -> None:
    """Make the cgroup; a new cpuset of v1 takes nobody until it has cpus and memory nodes, so inherit them."""
    if directory == mount_point or directory.is_dir():
        return
    _make(mount_point, directory.parent)
    directory.mkdir(exist_ok=True)
    for name in _CPUSET:
        if (directory / name).exists() and not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())
