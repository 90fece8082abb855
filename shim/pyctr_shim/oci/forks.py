"""The forks: a child that becomes a container's init, one that joins.

They are made by clone3, not by os.fork, which runs what modules have registered for after a fork (threading,
random) and so touches a hundred pages more, each of which is then copied. All right for a process of one thread
whose child executes something else or ends by os._exit.
"""

import errno
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from pyctr_shim.oci import capabilities, init, program
from pyctr_shim.oci import exec as joining
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.state import State
from pyctr_sys import stub
from pyctr_sys.namespaces import Clone, clone3, groups_are_denied, in_user_namespace, setns
from pyctr_sys.pidfd import pidfd_open, pidfd_send_signal, readable, wait
from pyctr_sys.process import set_dumpable
from pyctr_sys.spawn import spawn
from pyctr_sys.stub import Stub

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Dump


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


_UNDO_SECONDS: Final = 20.0
_kinship: tuple[int, int] = (0, signal.SIGCHLD)  # clone's flag and signal: this process's children
# Of one that is older, the age would show: a container's first process tells since when it runs, and monitoring asks.
_FRESH_SECONDS: Final = 2.0
_ahead: tuple[Stub, float] | None = None  # and when it was started


def fork_siblings() -> None:
    """From now on all that is forked here, or by a child of ours, is the child of that one's parent, which reaps it."""
    global _kinship  # a process is what forks
    _kinship = (Clone.PARENT, 0)


def look_up_once() -> None:
    """Find out what every fork needs to know, for this process and all that are forked from it."""
    program.handled_signals()
    capabilities.inherited()
    groups_are_denied()
    with suppress(OSError):
        stub.program()


def kill_and_reap(pidfd: int) -> None:
    """Kill what was forked, wait for its end and close the pidfd."""
    with suppress(ProcessLookupError):
        pidfd_send_signal(pidfd, signal.SIGKILL)
    wait(pidfd)
    os.close(pidfd)


def give_up(channel: Channel, pidfd: int) -> None:
    """Let who restores at the other end of a channel undo what he has made, and end; by force if he does not."""
    channel.close()
    readable(pidfd, _UNDO_SECONDS)
    kill_and_reap(pidfd)


def fork_init(request: init.Request) -> Child:
    """Fork a child that becomes init of a new PID namespace, or a stager."""
    return _fork(0 if request.staged else Clone.NEWPID, lambda channel: partial(init.become, request, channel))


def fork_restorer(request: init.Request) -> Child:
    """Fork a child that makes a container of a checkpoint; it is not init, which it tells of."""
    return _fork(0, lambda channel: partial(_restore, request, channel))


def _restore(request: init.Request, channel: Channel) -> NoReturn:
    from pyctr_shim.oci.checkpoint import restore  # in the child alone: no shim is to have it

    restore.become(request, channel)


def fork_dumper(record: State, choices: "Dump") -> Child:
    """Fork a child that saves a container; its channel ends when that is done, or tells why it failed."""
    return _fork(0, lambda channel: partial(_dump, record, choices, channel))


def _dump(record: State, choices: "Dump", channel: Channel) -> NoReturn:
    from pyctr_shim.oci.checkpoint import dump  # as above

    dump.become(record, choices, channel)


def _fork(flags: int, prepare: Callable[[Channel], Callable[[], NoReturn]], cgroup_fd: int = 0) -> Child:
    """Fork a child that does what `prepare` returns, given the child's end of a channel.

    The child closes our end of it, though not before it does anything else.
    """
    ours, theirs = Channel.pair()
    try:
        pid, pidfd = _clone(flags, prepare(theirs), cgroup_fd)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    theirs.close()
    return Child(pid, pidfd, ours)


def _clone(flags: int, become: Callable[[], NoReturn], cgroup_fd: int = 0) -> tuple[int, int]:
    """Fork a child that does `become`; return its pid and a pidfd."""
    look_up_once()
    kinship, exit_signal = _kinship
    pid, pidfd = clone3(flags | kinship, exit_signal, cgroup_fd)
    if pid == 0:
        gc.disable()  # a collection here would run finalizers of what is the parent's
        become()
    return pid, pidfd


def start_ahead() -> None:
    """Start a stub now that the next container takes, whose creation then does not wait for that."""
    global _ahead  # like kinship
    if mounted().is_v2 or in_user_namespace() or os.geteuid():
        return  # nobody takes one there
    with suppress(OSError):  # what is wrong is found out by whoever needs one
        _ahead = _start_stub(), _now()


def dismiss() -> None:
    """Let a stub end that has been started ahead and that nobody has taken."""
    taken = _take()
    if taken is not None:
        taken.end()


