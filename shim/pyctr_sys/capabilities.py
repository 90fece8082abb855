"""Capability sets of the calling thread: capset(2), prctl(2)."""

from collections.abc import Iterable
from functools import cache

from pyctr_sys.calls import check, ffi, libc

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


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set three of the sets (bit masks). Raises PermissionError for what is not permitted now."""
    header = ffi.new("struct cap_header *", (_VERSION_3, 0))
    masks = (effective, permitted, inheritable)
    low, high = tuple(m & 0xFFFFFFFF for m in masks), tuple(m >> 32 for m in masks)
    check(libc.capset(header, ffi.new("struct cap_data[2]", [low, high])), "capset")


@cache
def bounding_set() -> int:
    """Return the bounding set as a bit mask; numbers that the kernel does not know are 0.

    Asked once, which takes a call per capability: this process's own only shrinks right before it executes
    something else, and its children start with it.
    """
    mask = 0
    for number in range(64):
        present = libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)
        if present < 0:  # EINVAL: the first number beyond the kernel's last
            return mask
        mask |= present << number
    return mask


def drop_from_bounding_set(numbers: Iterable[int]) -> None:
    """Remove capabilities from the bounding set. Raises PermissionError without CAP_SETPCAP."""
    for number in numbers:
        check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")


def set_keep_capabilities(value: int) -> None:
    """With 1, the permitted set survives a change from uid 0; the next exec resets it."""
    check(libc.prctl(_PR_SET_KEEPCAPS, value, 0, 0, 0), "prctl(PR_SET_KEEPCAPS)")


def clear_ambient_set() -> None:
    """Empty the ambient set."""
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT_CLEAR_ALL)")


def raise_ambient(number: int) -> None:
    """Add to the ambient set. Raises PermissionError unless it is permitted and inheritable."""
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), "prctl(PR_CAP_AMBIENT_RAISE)")
