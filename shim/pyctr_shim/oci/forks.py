"""The forks: a child that becomes a container's init, one forked ahead for that, one that joins.

A process joins or makes a PID namespace for its next children only; each fork here is followed by
the way back. `os.fork` tells the interpreter, clone3 does not, which is all right for a process of one
thread whose child executes something else.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pyctr_shim.oci import exec as joining
from pyctr_shim.oci import init
from pyctr_shim.oci.cgroups import Hierarchies
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_sys import pagemap
from pyctr_sys.namespaces import Clone, clone3, setns, unshare
from pyctr_sys.pidfd import pidfd_open, pidfd_send_signal, wait


@dataclass(frozen=True, slots=True)
class Child:
    """A forked child and our end of the channel to it; whoever has it owns both fds and reaps it."""

    pid: int
    pidfd: int
    channel: Channel

    def end(self) -> None:
        """Kill and reap it, and close everything."""
        self.channel.close()
        kill_and_reap(self.pidfd)


def kill_and_reap(pidfd: int) -> None:
    """Kill a child, wait for its end and close the pidfd."""
    with suppress(ProcessLookupError):
        pidfd_send_signal(pidfd, signal.SIGKILL)
    wait(pidfd)
    os.close(pidfd)


def fork_init(request: init.Request) -> Child:
    """Fork a child that becomes init of a new PID namespace, or a stager."""
    ours, theirs = Channel.pair()
    pid = os.fork() if request.staged else _fork_from(lambda: unshare(Clone.NEWPID), os.fork)
    if pid == 0:
        ours.close()
        init.become(request, theirs)
    theirs.close()
    return Child(pid, pidfd_open(pid), ours)


def fork_ahead(hierarchies: Hierarchies, pages: pagemap.Ranges) -> Child:
    """Fork a child that will be given its request later and does meanwhile what does not depend on it."""
    ours, theirs = Channel.pair()
    pid = _fork_from(lambda: unshare(Clone.NEWPID), os.fork)
    if pid == 0:
        ours.close()
        init.wait(theirs, hierarchies, pages)
    theirs.close()
    return Child(pid, pidfd_open(pid), ours)


def send_request(child: Child, request: init.Request) -> bool:
    """Give a child that was forked ahead its request. Returns False if it has ended meanwhile."""
    try:
        child.channel.send(
            Message.CREATE,
            request.stdio,
            id=request.id,
            bundle=request.bundle,
            state_directory=request.state_directory,
            rootfs=[(item.type, item.source, item.target, item.options) for item in request.rootfs],
            no_pivot_root=request.no_pivot_root,
            no_new_keyring=request.no_new_keyring,
            console_size=request.console_size,
            seccomp_cache=request.seccomp_cache,
        )
    except BrokenPipeError:
        return False
    return True


def fork_into(request: joining.Request) -> Child:
    """Fork into a container's PID namespace, and on version 2 into its cgroup.

    Raises ProcessLookupError if the container has ended.
    """
    ours, theirs = Channel.pair()

    def enter() -> None:
        if request.namespaces & Clone.NEWPID:
            setns(request.init_pidfd, Clone.NEWPID)

    def clone_into_cgroup() -> int:
        cgroup_fd = os.open(request.cgroup.directory_for_clone(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return clone3(Clone.INTO_CGROUP, signal.SIGCHLD, cgroup_fd)
        finally:
            os.close(cgroup_fd)

    try:
        pid = _fork_from(enter, clone_into_cgroup if request.in_cgroup else os.fork)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        ours.close()
        joining.become(request, theirs)
    theirs.close()
    return Child(pid, pidfd_open(pid), ours)


def _fork_from(enter: Callable[[], None], fork: Callable[[], int]) -> int:
    """Fork with another PID namespace for the child; both ways of entering one spare the caller itself."""
    own_fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        enter()
        pid = fork()
    finally:
        if pid != 0:
            setns(own_fd, Clone.NEWPID)
        os.close(own_fd)
    return pid
