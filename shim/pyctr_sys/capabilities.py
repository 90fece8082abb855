"""Capability sets: what this process has, and the steps that change them. capset(2), prctl(2)."""

from collections.abc import Iterable

from pyctr_sys.calls import check, ffi, libc
from pyctr_sys.steps import Steps

_VERSION_3 = 0x20080522
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# In the kernel's order: a capability's number is its place. Source: linux/capability.h.
_IN_ORDER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
NAMES = tuple(f"CAP_{name}" for name in _IN_ORDER.split())
SYS_RESOURCE = NAMES.index("CAP_SYS_RESOURCE")
SYS_ADMIN = NAMES.index("CAP_SYS_ADMIN")


def capget() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets as bit masks."""
    header = ffi.new("struct cap_header *", (_VERSION_3, 0))
    data = ffi.new("struct cap_data[2]")
    check(libc.capget(header, data), "capget")
    low, high = data[0], data[1]
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def add_capset(steps: Steps, effective: int, permitted: int, inheritable: int) -> None:
    """Set three of the sets (bit masks): EPERM for what is not permitted now."""
    masks = (effective, permitted, inheritable)
    low, high = tuple(m & 0xFFFFFFFF for m in masks), tuple(m >> 32 for m in masks)
    header = steps.buffer("struct cap_header *", (_VERSION_3, 0))
    steps.call("capset", "capset", header, steps.buffer("struct cap_data[2]", [low, high]))


def bounding_set() -> int:
    """Return the bounding set as a bit mask; numbers that the kernel does not know are 0. Takes a call for each."""
    mask = 0
    for number in range(64):
        present = libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)
        if present < 0:  # EINVAL: the first number beyond the kernel's last
            return mask
        mask |= present << number
    return mask


def add_drop(steps: Steps, numbers: Iterable[int]) -> None:
    """Remove capabilities from the bounding set: EPERM without CAP_SETPCAP."""
    for number in numbers:
        steps.call("prctl(PR_CAPBSET_DROP)", "prctl", _PR_CAPBSET_DROP, number)


def add_keep(steps: Steps, value: int) -> None:
    """With 1, the permitted set survives a change from uid 0; the next exec resets it."""
    steps.call("prctl(PR_SET_KEEPCAPS)", "prctl", _PR_SET_KEEPCAPS, value)


def add_ambient(steps: Steps, numbers: Iterable[int]) -> None:
    """Make these the ambient set: EPERM for what is not permitted and inheritable."""
    steps.call("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in numbers:
        steps.call("prctl(PR_CAP_AMBIENT_RAISE)", "prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
