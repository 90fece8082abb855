"""A further process of a running container, from fork to exec.

The parent forks the child into the container's PID namespace; here it joins the cgroup, then all other
namespaces in one setns, and becomes what the process document says. Everything that does not depend on
the container's inside is worked out by the parent: for the child, each page that it touches is a page to copy.
"""

import fcntl
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final, NoReturn

from pyctr_shim.oci import (
    capabilities,
    console,
    lockdown,
    lsm,
    program,
    rdt,
    rlimits,
    scheduling,
    seccomp,
    user,
    validate,
)
from pyctr_shim.oci.cgroups import Cgroup
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.identity import Identity
from pyctr_sys.namespaces import Clone
from pyctr_sys.openat2 import O_PATH, open_in_root
from pyctr_sys.process import (
    LAST_FD,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    add_session_keyring,
    join_session_keyring,
)
from pyctr_sys.routine import routine
from pyctr_sys.steps import Steps

_NAME: Final = b"pyctr-exec"
_STDIO: Final = 3
_HERE: Final = -100  # AT_FDCWD
_PATH: Final = O_PATH | os.O_CLOEXEC
_REMEMBERED: Final = 4
_NOT_STRAIGHT: Final = ("terminal", "scheduler", "ioPriority", "execCPUAffinity")


@dataclass(frozen=True, slots=True)
class Request:
    """Which process is to join which container, and how."""

    id: str
    init_pid: int
    init_pidfd: int
    namespaces: int
    cgroup: Cgroup
    seccomp: str
    seccomp_flags: int
    linux: Mapping[str, Any]  # what of the spec's linux section every process gets, see state.py
    process: bytes
    stdio: tuple[int, int, int]
    preserve_fds: int
    no_new_keyring: bool
    console_size: tuple[int, int] | None
    in_cgroup: bool  # the fork has put it there already


