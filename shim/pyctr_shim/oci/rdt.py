"""Intel RDT: shares of caches and of memory bandwidth, by the kernel's resctrl file system.

    <resctrl>/<closID>/schemata            what its tasks may use
    <resctrl>/<closID>/tasks               a process joins by writing 0
    <resctrl>/<closID>/mon_groups/<id>/    counters of one container's own

A group of a closID that the spec names belongs to whoever named it; one without is made for the container and
goes with it. Source: OCI runtime specification 1.3, config-linux.md; kernel Documentation/filesystems/resctrl.rst.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.proc_lines import read_lines

_ROOT_GROUP: Final = "/"
_SCHEMATA_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Groups:
    """A container's groups: one that has the limits, and one for its counters or ""."""

    limits: str
    counters: str
    lines: tuple[str, ...]  # of schemata
    shared: bool  # the spec names the group: others may be in it, and it stays

    @property
    def joined(self) -> list[str]:
        """The directories whose tasks file a process is written to, in this order."""
        return [self.limits, *filter(None, [self.counters])]

    @property
    def made(self) -> list[str]:
        """The directories to remove with the container, in this order."""
        return [*filter(None, [self.counters]), *([] if self.shared else [self.limits])]


def plan(spec: Mapping[str, Any] | None, container: str, mountinfo: str = "/proc/self/mountinfo") -> Groups | None:
    """Return which groups a container is to be in, None without linux.intelRdt. Makes nothing.

    Raises OciError where no resctrl is mounted, for a closID that is no name, and where the name of a group of the
    container's own is taken: it is not the container's to remove.
    """
    if spec is None:
        return None
    root = _mount_point(mountinfo)
    if not root:
        raise OciError("linux.intelRdt: no resctrl file system is mounted")
    group = spec.get("closID") or ""
    if group != _ROOT_GROUP and ("/" in group or group in {".", "..", "info", "mon_groups", "mon_data"}):
        raise OciError(f"linux.intelRdt.closID: {group!r} is not the name of a group")
    limits = root if group == _ROOT_GROUP else f"{root}/{group or container}"
    if not group and os.path.exists(limits):
        raise OciError(f"linux.intelRdt: {limits} is there already", errno.EEXIST)
    counters = f"{limits}/mon_groups/{container}" if spec.get("enableMonitoring") else ""
    return Groups(limits, counters, tuple(_lines(spec)), bool(group))


def _mount_point(mountinfo: str) -> str:
    for line in read_lines(mountinfo):
        before, _, after = line.partition(" - ")
        if after.startswith("resctrl "):
            return before.split(" ")[4]
    return ""


def _lines(spec: Mapping[str, Any]) -> list[str]:
    """Return the lines for schemata: the two older fields first, then the general one, which so overrides them."""
    cache, bandwidth = spec.get("l3CacheSchema") or "", spec.get("memBwSchema") or ""
    if bandwidth and (not bandwidth.startswith("MB:") or "\n" in bandwidth):
        raise OciError("linux.intelRdt.memBwSchema: must be one line that starts with MB:")
    lines = [line for line in cache.split("\n") if line and not (bandwidth and line.startswith("MB:"))]
    return [*lines, *filter(None, [bandwidth]), *(spec.get("schemata") or ())]


def make(groups: Groups) -> None:
    """Make the groups, set or compare the limits, and move the calling process in. Raises OciError."""
    with _explained(groups.limits):
        _make_all(groups)
        for directory in groups.joined:
            _write(f"{directory}/tasks", "0")


def enclose(groups: Groups, pids: Callable[[], Iterable[int]]) -> None:
    """Make the groups, and move all threads of processes in that there are. Raises OciError.

    `pids` is asked until none is elsewhere: what is forked meanwhile is where its parent was.
    """
    with _explained(groups.limits):
        _make_all(groups)
        moved: set[int] = set()
        while left := {tid for pid in pids() for tid in _threads(pid)} - _tasks(groups.limits) - moved:
            moved |= left
            for tid in left:
                with suppress(ProcessLookupError):
                    for directory in groups.joined:
                        _write(f"{directory}/tasks", str(tid))


def _make_all(groups: Groups) -> None:
    if not _make_limits(groups):
        _set_limits(groups.limits, groups.lines)
    if groups.counters:
        os.mkdir(groups.counters)


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []  # it has ended


def _tasks(directory: str) -> set[int]:
    """Return the threads in a group, as this PID namespace numbers them."""
    return {int(line) for line in read_lines(f"{directory}/tasks")}


def change(group: str, spec: Mapping[str, Any]) -> None:
    """Set other limits, from linux.intelRdt, for a group that is there. Raises OciError."""
    lines = _lines(spec)
    with _explained(group):
        _set_limits(group, lines)


def _set_limits(group: str, lines: Sequence[str]) -> None:
    if lines:
        _write(f"{group}/schemata", "".join(f"{line}\n" for line in lines))


@contextmanager
def _explained(group: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OciError(f"linux.intelRdt: {error.filename or group}: {error.strerror}", error.errno or 0) from None


def _make_limits(groups: Groups) -> bool:
    """Make the group of the limits. Returns whether it was there, with limits that are the same."""
    if groups.shared and not groups.lines:
        if not os.path.isdir(groups.limits):
            raise OciError(f"linux.intelRdt.closID: there is no {groups.limits}")
        return True
    try:
        os.mkdir(groups.limits)
    except FileExistsError:
        if not groups.shared:
            raise
        with open(f"{groups.limits}/schemata") as file:
            there = _domains(file.read(_SCHEMATA_BYTES).split("\n"))
        if not _domains(groups.lines).items() <= there.items():
            raise OciError(f"linux.intelRdt: {groups.limits} is there and has other limits") from None
        return True
    return False


def _domains(lines: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return schemata by resource and domain: `L3:0=ff;1=0f` has two. Masks lose their leading zeros."""
    found = {}
    for line in lines:
        resource, _, domains = line.strip().partition(":")
        for domain in filter(None, domains.split(";")):
            number, _, value = domain.partition("=")
            found[resource.strip(), number.strip()] = value.strip().lower().lstrip("0")
    return found


def file_to_join(directory: str) -> str:
    """Return the file by writing 0 to which a process joins."""
    return f"{directory}/tasks"


def remove(directories: Iterable[str]) -> None:
    """Remove groups; those that are gone are passed over. Raises OSError."""
    for directory in directories:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
