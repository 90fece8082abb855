"""A container made without a fork: by the runtime's own process, with a stub as its init.

A process that has made a container before makes the next one in a fraction of the time that a forked copy of it takes,
which must copy what it touches and is taken down a moment later. So it goes into the container's namespaces itself, and
comes back; only what must be done by init is left to a stub (`pyctr_sys.stub`), as lists of system calls.

    stub   new namespaces              we   state, cgroup, what the container is to see of the host
           cgroup, /proc                    in its namespaces: root, mounts, masks, pivot, the program's path
           becomes the spec's user
           waits; executes at the start

The steps are those of init.py, where everything is done that this does not do: user and time namespaces, hooks inside,
network devices, Intel RDT. A step of the stub that fails is no verdict: the fork finds out why, or that there is no
reason.
"""

import fcntl
import os
import termios
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from pyctr_shim import descriptors
from pyctr_shim.oci import (
    capabilities,
    forks,
    init,
    listener,
    lockdown,
    lsm,
    namespaces,
    program,
    rootfs,
    scheduling,
    state,
    user,
)
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.identity import Identity
from pyctr_shim.oci.init import Build, Request
from pyctr_shim.oci.mounts import PlannedMount, options_of
from pyctr_shim.oci.state import Status
from pyctr_sys import stub as stubs
from pyctr_sys.namespaces import Clone, in_user_namespace
from pyctr_sys.openat2 import IN_ROOT, O_PATH, open_in_root
from pyctr_sys.pidfd import pidfd_getfd
from pyctr_sys.process import (
    LAST_FD,
    PR_SET_DUMPABLE,
    PR_SET_NAME,
    PR_SET_PDEATHSIG,
    add_session_keyring,
    set_dumpable,
)
from pyctr_sys.steps import StepFailed, Steps
from pyctr_sys.stub import FIRST_EXTRA_FD, Stub, StubEnded

_MADE_BY_STUB: Final = Clone.NEWNS | Clone.NEWNET | Clone.NEWIPC | Clone.NEWUTS
_JOINED: Final = Clone.NEWNET | Clone.NEWIPC | Clone.NEWUTS | Clone.NEWCGROUP
_HOOKS_OUTSIDE: Final = {"poststart", "poststop"}
_CONTROL_FD: Final = 3
_HERE: Final = -100  # AT_FDCWD
_AT_EACCESS: Final = 0x200
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CREATE = 0, 1, 6
_PATH: Final = O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class _NotThisWay(OciError):
    """What only the fork can do, or explain."""

    def __init__(self) -> None:
        super().__init__("")


class Waiting:
    """A container's init that is ready: a stub, and what it is still to do. Owns the stub but for its pidfd."""

    def __init__(self, build: Build, stub: Stub, start: stubs.Prepared, path: str, master_fd: int) -> None:
        """`start` is for the stub; `path` is what it executes; `master_fd` is of the terminal, -1 without one."""
        self.pid = stub.pid
        self.pidfd = stub.pidfd
        self.master_fd = master_fd
        self.fields: Mapping[str, Any] = init.created(build)
        self._told = build.state if build.filter and build.filter.notifies else None  # for the filter's agent
        self._stub = stub
        self._start = start
        self._path = path

    def start(self) -> None:
        """Let it execute its program. Raises OciError with the program's ENOENT or EACCES."""
        try:
            self._stub.tell_prepared(self._start)
            if self._told is not None:
                listener.hand_over(self._told, Status.CREATED, self.pid, self.pidfd, FIRST_EXTRA_FD)
                self._stub.wake()
            with suppress(StubEnded):  # it is a stub no longer
                self._stub.await_done()
        except StubEnded:
            raise OciError("container init has ended before it was started") from None
        except StepFailed as error:
            raise program.failure(error, self._path) from None
        finally:
            self.close()

    def close(self) -> None:
        """Let go of it; one that has not been started ends."""
        self._stub.close()


def suits(request: Request) -> bool:
    """Whether a container can be asked for in this way; its spec is still to be looked at."""
    away = request.staged or request.entered or request.no_pivot_root
    return not (away or request.preserve_fds or request.start_fd >= 0 or in_user_namespace() or os.geteuid())


