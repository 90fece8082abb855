"""Version 2: one hierarchy for all controllers.

A process is cloned into its cgroup: writing to cgroup.procs, even of oneself, waits for a grace
period of the kernel (10 to 20 ms).
"""

import errno
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from pyctr_shim.oci.cgroups import device_filter, files
from pyctr_shim.oci.cgroups.manager import Hierarchies, Resources
from pyctr_shim.oci.errors import OciError
from pyctr_sys import cgroup_counters
from pyctr_sys.bpf import attach_device_program, detach_device_program, device_programs, load_device_program
from pyctr_sys.cgroups import cgroups_of
from pyctr_sys.namespaces import in_user_namespace

_FREEZE_SECONDS: Final = 10.0
_DEFAULT_PERIOD_US: Final = 100_000
_DELEGATE: Final = "/sys/kernel/cgroup/delegate"
_DELEGATED: Final = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")  # where that file is not there

_NOTHING: Final[Sequence[Any]] = (None, 0, False, [])

Write = tuple[str, str, str]  # field of the spec, file, text


class CgroupV2:
    """A container's cgroup in the unified hierarchy."""

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        """Stand for the cgroup at `path`; nothing is made."""
        self._mount_point = hierarchies.unified
        self._base = hierarchies.base
        self._directory = hierarchies.unified + path
        self.path = path

    def check_unused(self) -> None:
        """Raise OciError if processes are in it already, or if it is frozen: whoever joined would never be heard of."""
        if files.fields(f"{self._directory}/cgroup.events").get("populated"):
            raise OciError(f"cgroup {self._directory} is not empty: processes are in it")
        nearest = files.nearest(self._directory)
        if files.fields(f"{nearest}/cgroup.events").get("frozen"):
            raise OciError(f"cgroup {nearest} is frozen")

    def create(self, pid: int = 0) -> None:
        """Make it, with every controller that its ancestors have; nothing happens if it is there."""
        parent = self._mount_point + self._base
        for name in self.path.removeprefix(self._base).strip("/").split("/"):
            _delegate_controllers(parent)
            parent = f"{parent}/{name}"
            try:
                os.mkdir(parent)
            except FileExistsError:
                continue

    def join(self) -> None:
        """Move the calling process into it."""
        files.write(f"{self._directory}/cgroup.procs", "0")

    def files_to_join(self) -> list[str]:
        """Return cgroup.procs."""
        return [f"{self._directory}/cgroup.procs"]

    def directory_for_clone(self) -> str:
        """Return its directory."""
        return self._directory

    def directory_of(self, pid: int) -> str:
        """Return the directory of a process in it that may be further down."""
        with suppress(OSError):  # it has ended
            return self._mount_point + cgroups_of(pid)[""]
        return self._directory

    def apply(self, resources: Resources) -> None:
        """Write limits. Raises OciError naming the field that the kernel refused."""
        rules = resources.get("devices")
        if rules and not in_user_namespace():  # whose root may load no program, nor make a node
            self._filter_devices(device_filter.with_defaults(rules))
        if (resources.get("memory") or {}).get("checkBeforeUpdate"):
            self._check_memory(resources["memory"])
        for field, name, value in limits(self.completed(resources), has_bfq=self._has("io.bfq.weight")):
            if (value == "0" or ".rsvd." in name) and not self._has(name):
                continue  # what the kernel does not have is off already; reservations count as use then
            try:
                files.write(f"{self._directory}/{name}", value)
            except OSError as error:
                text = f"linux.resources.{field}: writing {value!r} to {self._directory}/{name}: {error.strerror}"
                raise OciError(text, error.errno or 0) from None

    def completed(self, resources: Resources) -> Resources:
        """Return limits that have, where one is given, both CPU quota and period: the other is the kernel's now."""
        cpu = resources.get("cpu") or {}
        if bool(cpu.get("quota")) == bool(cpu.get("period")):
            return resources
        quota, period = files.read(f"{self._directory}/cpu.max").split() or ("max", _DEFAULT_PERIOD_US)
        now = {"quota": -1 if quota == "max" else int(quota), "period": int(period)}
        return {**resources, "cpu": {**cpu, **{name: cpu.get(name) or now[name] for name in now}}}

    def _has(self, name: str) -> bool:
        return os.path.exists(f"{self._directory}/{name}")

    def _check_memory(self, memory: Mapping[str, Any]) -> None:
        """Refuse a limit below what is in use, as version 1 does; here the kernel would kill instead."""
        limit, used = memory.get("limit") or 0, files.number(f"{self._directory}/memory.current")
        if 0 < limit < used:
            raise OciError(f"linux.resources.memory.limit: {limit} is less than what is in use, {used}")

    def delegate(self, uid: int) -> None:
        """Give a user of the host what it takes to make cgroups below this one. Raises OciError."""
        names = files.read(_DELEGATE).split() or _DELEGATED
        try:
            for name in (".", *names):
                if self._has(name):
                    os.chown(f"{self._directory}/{name}", uid, -1)
        except OSError as error:
            raise OciError(f"cgroup {self._directory}: giving it to uid {uid}: {error.strerror}",
                           error.errno or 0) from None  # fmt: skip

    def _filter_devices(self, rules: list[device_filter.Rule]) -> None:
        """Attach the new program before the old ones go: in between, both judge."""
        directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            before = device_programs(directory_fd)
            program_fd = load_device_program(device_filter.bpf_program(rules))
            try:
                attach_device_program(directory_fd, program_fd)
            finally:
                os.close(program_fd)
            for program_id in before:
                detach_device_program(directory_fd, program_id)
        except OSError as error:
            raise OciError(f"linux.resources.devices: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(directory_fd)

    def pids(self) -> list[int]:
        """Return the processes in it and below it."""
        return files.subtree_pids(self._directory)

    def pause(self) -> None:
        """Freeze it. Raises OciError if something does not stop within ten seconds."""
        files.write(f"{self._directory}/cgroup.freeze", "1")
        deadline = time.monotonic() + _FREEZE_SECONDS
        while files.fields(f"{self._directory}/cgroup.events").get("frozen") != 1:
            if time.monotonic() > deadline:
                self.resume()
                raise OciError(f"cgroup {self._directory} does not freeze")
            time.sleep(0.001)

    def resume(self) -> None:
        """Thaw it."""
        files.write(f"{self._directory}/cgroup.freeze", "0")

    def is_paused(self) -> bool:
        """Whether it is frozen or being frozen."""
        return files.read(f"{self._directory}/cgroup.freeze").strip() == "1"

    def kill(self) -> None:
        """Send SIGKILL to everything in it in one step, or on kernels before 5.14 one by one."""
        try:
            files.write(f"{self._directory}/cgroup.kill", "1")
        except FileNotFoundError:
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def metrics(self) -> tuple[str, bytes]:
        """Return type URL and bytes of io.containerd.cgroups.v2.Metrics."""
        from pyctr_wire import cgroup_metrics  # and with it protobuf, which most commands do without

        return cgroup_metrics.of_version_2(cgroup_counters.version_2(self._directory))

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed for memory in it, 0 if it is gone."""
        return files.fields(f"{self._directory}/memory.events").get("oom_kill", 0)

    def oom_watch(self) -> tuple[int, int] | None:
        """Return an fd that becomes exceptional (POLLPRI) at an OOM kill, twice: version 1 needs two."""
        try:
            events_fd = os.open(f"{self._directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return events_fd, os.dup(events_fd)

    def remove(self) -> None:
        """Remove it and what is below it. Raises OSError: EBUSY while processes are in it."""
        files.remove_tree(self._directory)


def _delegate_controllers(directory: str) -> None:
    """Let children have what `directory` has.

    One by one if all together fail: a controller may be in use elsewhere, or the cgroup have processes
    of its own. What is missing then shows when its limit is written.
    """
    wanted = set(files.read(f"{directory}/cgroup.controllers").split())
    missing = sorted(wanted - set(files.read(f"{directory}/cgroup.subtree_control").split()))
    if not missing:
        return
    try:
        files.write(f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT}:
            raise
        for name in missing:
            try:
                files.write(f"{directory}/cgroup.subtree_control", f"+{name}")
            except OSError:
                continue


def limits(resources: Resources, *, has_bfq: bool = False) -> list[Write]:
    """Return what to write for the spec's limits, in order. Raises OciError for one that version 2 does not have."""
    writes = [
        *_memory(resources.get("memory") or {}),
        *_cpu(resources.get("cpu") or {}),
        *_block_io(resources.get("blockIO") or {}, has_bfq=has_bfq),
    ]
    if (limit := (resources.get("pids") or {}).get("limit")) is not None:
        # None at all would not even let init in: one is the least that there is.
        writes.append(("pids.limit", "pids.max", "max" if limit < 0 else str(max(limit, 1))))
    for page in resources.get("hugepageLimits") or ():
        files_ = [f"hugetlb.{page['pageSize']}.{kind}" for kind in ("max", "rsvd.max")]
        writes += [("hugepageLimits", name, str(page["limit"])) for name in files_]
    for device, limit in (resources.get("rdma") or {}).items():
        names = (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
        pairs = [f"{name}={limit[key]}" for key, name in names if limit.get(key) is not None]
        writes.append(("rdma", "rdma.max", " ".join([device, *pairs])))
    _refuse("network", resources.get("network") or {}, ("classID", "priorities"))
    # Last, so that they override: they are the kernel's own words.
    for name, value in (resources.get("unified") or {}).items():
        if "/" in name or not name.partition(".")[2]:
            raise OciError(f"linux.resources.unified: {name!r} is not a file of a controller")
        writes.append(("unified", name, value))
    return writes


def _refuse(section: str, values: Mapping[str, Any], fields: Iterable[str], none: Sequence[Any] = _NOTHING) -> None:
    for field in fields:
        if values.get(field) not in none:
            raise OciError(f"linux.resources.{section}.{field}: version 2 of cgroups has no such limit")


def _memory(memory: Mapping[str, Any]) -> list[Write]:
    _refuse("memory", memory, ("kernelTCP",), none=(None, 0, -1))
    _refuse("memory", memory, ("disableOOMKiller",))
    _refuse("memory", memory, ("swappiness",), none=(None,))
    _refuse("memory", memory, ("useHierarchy",), none=(None, True))  # there is no other way
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    writes = []
    if swap > 0:
        # The spec counts memory and swap together, version 2 each by itself.
        if limit <= 0 or swap < limit:
            raise OciError("linux.resources.memory.swap: needs a memory limit that is not larger")
        writes.append(("memory.swap", "memory.swap.max", str(swap - limit)))
    elif swap < 0:
        writes.append(("memory.swap", "memory.swap.max", "max"))
    if limit:
        writes.append(("memory.limit", "memory.max", "max" if limit < 0 else str(limit)))
    if reservation := memory.get("reservation"):
        writes.append(("memory.reservation", "memory.low", "max" if reservation < 0 else str(reservation)))
    return writes


def _cpu(cpu: Mapping[str, Any]) -> list[Write]:
    _refuse("cpu", cpu, ("realtimeRuntime", "realtimePeriod"))
    writes = []
    if shares := cpu.get("shares"):
        writes.append(("cpu.shares", "cpu.weight", str(weight_of_shares(shares))))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if quota or period:
        text = f"{quota if quota > 0 else 'max'} {period or _DEFAULT_PERIOD_US}"
        writes.append(("cpu.quota", "cpu.max", text))
    for field, name in (("burst", "cpu.max.burst"), ("idle", "cpu.idle")):
        if cpu.get(field) is not None:
            writes.append((f"cpu.{field}", name, str(cpu[field])))
    return writes + [(f"cpu.{field}", f"cpuset.{field}", cpu[field]) for field in ("cpus", "mems") if cpu.get(field)]


def weight_of_shares(shares: int) -> int:
    """Map shares (2 to 262144) to a weight (1 to 10000), linearly, as Kubernetes and runc have done."""
    shares = min(max(shares, 2), 262_144)
    return 1 + (shares - 2) * 9_999 // 262_142


def _io_weight(weight: int) -> int:
    """Map a weight (10 to 1000) to one of version 2 (1 to 10000), linearly, as runc does."""
    return 1 + (max(weight, 10) - 10) * 9_999 // 990


def _block_io(block_io: Mapping[str, Any], *, has_bfq: bool) -> list[Write]:
    writes = []
    if weight := block_io.get("weight"):
        if has_bfq:
            writes.append(("blockIO.weight", "io.bfq.weight", str(weight)))
        else:
            writes.append(("blockIO.weight", "io.weight", f"default {_io_weight(weight)}"))
    for device in block_io.get("weightDevice") or ():
        weight = device["weight"] if has_bfq else _io_weight(device["weight"])
        text = f"{device['major']}:{device['minor']} {weight}"
        writes.append(("blockIO.weightDevice", "io.bfq.weight" if has_bfq else "io.weight", text))
    for field, key in _THROTTLE.items():
        for device in block_io.get(field) or ():
            rate = device["rate"] or "max"
            writes.append((f"blockIO.{field}", "io.max", f"{device['major']}:{device['minor']} {key}={rate}"))
    return writes


_THROTTLE: Final = {
    "throttleReadBpsDevice": "rbps", "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops", "throttleWriteIOPSDevice": "wiops",
}  # fmt: skip
