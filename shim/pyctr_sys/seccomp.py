"""seccomp(2): load a BPF program that judges each system call."""

from enum import IntFlag

from pyctr_sys.calls import ffi
from pyctr_sys.steps import Steps

_SET_MODE_FILTER = 1
INSTRUCTION_BYTES = 8


class FilterFlag(IntFlag):
    """Flags of SECCOMP_SET_MODE_FILTER. Source: linux/seccomp.h."""

    TSYNC = 1 << 0
    LOG = 1 << 1
    SPEC_ALLOW = 1 << 2
    NEW_LISTENER = 1 << 3
    WAIT_KILLABLE_RECV = 1 << 5


def load(program: bytes, flags: int = 0) -> None:
    """Put a classic BPF program over this thread and all that it forks or execs, for good.

    Raises OSError: EACCES without no_new_privs or CAP_SYS_ADMIN, EINVAL for a malformed program.
    """
    steps = Steps()
    add_load(steps, "seccomp(SET_MODE_FILTER)", program, flags)
    steps.run()


def add_load(steps: Steps, purpose: str, program: bytes, flags: int) -> None:
    """Make `load` a step."""
    instructions = ffi.from_buffer(program)
    pointers = {ffi.offsetof("struct sock_fprog", "filter"): steps.keep(instructions)}
    filter_ = steps.buffer("struct sock_fprog *", (len(program) // INSTRUCTION_BYTES, instructions), pointers)
    steps.call(purpose, "seccomp", _SET_MODE_FILTER, flags, filter_)
