"""What CRIU has made, held against the container's spec before any of it runs.

A checkpoint may come from anybody, and CRIU restores what it says: users, capabilities, filters, mounts. Nothing of
that counts here but what the kernel now tells of the processes. They are killed unless they have no more than
this container's spec gives them; what a checkpoint has and the spec does not is never granted.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pyctr_shim.oci import capabilities, lsm, namespaces, rlimits
from pyctr_shim.oci.checkpoint import mount_table
from pyctr_shim.oci.checkpoint.dump import CGROUP_KINDS, OWN_KINDS
from pyctr_shim.oci.checkpoint.mount_table import Mounted
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.mount_options import parse
from pyctr_shim.oci.mounts import clean
from pyctr_sys.mount import MountFlag
from pyctr_sys.namespaces import Clone
from pyctr_sys.openat2 import open_in_root
from pyctr_sys.proc_lines import read_lines

Spec = Mapping[str, Any]

_FILES: Final = {
    Clone.NEWPID: "pid", Clone.NEWNET: "net", Clone.NEWNS: "mnt", Clone.NEWIPC: "ipc", Clone.NEWUTS: "uts",
    Clone.NEWUSER: "user", Clone.NEWCGROUP: "cgroup", Clone.NEWTIME: "time",
}  # fmt: skip
_RESTRICTIONS: Final = (
    (MountFlag.RDONLY, "ro"), (MountFlag.NOSUID, "nosuid"), (MountFlag.NODEV, "nodev"), (MountFlag.NOEXEC, "noexec"),
)  # fmt: skip
_FILTERED: Final = 2
_ENDED: Final = ("Z", "X")  # source: proc_pid_status(5)


class Expected(NamedTuple):
    """What may be in the container: its root and external mounts by mount point, as this process has them mounted.

    Nothing need be at those mount points that are `optional`. `devices` are those of all other mounts of this machine:
    what is on one of them did not come into being with the container. `own_namespaces` are this runtime's, by the
    kernel's numbers.
    """

    mounts: Mapping[str, Mounted]
    optional: frozenset[str]
    devices: frozenset[str]
    own_namespaces: Mapping[Clone, int]


def own_namespaces() -> dict[Clone, int]:
    """Return this process's namespaces, of the kinds that the kernel has, by its numbers.

    To be called before the process leaves any.
    """
    there = os.listdir("/proc/self/ns")
    return {kind: os.stat(f"/proc/self/ns/{name}").st_ino for kind, name in _FILES.items() if name in there}


def check(spec: Spec, plan: namespaces.Plan, pid: int, expected: Expected) -> None:
    """Raise OciError unless the processes from `pid` down have no more than the spec gives them.

    They have been made and do not run. Limits above the spec's are lowered.
    """
    _check_namespaces(plan, pid, expected)
    process = spec.get("process")
    if process is None:
        raise OciError("process: is required to restore a container")
    for task in tree(pid):
        threads = [_status(f"/proc/{task}/task/{thread}") for thread in os.listdir(f"/proc/{task}/task")]
        # What has ended never runs again. CRIU makes zombies of processes as privileged as itself, and leaves them so.
        living = [status for status in threads if not status["State"].startswith(_ENDED)]
        for status in living:
            _check_identity(spec, process, status, f"process {task}")
        if living:
            _check_label(process, task)
            rlimits.lower(task, process.get("rlimits") or ())
    _check_mounts(spec, mount_table.of(pid), pid, expected)


def tree(pid: int) -> Iterator[int]:
    """Yield a process and those that descend from it."""
    yield pid
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            for child in file.read().split():
                yield from tree(int(child))


def _check_namespaces(plan: namespaces.Plan, pid: int, expected: Expected) -> None:
    for kind, name in _FILES.items():
        own = expected.own_namespaces.get(kind)
        if own is None:  # nobody has one
            if plan.has(kind):
                raise OciError(f"restore: linux.namespaces: this kernel has no {name} namespaces")
            continue
        found = os.stat(f"/proc/{pid}/ns/{name}").st_ino
        if kind in plan.joined:
            right = found == os.fstat(plan.joined[kind]).st_ino
        else:
            right = (found != own) == bool(plan.new & kind)
        if not right and (kind is Clone.NEWNS or plan.has(kind)):
            raise OciError(f"restore: the checkpoint's {name} namespace is not what linux.namespaces says")


def _status(directory: str) -> dict[str, str]:
    lines = read_lines(f"{directory}/status")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _check_identity(spec: Spec, process: Spec, status: Mapping[str, str], who: str) -> None:
    sets = capabilities.parse(process.get("capabilities") or {}, ~0)
    for name, allowed in (
        ("CapBnd", sets.bounding),
        ("CapPrm", sets.bounding | sets.permitted),
        ("CapEff", sets.bounding | sets.permitted),
        ("CapInh", sets.bounding | sets.inheritable),
        ("CapAmb", sets.ambient),
    ):
        if more := int(status[name], 16) & ~allowed:
            names = ", ".join(capabilities.names(more))
            raise OciError(f"restore: {who} of the checkpoint has {names}, which process.capabilities does not give")
    if process.get("noNewPrivileges") and status["NoNewPrivs"] != "1":
        raise OciError(
            f"restore: {who} of the checkpoint may gain privileges, which process.noNewPrivileges forbids"
            " (CRIU 3.17 does not keep that, CRIU 4.1 does)"
        )
    if spec["linux"].get("seccomp") and int(status["Seccomp"]) != _FILTERED:
        raise OciError(f"restore: {who} of the checkpoint has no filter, which linux.seccomp demands")
    _check_user(process.get("user") or {}, status, who)


def _check_user(user: Spec, status: Mapping[str, str], who: str) -> None:
    """One whose user is not root stays that user. Whoever starts as root may have become anybody."""
    uid, gid = user.get("uid") or 0, user.get("gid") or 0
    if not uid:
        return
    groups = {gid, *(user.get("additionalGids") or ())}
    found = set(map(int, status["Uid"].split()))
    found_groups = {*map(int, status["Gid"].split()), *map(int, status["Groups"].split())}
    if found != {uid} or not found_groups <= groups:
        raise OciError(
            f"restore: {who} of the checkpoint is of users {sorted(found)} and groups {sorted(found_groups)}, "
            f"process.user says {uid}:{gid}"
        )


def _check_label(process: Spec, pid: int) -> None:
    """Check the AppArmor profile or SELinux label, where there is any."""
    wanted = process.get("apparmorProfile") if lsm.apparmor_enabled() else process.get("selinuxLabel")
    if not wanted:
        return
    with open(f"/proc/{pid}/attr/current") as file:
        found = file.read().rstrip("\0\n")
    if found.removesuffix(" (enforce)") != wanted:
        raise OciError(f"restore: process {pid} of the checkpoint is labelled {found!r}, the spec says {wanted!r}")


def _check_mounts(spec: Spec, seen: Sequence[Mounted], pid: int, expected: Expected) -> None:
    for item in seen:
        if not _may_be(item, expected):
            raise OciError(f"restore: the checkpoint has {item.root} of another file system ({item.kind}) mounted "
                           f"at {item.where}, which the spec does not")  # fmt: skip
    last = {item.where: item for item in seen}
    for where, source in expected.mounts.items():
        found = last.get(where)
        if found is None and where in expected.optional:
            continue
        if found is None or (found.device, found.root) != (source.device, source.root):
            raise OciError(f"restore: what is mounted at {where} is not what the spec has there")
        if "ro" in source.options and "ro" not in found.options:
            raise OciError(f"restore: {where} has become writable")
    for item in spec.get("mounts") or ():
        where = clean(item["destination"])
        found = last.get(where)
        flags = parse(item.get("options") or ()).flags
        for flag, name in _RESTRICTIONS:
            if found is not None and flags & flag and name not in found.options:
                raise OciError(f"restore: the checkpoint's mount at {where} is not {name}")
    _check_hidden(spec["linux"], last, pid)


def _may_be(item: Mounted, expected: Expected) -> bool:
    """Whether a mount is a new file system, or shows something of the root or of an external mount."""
    known = [source for source in expected.mounts.values() if source.device == item.device]
    if known:
        return any(mount_table.is_below(item.root, source.root) for source in known)
    if item.kind in OWN_KINDS | CGROUP_KINDS and item.device not in expected.devices:
        return True
    return item.kind in {"proc", "sysfs", "mqueue"}  # one for each namespace, and those have been checked


def _check_hidden(linux: Spec, last: Mapping[str, Mounted], pid: int) -> None:
    """Check that what the spec masks or makes read-only is so, as far as it exists in the container."""
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for field, needs in (("maskedPaths", ""), ("readonlyPaths", "ro")):
            for path in linux.get(field) or ():
                found = last.get(clean(path))
                if found is not None and (not needs or needs in found.options):
                    continue
                if _exists(root_fd, path):
                    raise OciError(f"restore: the checkpoint leaves {path} open, which linux.{field} names")
    finally:
        os.close(root_fd)


def _exists(root_fd: int, path: str) -> bool:
    try:
        os.close(open_in_root(root_fd, path))
    except OSError:
        return False
    return True
