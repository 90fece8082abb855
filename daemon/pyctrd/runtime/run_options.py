"""What a new container shall be, in the words of `docker run`; checked and turned into OCI values one by one."""

import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from pyctrd.core.mounts import Mount
from pyctrd.core.values import dataclass

_UNLIMITED: Final = (1 << 64) - 1
_ULIMITS: Final = frozenset({
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
})  # fmt: skip
_ENTRY: Final = re.compile(r"[^=\0]+=[^\0]*", re.DOTALL)
_NUMBER: Final = re.compile("[0-9]{1,20}")
_ACCESS: Final = re.compile(r"[rwm]{1,3}")
# Kernel parameters of a namespace that the container has to itself.
_IPC_SYSCTLS: Final = ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
                       "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced")  # fmt: skip
_MAX_DEVICES: Final = 4096
_MAX_VOLUMES: Final = 256
_NO_COPY: Final = "nocopy"
_SYSTEM: Final = ("/dev", "/sys")
_NOT_DEVICES: Final = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console")  # noqa: S108 - of this machine


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a new container; what is empty is the image's own value, or the default."""

    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    additional_groups: tuple[str, ...] = ()
    terminal: bool = False
    console_size: tuple[int, int] = (0, 0)  # columns, rows
    hostname: str = ""
    privileged: bool = False
    init: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    devices: tuple[str, ...] = ()
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    security_options: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ulimits: tuple[str, ...] = ()
    memory: int = 0  # bytes
    nano_cpus: int = 0
    pids_limit: int = 0
    network: str = "none"  # "" as the daemon chooses
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    log_driver: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict)
    auto_remove: bool = False
    interactive: bool = False
    userns: str = ""  # as pyctrd.remapping has it
    restart_policy: str = ""  # as pyctrd.core.restarts has it


def is_environment_entry(text: str) -> bool:
    """Tell whether `text` is NAME=VALUE (CVE-2026-57231)."""
    return bool(_ENTRY.fullmatch(text))


def merged_environment(*layers: Iterable[str]) -> list[str]:
    """Return NAME=VALUE entries, those of later layers replacing earlier ones in place."""
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            merged[entry.partition("=")[0]] = entry
    return list(merged.values())


def capabilities(add: Iterable[str], drop: Iterable[str], available: Collection[str]) -> tuple[str, ...]:
    """Return the capabilities after `add` and `drop`, whatever the order they were given in.

    ALL comes first, so that "add ALL, drop X" and "drop ALL, add X" both mean what they say; what the
    daemon itself lacks cannot be had and is left out of the defaults and of ALL. Raises InvalidArgument.
    """
    added, dropped = [_capability(name) for name in add], [_capability(name) for name in drop]
    chosen = set(ALL_CAPABILITIES if "CAP_ALL" in added else DEFAULT_CAPABILITIES) & set(available)
    if "CAP_ALL" in dropped:
        chosen = set()
    chosen |= set(added)
    chosen -= set(dropped)
    return tuple(name for name in ALL_CAPABILITIES if name in chosen)


def _capability(text: str) -> str:
    name = text.upper()
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name != "CAP_ALL" and name not in ALL_CAPABILITIES:
        raise InvalidArgument(f"capability {text!r} is not known")
    return name


def rlimits(ulimits: Iterable[str]) -> list[dict[str, Any]]:
    """Return OCI rlimits for NAME=SOFT[:HARD]; -1 is unlimited, the last of a NAME counts. Raises InvalidArgument."""
    result = {}
    for entry in ulimits:
        name, separator, values = entry.partition("=")
        soft, _, hard = values.partition(":")
        if name not in _ULIMITS or not separator:
            raise InvalidArgument(f"ulimit {entry!r}: it must be NAME=SOFT[:HARD] with a NAME such as nofile")
        numbers = [_limit(entry, text) for text in (soft, hard or soft)]
        if numbers[0] > numbers[1]:
            raise InvalidArgument(f"ulimit {entry!r}: the soft limit is above the hard one")
        result[name] = {"type": f"RLIMIT_{name.upper()}", "soft": numbers[0], "hard": numbers[1]}
    return list(result.values())


def _limit(entry: str, text: str) -> int:
    if text in ("-1", "unlimited"):
        return _UNLIMITED
    if not _NUMBER.fullmatch(text) or int(text) > _UNLIMITED:
        raise InvalidArgument(f"ulimit {entry!r}: {text!r} is not a number")
    return int(text)


def check_sysctls(sysctls: Mapping[str, str], *, host_network: bool) -> None:
    """Raise InvalidArgument for a parameter that would change this machine and not just the container."""
    for name in sysctls:
        own = name in _IPC_SYSCTLS or name.startswith("fs.mqueue.") or name == "kernel.domainname"
        if not own and not (name.startswith("net.") and not host_network):
            why = "the container shares this machine's network" if name.startswith("net.") else "it is this machine's"
            raise InvalidArgument(f"sysctl {name!r} cannot be set for a container: {why}")


