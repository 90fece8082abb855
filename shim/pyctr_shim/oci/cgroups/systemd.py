"""Cgroups that are systemd's: a transient scope per container, its limits told to systemd too.

    linux.cgroupsPath   slice:prefix:name, by default system.slice:pyctr:<container>
    the unit            prefix-name.scope, in that slice
    the cgroup          <mount point>/<the slice and those that it is in>/<unit>

systemd makes the cgroup, moves into it whoever asks, and leaves what is in it to us (Delegate). It
writes the limits that it knows again whenever it reloads its units, so it must know ours; the kernel is given all of
them directly, those that systemd has no word for too. Properties are made of checked numbers only, never of
annotations. Source: org.freedesktop.systemd1(5), systemd.resource-control(5).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pyctr_shim.oci.cgroups import dbus
from pyctr_shim.oci.cgroups.manager import Cgroup, Hierarchies, Resources
from pyctr_shim.oci.cgroups.v1 import CgroupV1
from pyctr_shim.oci.cgroups.v2 import CgroupV2, weight_of_shares
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.scheduling import parse_numbers

_PRIVATE: Final = "/run/systemd/private"
_SYSTEM_BUS: Final = "/run/dbus/system_bus_socket"
_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"
_JOB_REMOVED: Final = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"
_SECONDS: Final = 30.0
_NO_LIMIT: Final = (1 << 64) - 1
_UNIT_BYTES: Final = 255
_WORD: Final = re.compile(r"[A-Za-z0-9:_.\\@-]*")
_SLICE: Final = re.compile(r"[A-Za-z0-9:_.\\@]+(-[A-Za-z0-9:_.\\@]+)*\.slice")
_MILLION: Final = 1_000_000
_QUOTA_STEP_US: Final = 10_000  # systemd rounds the processor time of a second to this

Property = tuple[str, tuple[str, Any]]


def unit_path(spec_path: str, container: str) -> str:
    """Return linux.cgroupsPath complete, as `slice:prefix:name`; it tells itself apart from a plain path.

    Raises OciError for one that is none.
    """
    parts = (spec_path or f"::{container}").split(":", 2)
    if len(parts) != 3:
        raise OciError(
            f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got {spec_path!r} instead'
        )
    slice_, prefix, name = parts[0] or "system.slice", parts[1] if spec_path else "pyctr", parts[2]
    if slice_ != "-.slice" and not _SLICE.fullmatch(slice_):
        raise OciError(f"linux.cgroupsPath: {slice_!r} is not the name of a slice")
    unit = _unit(prefix, name)
    if not name or not _WORD.fullmatch(prefix + name) or len(unit) > _UNIT_BYTES:
        raise OciError(f"linux.cgroupsPath: {unit!r} is not the name of a unit")
    return f"{slice_}:{prefix}:{name}"


def _unit(prefix: str, name: str) -> str:
    return f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def expand(slice_: str) -> str:
    """Return the cgroup of a slice: `a-b.slice` lies in `a.slice`."""
    if slice_ == "-.slice":
        return ""
    words = slice_.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))


def cgroup_of(hierarchies: Hierarchies, path: str) -> Cgroup:
    """Return the cgroup of a path that `unit_path` has completed."""
    return _ScopeV2(hierarchies, path) if hierarchies.is_v2 else _ScopeV1(hierarchies, path)


class _Scope:
    """The unit of a container's cgroup."""

    def __init__(self, path: str) -> None:
        slice_, prefix, name = path.split(":", 2)
        self.slice, self.unit = slice_, _unit(prefix, name)
        self.cgroup = f"{expand(slice_)}/{self.unit}"

    def start(self, pid: int, *, is_v2: bool) -> None:
        """Have the unit made and a process, the calling one if 0, moved into its cgroup. Raises OciError."""
        accounted = ("CPU", "Memory", "Tasks", "IO" if is_v2 else "BlockIO")
        properties: list[Property] = [
            ("Description", ("s", f"Container {self.unit.removesuffix('.scope')}")),
            ("Slice", ("s", self.slice)),
            ("PIDs", ("au", [pid or int(os.readlink("/proc/self"))])),  # as the host numbers it
            ("Delegate", ("b", True)),
            ("DefaultDependencies", ("b", False)),
            ("CollectMode", ("s", "inactive-or-failed")),
            *((f"{name}Accounting", ("b", True)) for name in accounted),
        ]
        with _manager(self.unit) as manager:
            result = _run_job(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "fail", properties, [])
            if result != "done":
                raise dbus.DBusError(f"job {result}", "")

    def set(self, properties: list[Property]) -> None:
        """Change limits, until the unit ends. Raises OciError."""
        if properties:
            with _manager(self.unit) as manager:
                manager.call(_PATH, _MANAGER, "SetUnitProperties", "sba(sv)", self.unit, True, properties)

    def stop(self) -> None:
        """Have the unit, in which nothing runs, ended, and its name free; nothing happens if it is. Raises OciError."""
        with _manager(self.unit) as manager:
            try:
                _run_job(manager, "StopUnit", "ss", self.unit, "replace")
            except dbus.DBusError as error:
                if error.name != f"{_NAME}.NoSuchUnit":
                    raise


@contextmanager
def _manager(unit: str) -> Iterator[dbus.Connection]:
    """Connect to systemd: by its own socket, or where that is not for us by the system bus. Raises OciError."""
    try:
        try:
            connection = dbus.connect(_PRIVATE, "", _SECONDS)
        except (FileNotFoundError, PermissionError, ConnectionRefusedError):
            connection = dbus.connect(_SYSTEM_BUS, _NAME, _SECONDS)
        with connection:
            yield connection
    except OSError as error:
        raise OciError(f"systemd: {unit}: {error.strerror or error}", error.errno or 0) from None


