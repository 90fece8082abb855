"""Version 1: a hierarchy per controller, the same path in each.

A process joins by writing 0 to `tasks`: for a single-threaded process that moves itself the kernel
skips the grace period that moving anybody else costs (10 to 20 ms).
"""

import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

from pyctr_shim.oci.cgroups import device_filter, files
from pyctr_shim.oci.cgroups.manager import Hierarchies, Resources
from pyctr_shim.oci.errors import OciError
from pyctr_sys import cgroup_counters

_FREEZE_SECONDS: Final = 10.0
_FREEZE_TO_KILL_SECONDS: Final = 0.5


class CgroupV1:
    """A container's cgroup in every hierarchy of version 1."""

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        """Stand for the cgroup at `path`; nothing is made."""
        self._hierarchies = hierarchies
        self.path = path

    def _directory(self, controller: str) -> str:
        """Return the controller's directory, or "" if it is not mounted."""
        mount_point = self._hierarchies.controllers.get(controller, "")
        return mount_point and mount_point + self.path

    def directories(self) -> list[str]:
        """Return the directory in each hierarchy; co-mounted controllers share one."""
        mount_points = dict.fromkeys(self._hierarchies.controllers.values())
        return [mount_point + self.path for mount_point in mount_points]

    def check_unused(self) -> None:
        """Raise OciError if processes are in it already, or if it is frozen: whoever joined would never be heard of.

        By their count: in a new PID namespace cgroup.procs shows none of the others.
        """
        directory = self._directory("pids")
        if directory and files.number(f"{directory}/pids.current"):
            raise OciError(f"cgroup {directory} is not empty: processes are in it")
        if freezer := files.nearest(self._directory("freezer")):
            state = files.read(f"{freezer}/freezer.state").strip()
            if state not in {"", "THAWED"}:
                raise OciError(f"cgroup {freezer} is frozen: {state}")

    def create(self, pid: int = 0) -> None:
        """Make the cgroup in every hierarchy; nothing happens where it is there."""
        cpuset = self._directory("cpuset")
        for directory in self.directories():
            try:
                os.mkdir(directory)
            except FileNotFoundError:
                os.makedirs(directory, exist_ok=True)
            except FileExistsError:
                continue
            if directory == cpuset:
                _inherit_cpuset(self._hierarchies.controllers["cpuset"], directory)

    def join(self) -> None:
        """Move the calling, single-threaded process into it."""
        for directory in self.directories():
            files.write(f"{directory}/tasks", "0")

    def files_to_join(self) -> list[str]:
        """Return `tasks` in every hierarchy."""
        return [f"{directory}/tasks" for directory in self.directories()]

    def directory_for_clone(self) -> str:
        """Return "": version 1 is joined."""
        return ""

    def directory_of(self, pid: int) -> str:
        """Return "": version 1 is joined."""
        return ""

    def delegate(self, uid: int) -> None:
        """Nothing: version 1 is not safe to give away."""

    def apply(self, resources: Resources) -> None:
        """Write limits. Raises OciError naming the field that the kernel refused."""
        if resources.get("unified"):
            raise OciError("linux.resources.unified: needs version 2 of cgroups")
        if rules := resources.get("devices"):
            self._write_devices(device_filter.with_defaults(rules))
        for field, controller, name, value in plain_limits(resources):
            if value != "0" or self._has(controller, name):  # what the kernel does not have is off already
                self._write(field, controller, name, value)
        if memory := resources.get("memory"):
            self._write_memory(memory)
        for limit in resources.get("hugepageLimits") or ():
            name = f"hugetlb.{limit['pageSize']}.limit_in_bytes"
            self._write("hugepageLimits", "hugetlb", name, str(limit["limit"]))
            reserved = name.replace(".limit_", ".rsvd.limit_")
            if self._has("hugetlb", reserved):  # also at mmap, not only at the fault that would be a SIGBUS
                self._write("hugepageLimits", "hugetlb", reserved, str(limit["limit"]))

    def _has(self, controller: str, name: str) -> bool:
        return os.path.exists(f"{self._directory(controller)}/{name}")

    def _write(self, field: str, controller: str, name: str, value: str) -> None:
        directory = self._directory(controller)
        if not directory:
            raise OciError(f"linux.resources.{field}: cgroup controller {controller} is not mounted")
        try:
            files.write(f"{directory}/{name}", value)
        except OSError as error:
            raise OciError(f"linux.resources.{field}: writing {value!r} to {directory}/{name}: {error.strerror}",
                           error.errno or 0) from None  # fmt: skip

    def _write_memory(self, memory: Mapping[str, Any]) -> None:
        """Write limit and swap in the order that the kernel accepts: the smaller may never exceed the larger."""
        limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
        writes = [
            ("memory.limit", "memory.limit_in_bytes", limit),
            ("memory.swap", "memory.memsw.limit_in_bytes", swap),
        ]
        writes = [write for write in writes if write[2]]
        if len(writes) == 2:
            now = files.number(f"{self._directory('memory')}/memory.memsw.limit_in_bytes")
            if swap == -1 or now < swap:
                writes.reverse()
        for field, name, value in writes:
            self._write(field, "memory", name, str(value))

    def _write_devices(self, rules: list[device_filter.Rule]) -> None:
        directory = self._directory("devices")
        if not directory:
            raise OciError("linux.resources.devices: cgroup controller devices is not mounted")
        fds = {allow: os.open(f"{directory}/devices.{name}", os.O_WRONLY | os.O_CLOEXEC)
               for allow, name in ((True, "allow"), (False, "deny"))}  # fmt: skip
        try:
            for rule in rules:
                os.write(fds[rule.allow], rule.v1_line().encode())
        except OSError as error:
            raise OciError(f"linux.resources.devices: {rule.v1_line()}: {error.strerror}", error.errno or 0) from None
        finally:
            for fd in fds.values():
                os.close(fd)

    def pids(self) -> list[int]:
        """Return the processes in it and below it."""
        return files.subtree_pids(self._directory("devices") or self.directories()[0])

    def pause(self) -> None:
        """Freeze it. Raises OciError if something does not stop within ten seconds."""
        self._freezer("FROZEN")

    def resume(self) -> None:
        """Thaw it."""
        self._freezer("THAWED")

    def is_paused(self) -> bool:
        """Whether it is frozen or being frozen."""
        return files.read(f"{self._directory('freezer')}/freezer.self_freezing").strip() == "1"

    def _freezer(self, state: str) -> None:
        directory = self._directory("freezer")
        if not directory:
            raise OciError("cgroup controller freezer is not mounted")
        name = f"{directory}/freezer.state"
        if not _reached(name, state, _FREEZE_SECONDS):
            files.write(name, "THAWED")
            raise OciError(f"{name} does not become {state}: {files.read(name).strip()}")

    def kill(self) -> None:
        """Send SIGKILL to everything in it, frozen first so that nothing is forked past us; nothing if it is gone."""
        directory = self._directory("freezer")
        frozen = bool(directory) and os.path.exists(directory)
        if frozen:
            # What cannot be frozen, as it waits for a disk, cannot fork either.
            _reached(f"{directory}/freezer.state", "FROZEN", _FREEZE_TO_KILL_SECONDS)
        try:
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        finally:
            if frozen:
                files.write(f"{directory}/freezer.state", "THAWED")

    def metrics(self) -> tuple[str, bytes]:
        """Return type URL and bytes of io.containerd.cgroups.v1.Metrics."""
        from pyctr_wire import cgroup_metrics  # and with it protobuf, which most commands do without

        return cgroup_metrics.of_version_1(cgroup_counters.version_1(self._directory))

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed for memory in it, 0 if it is gone."""
        return files.fields(f"{self._directory('memory')}/memory.oom_control").get("oom_kill", 0)

    def oom_watch(self) -> tuple[int, int] | None:
        """Return an eventfd that becomes readable at an OOM, and the fd it watches; the caller owns both."""
        directory = self._directory("memory")
        if not directory:
            return None
        control_fd = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            files.write(f"{directory}/cgroup.event_control", f"{event_fd} {control_fd}")
        except OSError:
            os.close(event_fd)
            os.close(control_fd)
            raise
        return event_fd, control_fd

    def remove(self) -> None:
        """Remove it from every hierarchy. Raises OSError: EBUSY while processes are in it."""
        for directory in self.directories():
            files.remove_tree(directory)


def _reached(name: str, state: str, seconds: float) -> bool:
    """Ask a freezer for a state, and return whether it came to that in time."""
    deadline = time.monotonic() + seconds
    files.write(name, state)
    while files.read(name).strip() != state:
        if time.monotonic() > deadline:
            return False
        # A process forked while freezing can keep it at FREEZING until it is asked again.
        time.sleep(0.001)
        files.write(name, state)
    return True


class PlacesV1(CgroupV1):
    """A container's cgroup for one who joins others below it in some hierarchies."""

    def __init__(self, hierarchies: Hierarchies, path: str, below: Mapping[str, str]) -> None:
        """`below` has paths, each from the container's cgroup on, by controller."""
        super().__init__(hierarchies, path)
        self._below = {hierarchies.controllers[controller]: place for controller, place in below.items()}

    def directories(self) -> list[str]:
        """Return the directory to join in each hierarchy."""
        mount_points = dict.fromkeys(self._hierarchies.controllers.values())
        return [os.path.normpath(f"{point}{self.path}/{self._below.get(point, '')}") for point in mount_points]