def user_mounts(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return OCI mounts for what a user asked for, parents before children. Raises InvalidArgument."""
    result = []
    taken: set[str] = set()
    for mount in mounts:
        target = _mount_target(mount.target)
        if target in taken:
            raise InvalidArgument(f"mount target {target!r} is given twice")
        taken.add(target)
        if mount.type == "bind" and not Path(mount.source).exists():
            raise InvalidArgument(f"bind source path does not exist: {mount.source}")
        result.append(
            {"destination": target, "type": mount.type, "source": mount.source, "options": list(mount.options)}
        )
    return sorted(result, key=lambda one: str(one["destination"]).count("/"))


def _mount_target(text: str) -> str:
    """Return a clean path in the container at which something may be mounted. Raises InvalidArgument."""
    target = posixpath.normpath(text)
    if not text.startswith("/") or target in ("/", "//"):
        raise InvalidArgument(f"mount target {text!r} must be an absolute path below /")
    if target == "/proc" or target.startswith("/proc/"):
        raise InvalidArgument(f"mount target {text!r}: nothing can be mounted inside /proc")
    return target


class WantedVolume(NamedTuple):
    """A volume at `target`: that of this name, or a new one; an empty one is filled with what the image has there."""

    target: str
    name: str = ""
    filled: bool = True


def wanted_volumes(declared: Iterable[str], mounts: Iterable[Mount]) -> list[WantedVolume]:
    """Return which volumes a container gets: as the user says, and as the image declares.

    What the user mounts at a path replaces the image's volume there. Raises InvalidArgument.
    """
    wanted: dict[str, WantedVolume] = {}
    taken: set[str] = set()
    for mount in mounts:
        target = _mount_target(mount.target)
        if mount.type == "volume":
            if target in wanted:
                raise InvalidArgument(f"mount target {target!r} is given twice")
            wanted[target] = WantedVolume(target, mount.source, _NO_COPY not in mount.options)
        taken.add(target)
    for text in declared:
        target = _mount_target(posixpath.join("/", text))
        if target in _SYSTEM or target.startswith("/sys/"):
            raise InvalidArgument(f"the image's volume {text!r} would take the place of what every container needs")
        if target not in taken:
            taken.add(target)
            wanted[target] = WantedVolume(target)
    if len(wanted) > _MAX_VOLUMES:
        raise InvalidArgument(f"{len(wanted)} volumes are more than {_MAX_VOLUMES}")
    return list(wanted.values())


def with_volumes(mounts: Iterable[Mount], volumes: Mapping[str, Path], extra: Sequence[str] = ()) -> tuple[Mount, ...]:
    """Return `mounts` with the volumes in their places, those of the image at the end; `volumes` is by target.

    Volumes have the options `extra`, too.
    """
    result, left = [], dict(volumes)
    for mount in mounts:
        if mount.type == "volume":
            path = left.pop(_mount_target(mount.target))
            options = (option for option in mount.options if option != _NO_COPY)
            mount = replace(mount, type="bind", source=str(path), options=("rbind", *options, *extra))
        result.append(mount)
    result += [Mount("bind", str(path), target, ("rbind", "rprivate", "rw", *extra)) for target, path in left.items()]
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine that a container gets, and its rule for the device cgroup."""

    node: dict[str, Any]
    rule: dict[str, Any]


def devices(entries: Iterable[str]) -> Iterator[Device]:
    """Yield what HOST[:CONTAINER[:rwm]] means; a directory means every device in it. Raises InvalidArgument."""
    for entry in entries:
        host, *rest = entry.split(":")
        target, access = host, "rwm"
        for text in rest:
            if text.startswith("/"):
                target = text
            elif _ACCESS.fullmatch(text):
                access = text
            else:
                raise InvalidArgument(f"device {entry!r}: it must be HOST[:CONTAINER[:rwm]]")
        if not posixpath.isabs(host) or len(rest) > 2:
            raise InvalidArgument(
                f"device {entry!r}: it must be HOST[:CONTAINER[:rwm]] with absolute paths, or VENDOR/CLASS=NAME"
            )
        found = list(_nodes(host, target, access))
        if not found:
            raise InvalidArgument(f"device {host}: there is no such device on this machine")
        yield from found


def host_devices() -> Iterator[Device]:
    """Yield every device of this machine, for a privileged container."""
    return _nodes("/dev", "/dev", "rwm", skip=_NOT_DEVICES)


def _nodes(host: str, target: str, access: str, skip: Sequence[str] = ()) -> Iterator[Device]:
    """Yield the device at `host`, or those below it."""
    try:
        status = os.stat(host)
    except OSError:
        return
    if not stat.S_ISDIR(status.st_mode):
        device = _device(status, target, access)
        if device is not None:
            yield device
        return
    count = 0
    for folder, folders, names in os.walk(host):
        folders[:] = [name for name in folders if posixpath.join(folder, name) not in skip]
        for name in names:
            path = posixpath.join(folder, name)
            try:
                status = os.lstat(path)  # a link in /dev leads to a device that is listed by itself
            except OSError:
                continue
            device = None if path in skip else _device(status, target + path[len(host) :], access)
            if device is not None and count < _MAX_DEVICES:
                count += 1
                yield device


def _device(status: os.stat_result, target: str, access: str) -> Device | None:
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    number = {"type": kind, "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
    owner = {"fileMode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
    return Device({"path": posixpath.normpath(target), **number, **owner}, {"allow": True, **number, "access": access})
