"""`pyctr check rootless`: what this machine has of what an ordinary user's daemon takes, and how to get the rest."""

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys import cgroups, user_namespace
from pyctrd.rootless import paths
from pyctrd.rootless.entry import lines_of
from pyctrd.snapshots import fuse_overlayfs

_ENOUGH: Final = 65536  # ids, of which images may use every one
_FIRST: Final = 100000  # where usermod begins
_WANTED: Final = ("cpu", "memory", "pids")
_TRIAL_SECONDS: Final = 60


def _is_set(value: int) -> bool:
    return value > 0


def _is_unset(value: int) -> bool:
    return value == 0


_SYSCTLS: Final = (
    ("user.max_user_namespaces", "user namespaces may be made", _is_set, "15000"),
    ("kernel.unprivileged_userns_clone", "ordinary users may make them", _is_set, "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "AppArmor lets them be used", _is_unset, "0"),
)


class Finding(NamedTuple):
    """One line: `remedy` is "" where nothing needs to be done; what is not `needed` is only less without it."""

    what: str
    found: str
    remedy: str = ""
    needed: bool = True


def check() -> int:
    """Print what is found; return 0 if a daemon can be started, else 1."""
    findings = list(_findings())
    for finding in findings:
        mark = "ok  " if not finding.remedy else "MISS" if finding.needed else "note"
        sys.stdout.write(f"{mark}  {finding.what}: {finding.found}\n")
        if finding.remedy:
            sys.stdout.write(f"      remedy: {finding.remedy}\n")
    return int(any(finding.remedy and finding.needed for finding in findings))


def _findings() -> Iterator[Finding]:
    uid = os.geteuid()
    name = pwd.getpwuid(uid).pw_name
    if uid == 0:
        yield Finding("user", "root, who needs none of this", "run it as the user whose daemon it is to be")
        return
    yield Finding("user", f"{name} ({uid})")
    yield from _granted(name, uid)
    yield from map(_mapper, user_namespace.MAPPERS)
    yield from _sysctls()
    yield from _trial()
    yield from _fuse()
    yield _runtime_directory(uid)
    yield _delegation()
    yield from _lingering(name)


def _granted(name: str, uid: int) -> Iterator[Finding]:
    all_lines = [line for path in user_namespace.GRANTS for line in lines_of(path)]
    first = max([_FIRST, *(end for line in all_lines if (end := _end(line)))])
    for path, option in zip(user_namespace.GRANTS, ("--add-subuids", "--add-subgids"), strict=True):
        ranges = user_namespace.granted(lines_of(path), name, uid)
        count = sum(size for _, size in ranges)
        found = f"{count} ids" if count else "none"
        good = "" if count >= _ENOUGH else f"sudo usermod {option} {first}-{first + _ENOUGH - 1} {name}"
        # Fewer will do for images whose files have few owners.
        yield Finding(f"ids that {path} grants", found, good, needed=not count)


def _end(line: str) -> int:
    with suppress(ValueError, IndexError):
        _, first, count = line.strip().split(":")
        return int(first) + int(count)
    return 0


def _mapper(program: str) -> Finding:
    path = shutil.which(program)
    if path is None:
        return Finding(program, "not there", "sudo apt-get install uidmap")
    if os.stat(path).st_mode & stat.S_ISUID or _has_capability(path):
        return Finding(program, path)
    return Finding(program, f"{path} has no privilege", f"sudo chmod u+s {path}")


def _has_capability(path: str) -> bool:
    with suppress(OSError):
        return bool(os.getxattr(path, "security.capability"))
    return False


def _sysctls() -> Iterator[Finding]:
    for name, what, is_good, wanted in _SYSCTLS:
        with suppress(OSError, ValueError):  # not every kernel has each of them
            value = int(Path("/proc/sys", *name.split(".")).read_text())
            remedy = "" if is_good(value) else f"sudo sysctl -w {name}={wanted} (and a file in /etc/sysctl.d)"
            yield Finding(what, f"{name} = {value}", remedy)


def _trial() -> Iterator[Finding]:
    """Yield what trying it out has shown."""
    root = next(path for path in (paths.data(), *paths.data().parents) if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".pyctr-check-", dir=root) as scratch:
        command = [sys.executable, "-m", "pyctrd.rootless.trial", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TRIAL_SECONDS)
    try:
        found: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        found = {"enter": done.stderr.strip()[-500:] or f"the trial ended with {done.returncode}"}
    entered = found["enter"]
    yield Finding("a user namespace", entered or "can be entered", entered and "see the other lines")
    if (reason := found.get("overlay")) is not None:
        remedy = (
            reason
            and "Linux 5.11, and a file system that can be below an overlay; snapshots are copies until then,"
            " but with --snapshotter fuse-overlayfs"
        )
        yield Finding("overlayfs in it", reason or "can be mounted", remedy, needed=False)
    if (reason := found.get("proc")) is not None:
        remedy = reason and "it must not be covered here, as it is inside of a container"
        yield Finding("/proc of a container", reason or "can be mounted", remedy)


def _fuse() -> Iterator[Finding]:
    """Yield what there is of what the fuse-overlayfs snapshotter takes."""
    program, device = fuse_overlayfs.PROGRAM, fuse_overlayfs.DEVICE
    path = shutil.which(program)
    yield Finding(program, path or "not there", "" if path else f"sudo apt-get install {program}", needed=False)
    if fuse_overlayfs.may_use_device():
        yield Finding(device, "can be used")
    elif Path(device).exists():
        yield Finding(device, "this user may not use it", f"sudo chmod 666 {device}, as udev does", needed=False)
    else:
        yield Finding(device, "not there", "sudo modprobe fuse", needed=False)


def _runtime_directory(uid: int) -> Finding:
    directory, what = paths.state().parent, "XDG_RUNTIME_DIR"
    remedy = "log in as this user (not by su or sudo), or sudo loginctl enable-linger, or --state DIRECTORY"
    try:
        status = directory.stat()
    except OSError as error:
        return Finding(what, f"{directory}: {error.strerror}", remedy)
    if status.st_uid != uid or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Finding(what, f"{directory} is not this user's alone", remedy)
    return Finding(what, str(directory))


def _delegation() -> Finding:
    """Say which controllers are delegated to where a daemon started from here would be."""
    what = "cgroup delegation"
    unified = [one for one in cgroups.own_hierarchies() if one.is_v2]
    if not unified or unified[0].mount_point != Path("/sys/fs/cgroup"):
        return Finding(what, "none", "cgroups of version 2 (systemd.unified_cgroup_hierarchy=1); no limits until then",
                       needed=False)  # fmt: skip
    own = unified[0]
    here = f"{own.mount_point}{cgroups.base_of(own.own)}"
    if not cgroups.is_delegated(own):
        remedy = "start pyctrd as a unit with Delegate=yes: deploy/pyctrd.user.service; no limits until then"
        return Finding(what, f"{here} is not ours", remedy, needed=False)
    has = Path(here, "cgroup.controllers").read_text().split()
    if missing := [name for name in _WANTED if name not in has]:
        remedy = "in /etc/systemd/system/user@.service.d/delegate.conf: [Service] Delegate=cpu cpuset io memory pids"
        return Finding(what, f"{here} lacks {', '.join(missing)}", remedy, needed=False)
    return Finding(what, f"{here}: {', '.join(has)}")


def _lingering(name: str) -> Iterable[Finding]:
    if not Path("/run/systemd/system").is_dir():
        return
    there = Path("/var/lib/systemd/linger", name).exists()
    remedy = "" if there else f"sudo loginctl enable-linger {name}: else systemd ends all of it with the last session"
    yield Finding("lingering", "on" if there else "off", remedy, needed=False)
