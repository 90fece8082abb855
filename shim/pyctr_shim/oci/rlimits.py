"""Resource limits. A hard limit is raised first of all, with the runtime's privileges, or the process is refused."""

import errno
import resource
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.steps import Steps

_NUMBERS: Final = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_NUMBERS["RLIMIT_LOCKS"] = 10  # Linux has kept the number of what no longer counts
_NAMES: Final = frozenset(_NUMBERS)
_INFINITY: Final = 1 << 63  # (1 << 64) - 1 for the kernel; what is between them is more than there can be of anything


def known(name: str) -> bool:
    """Whether the kernel has a limit of that name."""
    return name in _NAMES


def raise_hard(rlimits: Iterable[Mapping[str, Any]]) -> None:
    """Raise hard limits while this process may. Raises OciError for one that stays lower than asked."""
    for limit in rlimits:
        number, hard = _NUMBERS[limit["type"]], _value(limit["hard"])
        soft, most = resource.getrlimit(number)
        if _least(hard, most) == hard:
            continue
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:  # ValueError stands for EPERM
            text = f"process.rlimits: {limit['type']}: hard limit {limit['hard']} is above the runtime's own, {most}"
            raise OciError(f"{text}: {_why_not(number, hard)}", getattr(error, "errno", errno.EPERM)) from None


def _why_not(number: int, hard: int) -> str:
    if number == resource.RLIMIT_NOFILE:
        with open("/proc/sys/fs/nr_open", "rb") as file:
            most = int(file.read())
        if _least(hard, most) != hard:
            return f"this machine's most is {most} (sysctl fs.nr_open)"
    return "raising it needs CAP_SYS_RESOURCE"


def apply(rlimits: Iterable[Mapping[str, Any]]) -> None:
    """Set limits that `raise_hard` has made room for. Raises OciError if soft exceeds hard.

    Comes late: a limit on open files or memory binds this code too.
    """
    for limit in rlimits:
        number = _NUMBERS[limit["type"]]
        soft, hard = _value(limit["soft"]), _value(limit["hard"])
        if _least(soft, hard) != soft:
            raise OciError(f"process.rlimits: {limit['type']}: soft limit {soft} exceeds hard limit {hard}")
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as error:  # a type that is given twice may be below itself by now
            raise OciError(f"process.rlimits: {limit['type']}: {error}", getattr(error, "errno", errno.EPERM)) from None


def lower(pid: int, rlimits: Iterable[Mapping[str, Any]]) -> None:
    """Lower another process's limits to these where they are above. Raises OSError."""
    for limit in rlimits:
        number, most = _NUMBERS[limit["type"]], _value(limit["hard"])
        soft, hard = resource.prlimit(pid, number)
        if _least(hard, most) != hard:
            resource.prlimit(pid, number, (_least(soft, most), most))


def add_to(steps: Steps, rlimits: Iterable[Mapping[str, Any]]) -> None:
    """Make them steps, for a process that may raise hard limits; EINVAL if soft exceeds hard, EPERM if it may not."""
    for limit in rlimits:
        values = steps.buffer("uint64_t[2]", [limit["soft"], limit["hard"]])
        steps.call(f"process.rlimits: {limit['type']}", "prlimit64", 0, _NUMBERS[limit["type"]], values, 0)


def _value(number: int) -> int:
    return resource.RLIM_INFINITY if number >= _INFINITY else number


def _least(wanted: int, most: int) -> int:
    if most == resource.RLIM_INFINITY:
        return wanted
    return most if wanted == resource.RLIM_INFINITY else min(wanted, most)
