"""How an ordinary user gets a user namespace with more ids than his own, and back into it.

Ids beyond one's own are not for everybody to give: newuidmap(1) and newgidmap(1), which are privileged, give those
that /etc/subuid and /etc/subgid grant. Whoever enters a namespace cannot call them any more, so a process that stays
outside does. Source: user_namespaces(7), subuid(5).
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.namespaces import Clone, groups_are_denied, in_user_namespace, setns, unshare

GRANTS: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
MAPPERS: Final = ("newuidmap", "newgidmap")

_NS_GET_PARENT: Final = 0xB702  # source: ioctl_ns(2)
# Waits outside for us to be inside; what it prints is what is wrong.
_SCRIPT: Final = 'read -r go && newuidmap "$0" {uids} && newgidmap "$0" {gids}'


class Range(NamedTuple):
    """A line of uid_map or gid_map."""

    inside: int
    outside: int
    size: int


class CannotEnter(Exception):
    """There is no user namespace to be had; the text says why."""


def granted(lines: Iterable[str], name: str, number: int) -> list[tuple[int, int]]:
    """Return the (first, count) of each range that the lines of a subuid(5) file grant to a user, by name or number."""
    found = []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (name, str(number)) and all(text.isdecimal() for text in fields[1:]):
            first, count = int(fields[1]), int(fields[2])
            if count:
                found.append((first, count))
    return found


def with_own(number: int, ranges: Iterable[tuple[int, int]]) -> list[Range]:
    """Return the map in which the user `number` is root, and the ranges follow from id 1 on."""
    maps = [Range(0, number, 1)]
    for first, count in ranges:
        maps.append(Range(maps[-1].inside + maps[-1].size, first, count))
    return maps


def enter(uids: Sequence[Range], gids: Sequence[Range]) -> None:
    """Move this process, which has one thread, into a new user namespace with these maps, and a mount namespace.

    A map of nothing but one's own id takes no privilege. Raises CannotEnter, after which the process is of no use to
    anybody who wants to go on.
    """
    if _is_own(uids, os.geteuid()) and _is_own(gids, os.getegid()):
        _leave()
        Path("/proc/self/setgroups").write_text("deny")
        for name, maps in (("uid_map", uids), ("gid_map", gids)):
            Path("/proc/self", name).write_text(_words(maps))
        return
    missing = [name for name in MAPPERS if shutil.which(name) is None]
    if missing:
        raise CannotEnter(f"{' and '.join(missing)} cannot be found")
    script = _SCRIPT.format(uids=_words(uids), gids=_words(gids))
    outside = subprocess.Popen(
        ["sh", "-c", script, str(os.getpid())], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _leave()
    except CannotEnter:
        outside.communicate()  # it reads nothing, and ends
        raise
    _, said = outside.communicate("go\n")
    if outside.returncode:
        raise CannotEnter(said.strip() or f"newuidmap or newgidmap ended with {outside.returncode}")


def _is_own(maps: Sequence[Range], number: int) -> bool:
    return len(maps) == 1 and maps[0].size == 1 and maps[0].outside == number


def _leave() -> None:
    """Move into new namespaces, in which we are nobody yet."""
    try:
        unshare(Clone.NEWUSER | Clone.NEWNS)
    except OSError as error:
        raise CannotEnter(f"a user namespace cannot be made: {os.strerror(error.errno or 0)}") from None
    _forget()


def _forget() -> None:
    in_user_namespace.cache_clear()
    groups_are_denied.cache_clear()


def rejoin(pid: int) -> bool:
    """Move this process into the user namespace of `pid`, if that was made by our user, and a new mount namespace.

    Returns False, with nothing done, where that process is in no such namespace or has ended.
    """
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _is_child(fd):
            return False
        setns(fd, Clone.NEWUSER)
    except OSError:
        return False
    finally:
        os.close(fd)
    unshare(Clone.NEWNS)
    _forget()
    return True


def _is_child(namespace_fd: int) -> bool:
    """Whether a user namespace's parent is the one that we are in."""
    try:
        parent_fd = fcntl.ioctl(namespace_fd, _NS_GET_PARENT)
    except PermissionError:
        return False  # it is the first one, or not below ours
    try:
        return os.fstat(parent_fd).st_ino == os.stat("/proc/self/ns/user").st_ino
    finally:
        os.close(parent_fd)


def _words(maps: Iterable[Range]) -> str:
    return " ".join(str(number) for line in maps for number in line)