def dismiss_old() -> None:
    """Do that if it was started more than a moment ago."""
    if _ahead is not None and _now() - _ahead[1] > _FRESH_SECONDS:
        dismiss()


def start_stub(cgroup_fd: int = 0) -> Stub:
    """Start a stub in a new PID namespace, and in a cgroup if its directory is given. As `stub.start`."""
    return (None if cgroup_fd else _take()) or _start_stub(cgroup_fd)


def _take() -> Stub | None:
    global _ahead  # as above
    taken, _ahead = _ahead, None
    return taken[0] if taken is not None else None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # by which the kernel counts the age of processes


def _start_stub(cgroup_fd: int = 0) -> Stub:
    flags, exit_signal = _kinship
    return stub.start(flags | Clone.NEWPID | (Clone.INTO_CGROUP if cgroup_fd else 0), exit_signal, cgroup_fd)


def spawn_into(joiner: joining.Joiner) -> tuple[int, int] | None:
    """Have a process join a container and execute its program, in one go; return its pid and a pidfd.

    None where that cannot be, or did not work: `fork_into` then says why, or does it. Raises ProcessLookupError if
    the container has ended.
    """
    steps = None if _never_comes_back(joiner.request) else joiner.straight()
    if steps is None:
        return None
    flags, exit_signal = _kinship
    set_dumpable(0)  # nobody in the container may look into a process that has our memory
    with _pid_namespace_of(joiner.request):
        try:
            if not joiner.request.in_cgroup:
                return spawn(steps, flags, exit_signal)
            with _directory(joiner.request.cgroup.directory_for_clone()) as cgroup_fd:
                return spawn(steps, flags | Clone.INTO_CGROUP, exit_signal, cgroup_fd)
        except OSError:
            return None


def fork_into(joiner: joining.Joiner) -> Child:
    """Fork a child that joins a container: into its PID namespace, and on version 2 into its cgroup.

    Raises ProcessLookupError if the container has ended.
    """
    if _never_comes_back(joiner.request):
        return _fork_by_another(joiner)
    with _pid_namespace_of(joiner.request):
        return _fork_there(joiner)


def _fork_there(joiner: joining.Joiner) -> Child:
    """Fork a child that joins a container, from its PID namespace."""
    request = joiner.request
    if not request.in_cgroup:
        return _fork(0, joiner.prepare)
    try:
        with _directory(request.cgroup.directory_for_clone()) as cgroup_fd:
            return _fork(Clone.INTO_CGROUP, joiner.prepare, cgroup_fd)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # An init that is a systemd has moved itself further down and left no room for processes here.
        with _directory(request.cgroup.directory_of(request.init_pid)) as cgroup_fd:
            return _fork(Clone.INTO_CGROUP, joiner.prepare, cgroup_fd)


def _never_comes_back(request: joining.Request) -> bool:
    """Whether to enter a container's PID namespace is for good: ours belongs to the machine's root, who we are not."""
    return bool(request.namespaces & Clone.NEWPID) and in_user_namespace()


def _fork_by_another(joiner: joining.Joiner) -> Child:
    """Have the child that joins forked by a child that enters the PID namespace and ends; they are siblings."""
    told, tell = Channel.pair()
    try:
        _pid, pidfd = _clone(0, partial(_fork_and_tell, joiner, tell))
    except BaseException:
        told.close()
        raise
    finally:
        tell.close()
    try:
        answer = told.receive()
    finally:
        told.close()
        wait(pidfd)
        os.close(pidfd)
    if answer is None or answer[0] is not Message.INIT:
        fields = answer[1] if answer else {"errno": errno.ECHILD, "text": "the process that forks has ended"}
        raise OSError(fields["errno"], fields["text"])
    child_pidfd, channel_fd = answer[2]
    return Child(answer[1]["pid"], child_pidfd, Channel.of(channel_fd))


def _fork_and_tell(joiner: joining.Joiner, tell: Channel) -> NoReturn:
    try:
        fork_siblings()
        setns(joiner.request.init_pidfd, Clone.NEWPID)
        child = _fork_there(joiner)
        tell.send(Message.INIT, [child.pidfd, child.channel.fileno()], pid=child.pid)
    except OSError as error:
        tell.fail(os.strerror(error.errno or 0), error.errno or 0)
    finally:
        os._exit(0)


@contextmanager
def _pid_namespace_of(request: joining.Request) -> Iterator[None]:
    """Join a container's PID namespace for this process's next children, for a moment; a forked child never leaves."""
    own_fd = pidfd_open(os.getpid())  # stands for all of our namespaces, and is found faster than one in /proc
    try:
        if request.namespaces & Clone.NEWPID:
            setns(request.init_pidfd, Clone.NEWPID)
        yield
    finally:
        setns(own_fd, Clone.NEWPID)
        os.close(own_fd)


@contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
