"""The forks: a child that becomes a container's init, one forked ahead for that, one that joins.

They are made by clone3, not by os.fork, which runs what modules have registered for after a fork (threading,
random) and so touches a hundred pages more, each of which is then copied. All right for a process of one thread
whose child executes something else or ends by os._exit.
"""

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from pyctr_shim.oci import exec as joining
from pyctr_shim.oci import init, program
from pyctr_shim.oci.cgroups import Hierarchies
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_sys import pagemap
from pyctr_sys.namespaces import Clone, clone3, setns
from pyctr_sys.pidfd import pidfd_send_signal, wait


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


_kinship: tuple[int, int] = (0, signal.SIGCHLD)  # clone's flag and signal: this process's children


def fork_siblings() -> None:
    """From now on all that is forked here is the child of our own parent, which reaps it."""
    global _kinship  # a process is what forks
    _kinship = (Clone.PARENT, 0)


def kill_and_reap(pidfd: int) -> None:
    """Kill what was forked, wait for its end and close the pidfd."""
    with suppress(ProcessLookupError):
        pidfd_send_signal(pidfd, signal.SIGKILL)
    wait(pidfd)
    os.close(pidfd)


def fork_init(request: init.Request) -> Child:
    """Fork a child that becomes init of a new PID namespace, or a stager."""
    return _fork(0 if request.staged else Clone.NEWPID, lambda channel: partial(init.become, request, channel))


def fork_ahead(hierarchies: Hierarchies, pages: pagemap.Ranges) -> Child:
    """Fork a child that will be given its request later and does meanwhile what does not depend on it."""
    return _fork(Clone.NEWPID, lambda channel: partial(init.wait, channel, hierarchies, pages))


def _fork(flags: int, prepare: Callable[[Channel], Callable[[], NoReturn]], cgroup_fd: int = 0) -> Child:
    """Fork a child that does what `prepare` returns, given the child's end of a channel.

    The child closes our end of it, though not before it does anything else.
    """
    program.ignored_signals()
    ours, theirs = Channel.pair()
    try:
        become = prepare(theirs)
        kinship, exit_signal = _kinship
        pid, pidfd = clone3(flags | kinship, exit_signal, cgroup_fd)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        become()
    theirs.close()
    return Child(pid, pidfd, ours)


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
    """Fork a child that joins a container: into its PID namespace, and on version 2 into its cgroup.

    Raises ProcessLookupError if the container has ended, OciError for what is asked wrongly.
    """
    joiner = joining.Joiner(request)
    # Joining a PID namespace is for a process's next children: this one does it for a moment.
    own_fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if request.namespaces & Clone.NEWPID:
            setns(request.init_pidfd, Clone.NEWPID)
        if not request.in_cgroup:
            return _fork(0, joiner.prepare)
        try:
            return _fork_into_cgroup(request.cgroup.directory_for_clone(), joiner.prepare)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # An init that is a systemd has moved itself further down and left no room for processes here.
            return _fork_into_cgroup(request.cgroup.directory_of(request.init_pid), joiner.prepare)
    finally:
        # Never reached in the child, which ends in `become`.
        setns(own_fd, Clone.NEWPID)
        os.close(own_fd)
        joiner.close()


def _fork_into_cgroup(directory: str, prepare: Callable[[Channel], Callable[[], NoReturn]]) -> Child:
    cgroup_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _fork(Clone.INTO_CGROUP, prepare, cgroup_fd)
    finally:
        os.close(cgroup_fd)