def plain_limits(resources: Resources) -> list[tuple[str, str, str, str]]:
    """Return (field, controller, file, text) for each limit that is one number in one file."""
    writes: list[tuple[str, str, str, str]] = []
    for section, controller, table in _TABLES:
        values = resources.get(section) or {}
        for field, name in table.items():
            value = values.get(field)
            if value is None or (value in {0, ""} and field not in _ZERO_COUNTS):
                continue
            if value is True or value is False:
                value = int(value)
            if field == "limit" and section == "pids":
                value = "max" if value < 0 else max(value, 1)
            writes.append((f"{section}.{field}", controller, name, str(value)))
    writes += _block_io(resources.get("blockIO") or {})
    network = resources.get("network") or {}
    if network.get("classID") is not None:
        writes.append(("network.classID", "net_cls", "net_cls.classid", str(network["classID"])))
    for priority in network.get("priorities") or ():
        text = f"{priority['name']} {priority['priority']}"
        writes.append(("network.priorities", "net_prio", "net_prio.ifpriomap", text))
    for device, limit in (resources.get("rdma") or {}).items():
        text = device + "".join(
            f" {name}={limit[key]}"
            for key, name in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
            if limit.get(key) is not None
        )
        writes.append(("rdma", "rdma", "rdma.max", text))
    return writes