def create(request: Request) -> Waiting | None:
    """Make a container up to the exec of its program; None if it must be made by a fork.

    The caller removes what its state names, after an error and after None. Raises OciError.
    """
    forks.dismiss_old()  # whose descriptors are not to count as those of others
    before = descriptors.opened()
    try:
        with init.explained():
            build = init.read(request)
            if build is not None and _suits(build):
                return _Creation(build).run()
    except _NotThisWay:
        pass
    except BaseException:
        descriptors.close_all_but(before)
        raise
    descriptors.close_all_but(before)
    return None


def _suits(build: Build) -> bool:
    """Whether there is nothing in a spec that only a forked init does."""
    linux, process, plan = build.linux, build.process, build.plan
    return (
        bool(plan.mounts_fd < 0 and process["args"])
        and not any(kind & ~_JOINED for kind in plan.joined)
        and not build.state.hooks.keys() - _HOOKS_OUTSIDE
        and not rootfs.is_shared(linux.get("rootfsPropagation") or "")  # the host must have its root before
        and not (linux.get("netDevices") or linux.get("intelRdt"))
    )


class _Creation:
    """One container on its way."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._uid: int = (build.process.get("user") or {}).get("uid") or 0
        self._has_terminal = bool(build.process.get("terminal"))
        self._first_fd = FIRST_EXTRA_FD + self._has_terminal  # the first that is free in the stub
        self._env = user.environment(build.process)

    def run(self) -> Waiting:
        """Make it. Raises OciError, OSError, _NotThisWay; then the stub has ended."""
        build = self._build
        set_dumpable(0)
        stub = self._begin()
        try:
            init.open_sources(build)
            build.notes += scheduling.set_oom_score(build.process.get("oomScoreAdj"), stub.pid)
            scheduling.apply(build.process, stub.pid)
            return self._finish(stub)
        except (StepFailed, StubEnded) as error:
            stub.end()
            raise _NotThisWay from error
        except BaseException:
            stub.end()
            raise

    def _begin(self) -> Stub:
        """Write the state, make the cgroup, and start the stub: into that, on version 2, if it is not systemd's."""
        build = self._build
        if init.wants_host_mount(build):
            init.write_state(build)  # which says what to unmount
            init.mount_for_host(build)  # before there are namespaces that would not see it
        directory = build.cgroup.directory_for_clone()
        if directory and not build.request.systemd_cgroup:
            init.write_state(build)
            init.make_cgroup(build)
            cgroup_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stub = self._start_stub(cgroup_fd)
            os.close(cgroup_fd)
            try:
                build.state = build.state.with_pid(stub.pid)
                state.write(build.request.state_directory, build.state)
            except BaseException:
                stub.end()
                raise
            return stub
        stub = self._start_stub()
        try:
            init.write_state(build, stub.pid)
            init.make_cgroup(build, stub.pid)
        except (FileNotFoundError, ProcessLookupError) as error:  # it has ended, for a reason that the fork tells
            stub.end()
            raise _NotThisWay from error
        except BaseException:
            stub.end()
            raise
        return stub

    def _start_stub(self, cgroup_fd: int = 0) -> Stub:
        """Start it, and let it make its namespaces while we do other things."""
        build = self._build
        own_pidfd = [os.pidfd_open(os.getpid())] if self._has_terminal else []
        fds = [*build.request.stdio, *own_pidfd, *build.plan.joined.values()]
        try:
            stub = forks.start_stub(cgroup_fd)
        except OSError as error:
            raise _NotThisWay from error
        try:
            stub.tell(self._arrival(len(fds)))
            stub.give(fds)
        except StubEnded as error:  # one that was started ahead can have been killed meanwhile
            stub.end()
            raise _NotThisWay from error
        except BaseException:
            stub.end()
            raise
        finally:
            for fd in own_pidfd:
                os.close(fd)
        build.plan.close()
        return stub

    def _arrival(self, descriptors_given: int) -> Steps:
        """Return the stub's first steps: its descriptors and namespaces, and what belongs to nobody else."""
        build, steps = self._build, Steps()
        stubs.add_receipt(steps, descriptors_given)
        steps.call("prctl", "prctl", PR_SET_DUMPABLE, 0)
        steps.call("prctl", "prctl", PR_SET_NAME, steps.buffer("char[]", b"pyctr-init"))
        steps.call("fcntl", "fcntl", _CONTROL_FD, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        steps.call("making namespaces", "unshare", build.plan.new & _MADE_BY_STUB)
        for fd, kind in enumerate(build.plan.joined, self._first_fd):
            steps.call(f"joining {kind.name} namespace", "setns", fd, kind)
        steps.call("close_range", "close_range", self._first_fd, LAST_FD)
        steps.call("setsid", "setsid")
        steps.call("umask", "umask", 0)
        if not build.request.no_new_keyring:
            add_session_keyring(steps, f"_ses.{build.request.id}")
        scheduling.add_lasting(steps, build.linux)
        return steps

    def _finish(self, stub: Stub) -> Waiting:
        """Do all that is done in the container's namespaces, and have the stub become the spec's user."""
        build = self._build
        stub.tell_prepared(_prepare(self._settling()))
        stub.await_done()
        process_fd = os.open(f"/proc/{stub.pid}", _PATH)
        try:
            master_fd, directory_fd, path = self._set_up(stub, process_fd)
        except (OciError, OSError) as error:
            raise _NotThisWay from error
        os.close(directory_fd)
        os.close(process_fd)
        try:
            identity = Identity(build.process, build.filter, *capabilities.inherited())
            self._give_stdio()
            stub.tell_prepared(_prepare(self._becoming(identity, path)))
            start = _prepare(self._departure(identity, path))
            stub.await_done()
        except ValueError as error:
            raise _NotThisWay from error
        build.notes += identity.notes
        if build.terminal_fd >= 0:
            os.close(build.terminal_fd)
        return Waiting(build, stub, start, path, master_fd)

    def _set_up(self, stub: Stub, process_fd: int) -> tuple[int, int, str]:
        """In the stub's namespaces, with its directory in /proc: do what is to be done there, while it settles.

        Returns the terminal's master, a descriptor of the working directory, and the path of the program. What goes
        wrong may do so only because we are not in the PID namespace, and /proc/self leads nowhere.
        """
        build = self._build
        kinds = (build.plan.flags & _JOINED) | Clone.NEWNS
        settled = bool(kinds & Clone.NEWCGROUP)  # it makes that once it is in its cgroup
        if settled:
            stub.await_done()
        with namespaces.visited(stub.pidfd, kinds), lockdown.without_imports():
            init.prepare_root(build)
            init.set_up_namespaces(build)
            if not settled:
                stub.await_done()
            self._take_proc(stub)
            init.mount_everything(build)
            master_fd = init.open_console(build)
            init.hide(build)
            user.add_home(self._env, self._uid, build.root_fd)
            directory_fd = open_in_root(build.root_fd, build.process["cwd"], _PATH)
            init.pivot(build)
            if not os.path.samestat(os.stat("/"), os.stat("root", dir_fd=process_fd)):
                raise _NotThisWay  # ours was another root than the mount namespace's
            os.fchdir(directory_fd)
            return master_fd, directory_fd, program.find(build.process["args"][0], self._env)

    def _settling(self) -> Steps:
        """Return the steps once the cgroup is there: into it, and what only its PID namespace can mount."""
        build, steps = self._build, Steps()
        if not build.cgroup.directory_for_clone():
            for path in build.cgroup.files_to_join():
                self._add_write(steps, f"joining cgroup {build.cgroup.path}", path, "0")
        if build.plan.new & Clone.NEWCGROUP:
            steps.call("making namespaces", "unshare", Clone.NEWCGROUP)
        for field, names, text in lsm.exec_labels(build.process):
            self._add_write(steps, field, f"/proc/self/{lsm.first_of(names)}", text)
        for fd, item in enumerate(self._procs(), self._first_fd):
            _add_new_file_system(steps, item, fd)
        return steps

    def _procs(self) -> list[PlannedMount]:
        return [item for item in self._build.mounts if item.kind == "proc" and not item.options.is_bind]

    def _take_proc(self, stub: Stub) -> None:
        """Take over what the stub has made of /proc."""
        mounts = self._build.mounts = list(self._build.mounts)
        for fd, item in enumerate(self._procs(), self._first_fd):
            mounts[mounts.index(item)] = replace(item, tree_fd=pidfd_getfd(stub.pidfd, fd))

    def _add_write(self, steps: Steps, purpose: str, path: str, text: str) -> None:
        data = text.encode()
        steps.call(purpose, "openat", _HERE, steps.buffer("char[]", os.fsencode(path)), os.O_WRONLY | os.O_CLOEXEC)
        steps.call(purpose, "write", self._first_fd, steps.buffer("char[]", data), len(data))
        steps.call(purpose, "close_range", self._first_fd, self._first_fd)

    def _give_stdio(self) -> None:
        build = self._build
        if build.terminal_fd >= 0:
            with suppress(OSError):
                os.fchown(build.terminal_fd, self._uid, -1)
        else:
            user.give_stdio(self._uid, build.request.stdio)

    def _becoming(self, identity: Identity, path: str) -> Steps:
        """Return the steps by which the stub becomes the spec's user, in its directory, able to execute its program."""
        build, steps = self._build, Steps()
        steps.call("close_range", "close_range", self._first_fd, LAST_FD)
        if self._has_terminal:
            steps.call("taking the terminal", "pidfd_getfd", FIRST_EXTRA_FD, build.terminal_fd, 0)
            for number in range(_CONTROL_FD):
                steps.call("taking the terminal", "dup3", self._first_fd, number)
            steps.call("close_range", "close_range", FIRST_EXTRA_FD, LAST_FD)
            steps.call("process.terminal", "ioctl", 0, termios.TIOCSCTTY, 0)
        steps.call("chdir", "chdir", steps.buffer("char[]", b"/"))  # of the new root, in which openat2 begins then
        directory = steps.buffer("char[]", os.fsencode(build.process["cwd"]))
        how = steps.buffer("struct open_how *", (_PATH, 0, IN_ROOT))
        steps.call("process.cwd", "openat2", _HERE, directory, how, 24)
        identity.add_assume(steps, FIRST_EXTRA_FD)
        steps.call("close_range", "close_range", FIRST_EXTRA_FD, FIRST_EXTRA_FD)
        name = steps.buffer("char[]", os.fsencode(path))
        steps.call(f"exec {path}", "faccessat2", _HERE, name, os.X_OK, _AT_EACCESS)
        steps.call("prctl", "prctl", PR_SET_PDEATHSIG, 0)
        return steps

    def _departure(self, identity: Identity, path: str) -> Steps:
        """Return what the start has the stub do. Raises ValueError for a NUL in an argument or a variable."""
        steps = Steps()
        program.add_signals(steps)
        identity.add_seal(steps, _CONTROL_FD)
        program.add_execute(steps, path, self._build.process["args"], self._env)
        return steps


def _prepare(steps: Steps) -> stubs.Prepared:
    """Prepare steps that hold as much as a spec does. Raises _NotThisWay for more than a stub takes."""
    prepared = stubs.prepare(steps)
    if len(prepared.image) > stubs.LARGEST:
        raise _NotThisWay
    return prepared


def _add_new_file_system(steps: Steps, item: PlannedMount, fd: int) -> None:
    """Make a file system, detached, whose descriptor will be `fd`, the first that is free."""
    purpose = f'mounting "{item.source}" at "{item.destination}"'
    steps.call(purpose, "fsopen", steps.buffer("char[]", item.kind.encode()), 0)
    for name, value in options_of(item, item.options.data).items():
        command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
        words = [steps.buffer("char[]", word.encode()) for word in (name, value) if word is not None]
        steps.call(purpose, "fsconfig", fd, command, *words)
    steps.call(purpose, "fsconfig", fd, _FSCONFIG_CREATE)
    steps.call(purpose, "fsmount", fd, 0, item.options.attributes)
    steps.call(purpose, "dup3", fd + 1, fd)
    steps.call(purpose, "close_range", fd + 1, fd + 1)