class Joiner:
    """One exec: planned by the parent, done by the child."""

    def __init__(self, request: Request) -> None:
        """Plan, and open what the child needs. Raises OciError for a process document that cannot be followed."""
        self.request = request
        self._process = _load(request.process)
        self._env = user.environment(self._process)
        self._uid: int = (self._process.get("user") or {}).get("uid") or 0
        self._filter = seccomp.read(request.seccomp, request.seccomp_flags)
        # Joining a user namespace brings capabilities of its own: the child plans then.
        own = None if request.namespaces & Clone.NEWUSER else capabilities.inherited()
        self._identity = None if own is None else _plan_identity(request.process, self._filter, *own)
        self._lowest = _STDIO + request.preserve_fds
        self._opened: list[int] = []
        try:
            self._stdio_fds = [self._duplicate(fd) for fd in request.stdio]  # they may be 0 to 2 in another order
            self._init_pidfd = self._above(request.init_pidfd)
            self._root_fds = self._open_root()
            self._cgroup_fds = [self._above(fd) for fd in self._open_cgroup()]
        except BaseException:
            self.close()
            raise
        self._join, self._enter, self._leave = Steps(), Steps(), Steps()
        self._plan_steps()

    def straight(self) -> Steps | None:
        """Return all that is to be done as steps for a spawned process; None where that cannot be.

        Terminals, user namespaces and what is seldom asked for need decisions inside the container, and who joins a
        time namespace must not share its memory, where the kernel keeps the clocks. Steps that fail are no verdict:
        whoever forks instead finds out the reason, or that there is none.
        """
        request, process = self.request, self._process
        if self._identity is None or request.namespaces & Clone.NEWTIME or request.preserve_fds or os.geteuid():
            return None
        if any(process.get(field) for field in _NOT_STRAIGHT) or routine() is None:
            return None
        if self._filter is not None and self._filter.notifies:
            return None
        try:
            root_fd = self._root_fds[0] if self._root_fds else self._open_init_root()
            directory_fd = self._opening(open_in_root(root_fd, process["cwd"], _PATH | os.O_DIRECTORY))
            user.add_home(self._env, self._uid, root_fd)
            path = program.find_below(root_fd, process["args"][0], self._env)
            if path is None:
                return None
            steps = self._arrival(directory_fd)
            self._add_oom_score(steps, directory_fd)
            self._add_label(steps, directory_fd)
            for part in (self._join, self._enter):
                steps.add(part)
            steps.call("umask", "umask", 0)
            steps.call("setsid", "setsid")
            if not request.no_new_keyring:
                add_session_keyring(steps, f"_ses.{request.id}")
            self._identity.add_assume(steps, directory_fd)
            steps.add(self._leave)
            self._identity.add_seal(steps)
            program.add_execute(steps, path, process["args"], self._env)
        except (OSError, OciError, ValueError):
            return None
        user.give_stdio(self._uid, self._stdio_fds)
        return steps

    def close(self) -> None:
        """Close what was opened for the child, which has its own by now."""
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()

    def prepare(self, channel: Channel) -> Callable[[], NoReturn]:
        """Return what the child is to do, given its end of the channel."""
        channel.move_above(self._lowest)
        return partial(self._become, self._arrival(channel.fileno()), channel)

    def _arrival(self, kept_fd: int) -> Steps:
        """Return the first steps: the stdio in place, and nothing else open but what is still needed."""
        arrive = Steps()
        arrive.call("prctl", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, fd in enumerate(self._stdio_fds):
            arrive.call("dup3", "dup3", fd, number)
        # A lock or a client's pipe kept open here would outlive the shim.
        first = self._lowest
        for fd in sorted((kept_fd, *self._kept())):
            if first < fd:
                arrive.call("close_range", "close_range", first, fd - 1)
            first = fd + 1
        arrive.call("close_range", "close_range", first, LAST_FD)
        return arrive

    def _add_oom_score(self, steps: Steps, kept_fd: int) -> None:
        score = self._process.get("oomScoreAdj")
        if score is not None:
            self._add_write(steps, "process.oomScoreAdj", "oom_score_adj", str(score), kept_fd)

    def _add_label(self, steps: Steps, kept_fd: int) -> None:
        for field, names, text in lsm.exec_labels(self._process):
            self._add_write(steps, field, lsm.first_of(names), text, kept_fd)

    def _add_write(self, steps: Steps, purpose: str, name: str, text: str, kept_fd: int) -> None:
        """Write to a file of the process's own in the host's /proc."""
        kept = (kept_fd, *self._kept())
        lowest_free = next(fd for fd in range(_STDIO, _STDIO + len(kept) + 1) if fd not in kept)
        path, data = steps.buffer("char[]", f"/proc/self/{name}".encode()), text.encode()
        steps.call(purpose, "openat", _HERE, path, os.O_WRONLY | os.O_CLOEXEC)
        steps.call(purpose, "write", lowest_free, steps.buffer("char[]", data), len(data))
        steps.call(purpose, "close_range", lowest_free, lowest_free)

    def _plan_steps(self) -> None:
        zero = self._join.buffer("char[]", b"0")
        for fd in self._cgroup_fds:
            self._join.call(f"joining cgroup {self.request.cgroup.path}", "write", fd, zero, 1)  # or linux.intelRdt's
        name = self._enter.buffer("char[]", _NAME)
        self._enter.call("prctl", "prctl", PR_SET_DUMPABLE, 0)
        self._enter.call("prctl", "prctl", PR_SET_NAME, name)
        scheduling.add_lasting(self._enter, self.request.linux)
        self._enter.call("joining namespaces", "setns", self._init_pidfd, self.request.namespaces & ~Clone.NEWPID)
        for fd in self._root_fds:
            self._enter.call("changing root", "fchdir", fd)
            self._enter.call("changing root", "chroot", self._enter.buffer("char[]", b"."))
        program.add_signals(self._leave)
        self._leave.call("prctl", "prctl", PR_SET_PDEATHSIG, 0)

    def _kept(self) -> tuple[int, ...]:
        """Return what the child needs of what has been opened here."""
        return self._init_pidfd, *self._root_fds, *self._cgroup_fds

    def _open_root(self) -> list[int]:
        """Return the first process's root where that is not its mount namespace's, to which setns(2) leads."""
        if not self.request.linux.get("attached"):
            return []
        return [self._above(self._open_init_root())]

    def _open_init_root(self) -> int:
        return self._opening(os.open(f"/proc/{self.request.init_pid}/root", _PATH | os.O_DIRECTORY))

    def _open_cgroup(self) -> list[int]:
        """Return files to write 0 to, by which a process joins the cgroup and the resctrl groups."""
        files = [] if self.request.in_cgroup else self.request.cgroup.files_to_join()
        files += [rdt.file_to_join(directory) for directory in self.request.linux.get("rdt") or ()]
        return [self._opening(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) for path in files]

    def _above(self, fd: int) -> int:
        """Return `fd`, or a duplicate of it that is out of the way of what is passed to the program."""
        return fd if fd >= self._lowest else self._duplicate(fd)

    def _opening(self, fd: int) -> int:
        self._opened.append(fd)
        return fd

    def _duplicate(self, fd: int) -> int:
        duplicate: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, self._lowest)
        self._opened.append(duplicate)
        return duplicate

    # -- in the child

    def _become(self, arrive: Steps, channel: Channel) -> NoReturn:
        """Join the container and execute the program; whatever fails is told to the parent."""
        try:
            arrive.run()
            if channel.peer_has_ended():
                os._exit(1)
            error = self._execute(channel)
            channel.fail(str(error), error.errno)
        except OciError as error:
            channel.fail(str(error), error.errno)
        except BrokenPipeError:
            pass  # the parent is gone
        except OSError as error:
            channel.fail(f"error during exec: {describe(error)}", error.errno or 0)
        except Exception as error:
            # A bug of ours. The parent is the top that it reaches: this process has no log and no way to make a trace.
            channel.fail(f"internal error during exec: {type(error).__name__}: {error}", 0)
        finally:
            os._exit(1)

    def _execute(self, channel: Channel) -> OciError:
        """Go through all steps; returns only if the last one, the exec, fails."""
        process = self._process
        for fd in range(_STDIO, self._lowest):
            os.set_inheritable(fd, True)
        scheduling.set_affinity(process, "initial")
        self._join.run()
        rlimits.raise_hard(process.get("rlimits") or ())
        scheduling.set_oom_score(process.get("oomScoreAdj"))
        scheduling.apply(process)
        scheduling.set_affinity(process, "final")
        if process.get("apparmorProfile") or process.get("selinuxLabel"):
            lsm.set_exec_label(lockdown.open_proc(), process)  # as the host's root: another user may not write it

        # From here on the container can see this process, and its files can be found by it.
        lockdown.forbid_imports()
        self._enter.run()
        if self.request.namespaces & Clone.NEWUSER:
            user.become_root(process.get("user") or {})
        os.umask(0)
        os.setsid()
        if not self.request.no_new_keyring:
            _join_keyring(self.request.id)
        if process.get("terminal"):
            _open_terminal(process, self.request.console_size, self._uid, channel)
        else:
            user.give_stdio(self._uid)
        identity = self._identity or Identity(process, self._filter, *capabilities.own())
        identity.assume()
        user.add_home(self._env, self._uid)
        path = program.find(process["args"][0], self._env)
        self._leave.run()
        identity.seal(channel)
        return program.execute(path, process["args"], self._env)


# A probe executes the same process again and again.


@lru_cache(maxsize=_REMEMBERED)
def _load(document: bytes) -> Mapping[str, Any]:
    return MappingProxyType(validate.load_process(document))


@lru_cache(maxsize=_REMEMBERED)
def _plan_identity(document: bytes, filter_: seccomp.Filter | None, bounding: int, permitted: int) -> Identity:
    return Identity(_load(document), filter_, bounding, permitted)


def forget() -> None:
    """Forget what has been executed: the next container is somebody else's."""
    _load.cache_clear()
    _plan_identity.cache_clear()


def _join_keyring(container: str) -> None:
    try:
        join_session_keyring(f"_ses.{container}")
    except OSError:
        return  # a kernel without keyrings, or a full quota: then there is none to share either


def _open_terminal(process: Mapping[str, Any], size: tuple[int, int] | None, uid: int, channel: Channel) -> None:
    root_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    master_fd, peer_fd = console.open_pair(root_fd, console.size_of(process) or size)
    channel.send(Message.CONSOLE, [master_fd])
    os.close(master_fd)
    os.close(root_fd)
    console.take(peer_fd, uid)