def _block_io(block_io: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    # The names depend on the I/O scheduler that the kernel has: CFQ's until 4.20, BFQ's since.
    writes = []
    if block_io.get("weight"):
        writes.append(("blockIO.weight", "blkio", "blkio.bfq.weight", str(block_io["weight"])))
    for device in block_io.get("weightDevice") or ():
        text = f"{device['major']}:{device['minor']} {device.get('weight', 0)}"
        writes.append(("blockIO.weightDevice", "blkio", "blkio.bfq.weight_device", text))
    for field, name in _THROTTLE.items():
        for device in block_io.get(field) or ():
            text = f"{device['major']}:{device['minor']} {device['rate']}"
            writes.append((f"blockIO.{field}", "blkio", name, text))
    return writes


# The period goes before the quota, the burst after it: each is checked against the one before.
_CPU: Final = {
    "shares": "cpu.shares", "period": "cpu.cfs_period_us", "quota": "cpu.cfs_quota_us", "burst": "cpu.cfs_burst_us",
    "realtimePeriod": "cpu.rt_period_us", "realtimeRuntime": "cpu.rt_runtime_us", "idle": "cpu.idle",
}  # fmt: skip
_CPUSET: Final = {"cpus": "cpuset.cpus", "mems": "cpuset.mems"}
_MEMORY: Final = {
    "reservation": "memory.soft_limit_in_bytes", "kernelTCP": "memory.kmem.tcp.limit_in_bytes",
    "swappiness": "memory.swappiness", "disableOOMKiller": "memory.oom_control", "useHierarchy": "memory.use_hierarchy",
}  # fmt: skip
_TABLES: Final = (
    ("cpu", "cpu", _CPU), ("cpu", "cpuset", _CPUSET), ("memory", "memory", _MEMORY),
    ("pids", "pids", {"limit": "pids.max"}),
)  # fmt: skip
_ZERO_COUNTS: Final = {"swappiness", "useHierarchy", "disableOOMKiller", "idle", "burst", "limit"}
_THROTTLE: Final = {
    "throttleReadBpsDevice": "blkio.throttle.read_bps_device",
    "throttleWriteBpsDevice": "blkio.throttle.write_bps_device",
    "throttleReadIOPSDevice": "blkio.throttle.read_iops_device",
    "throttleWriteIOPSDevice": "blkio.throttle.write_iops_device",
}


def _inherit_cpuset(mount_point: str, directory: str) -> None:
    """Fill cpus and mems, which start empty, from the parent: nobody can join an empty cpuset."""
    if directory == mount_point:
        return
    for name in ("cpuset.cpus", "cpuset.mems"):
        if files.read(f"{directory}/{name}").strip():
            continue
        parent = os.path.dirname(directory)
        if not files.read(f"{parent}/{name}").strip():
            _inherit_cpuset(mount_point, parent)
        files.write(f"{directory}/{name}", files.read(f"{parent}/{name}").strip())