def _run_job(manager: dbus.Connection, member: str, signature: str, *arguments: Any) -> str:
    """Call a method that starts a job, await that, and return what has come of it, "done" at best. Raises DBusError."""
    manager.listen(_JOB_REMOVED)
    manager.call(_PATH, _MANAGER, "Subscribe")
    (job,) = manager.call(_PATH, _MANAGER, member, signature, *arguments)
    for _, removed, _, result in manager.signals("JobRemoved"):
        if removed == job:
            return str(result)
    raise dbus.DBusError("", "")


class _ScopeV2(CgroupV2):
    """A scope on version 2."""

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        self._scope = _Scope(path)
        super().__init__(hierarchies, self._scope.cgroup)

    def create(self, pid: int = 0) -> None:
        """Have it made, then enable what systemd does not know for it."""
        self._scope.start(pid, is_v2=True)
        super().create()

    def apply(self, resources: Resources) -> None:
        """Tell systemd the limits, then write all of them."""
        completed = self.completed(resources)  # before systemd writes the half that it is told
        self._scope.set(properties_of(completed, is_v2=True))
        super().apply(completed)

    def remove(self) -> None:
        """Remove it, unless processes are in it; then there is nothing that systemd could wait for."""
        super().remove()
        self._scope.stop()


class _ScopeV1(CgroupV1):
    """A scope on version 1: systemd's in the hierarchies that it uses, ours in the others."""

    def __init__(self, hierarchies: Hierarchies, path: str) -> None:
        self._scope = _Scope(path)
        super().__init__(hierarchies, self._scope.cgroup)

    def create(self, pid: int = 0) -> None:
        """Have it made, then make it where systemd has not."""
        self._scope.start(pid, is_v2=False)
        super().create()

    def apply(self, resources: Resources) -> None:
        """Tell systemd the limits, then write all of them."""
        self._scope.set(properties_of(resources, is_v2=False))
        super().apply(resources)

    def remove(self) -> None:
        """Remove it, unless processes are in it; then there is nothing that systemd could wait for."""
        super().remove()
        self._scope.stop()


def properties_of(resources: Resources, *, is_v2: bool) -> list[Property]:
    """Return the limits that systemd has a property for. Raises OciError for a list of CPUs that is none."""
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: list[Property] = []
    if is_v2:
        found += _memory_of(memory)
        for field, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
            if cpu.get(field):
                found.append((name, ("ay", _bitmap(parse_numbers(cpu[field])))))
    elif memory.get("limit"):
        found.append(("MemoryLimit", ("t", _or_none(memory["limit"]))))
    if shares := cpu.get("shares"):
        found.append(("CPUWeight", ("t", weight_of_shares(shares))) if is_v2 else ("CPUShares", ("t", shares)))
    found += _quota_of(cpu)
    if (limit := (resources.get("pids") or {}).get("limit")) is not None:
        found.append(("TasksMax", ("t", _or_none(max(limit, 1) if limit >= 0 else limit))))
    if not is_v2 and (rules := resources.get("devices")):  # on version 2, systemd leaves our program alone
        found += _devices_of(rules)
    return found


def _memory_of(memory: Mapping[str, Any]) -> list[Property]:
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    values = {
        "MemoryMax": limit,
        "MemoryLow": memory.get("reservation") or 0,
        "MemorySwapMax": swap if swap < 0 else None if swap == 0 else max(swap - limit, 0),
    }
    return [(name, ("t", _or_none(value))) for name, value in values.items()
            if value or (value == 0 and name == "MemorySwapMax")]  # fmt: skip


def _quota_of(cpu: Mapping[str, Any]) -> list[Property]:
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if not quota and not period:
        return []
    found: list[Property] = [("CPUQuotaPeriodUSec", ("t", period))] if period else []
    a_second = _NO_LIMIT
    if quota > 0:
        a_second = quota * _MILLION // (period or 100_000)
        a_second = min(-(-a_second // _QUOTA_STEP_US) * _QUOTA_STEP_US, _NO_LIMIT)
    return [*found, ("CPUQuotaPerSecUSec", ("t", a_second))]


def _devices_of(rules: Iterable[Mapping[str, Any]]) -> list[Property]:
    """Return what a reload may set the devices to: no more than our rules allow, which are the kernel's already.

    systemd knows exceptions from "none" only: of those from "all" it is told nothing.
    """
    allowed: list[tuple[str, str]] = []
    for rule in rules:
        kind = rule.get("type") or "a"
        major, minor = (None if rule.get(key) == -1 else rule.get(key) for key in ("major", "minor"))
        if kind == "a":
            if rule["allow"]:
                return [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]
            allowed.clear()
        elif rule["allow"]:
            folder = "block" if kind == "b" else "char"
            node = f"{folder}-*" if major is None else f"/dev/{folder}/{major}:{minor}"
            if major is None or minor is not None:  # of all minors of a major, systemd only knows the driver's name
                allowed.append((node, rule.get("access") or "rwm"))
    always = [(f"/dev/char/{number}", "rwm") for number in ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2")]
    return [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),  # those of before
        ("DeviceAllow", ("a(ss)", [*allowed, *always, ("char-pts", "rwm"), ("char-*", "m"), ("block-*", "m")])),
    ]


def _or_none(value: int) -> int:
    return _NO_LIMIT if value < 0 else value


def _bitmap(numbers: set[int]) -> list[int]:
    mask = sum(1 << number for number in numbers)
    return list(mask.to_bytes(-(-mask.bit_length() // 8), "little"))
