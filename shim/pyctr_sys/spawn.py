"""Processes that do without a copy of memory: clone(2) with CLONE_VM.

A fork copies page tables, then each page that either side writes to, and the exec throws all of it away: for an
interpreter that is milliseconds. See routine.py for what runs in such a process instead of Python.
"""

import os

from pyctr_sys.calls import address, ffi
from pyctr_sys.namespaces import Clone, clone_arguments
from pyctr_sys.routine import routine
from pyctr_sys.steps import STEP_BYTES, StepFailed, Steps


def spawn(steps: Steps, flags: int, exit_signal: int, cgroup_fd: int = 0) -> tuple[int, int]:
    """Make a process that goes through `steps`, of which the last executes a program; return its pid and a pidfd.

    The calling process, of one thread, stands still meanwhile. `flags`, `exit_signal` and `cgroup_fd` are those of
    clone3. Raises StepFailed; the process has ended then and, unless it is a sibling (PARENT), been reaped.
    """
    run = routine()
    assert run is not None
    pidfd = ffi.new("int *", -1)
    arguments = clone_arguments(flags | Clone.VM | Clone.VFORK, exit_signal, cgroup_fd, pidfd)
    table = steps.table()
    order = ffi.new("uintptr_t[5]", [address(arguments), ffi.sizeof("struct clone_args"), address(table), 0, 0])
    pid = int(run(address(order)))
    if pid < 0:
        raise OSError(-pid, f"clone3: {os.strerror(-pid)}")
    if order[3]:
        index = (order[3] - address(table)) // STEP_BYTES
        if not flags & Clone.PARENT:
            os.waitpid(pid, 0)
        os.close(pidfd[0])
        reason = -int(ffi.cast("intptr_t", order[4]))
        raise StepFailed(reason, f"{steps.purpose(index)}: {os.strerror(reason)}")
    return pid, int(pidfd[0])
