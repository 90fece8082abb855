"""The parent's side: fork, talk to the child, undo what is left when it fails; then what a live container can do.

All the work on a container's files happens in the child, which also parses config.json: the
calling process stays as small as it was.

    create   forks the child that becomes init; returns when it is ready to execute its program
    start    lets it, and returns when it has
    exec     forks a child that joins the container and executes at once
    delete   removes cgroup and state after init's end

What makes processes is loaded when one is to be made: a command that looks at a container, or ends it, is short.
"""

import os
import signal
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pyctr_shim.oci import detached, hooks, listener, net_devices, rdt, state
from pyctr_shim.oci.cgroups import Cgroup, Hierarchies, cgroup_for, mounted
from pyctr_shim.oci.errors import OciError, PoststopFailed, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.rootfs import RootfsMount
from pyctr_shim.oci.service import NOTHING, Service
from pyctr_shim.oci.state import State, Status
from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_sys.pidfd import pidfd_open, pidfd_send_signal, wait

if TYPE_CHECKING:
    from pyctr_shim.oci import exec as joining
    from pyctr_shim.oci import forks, init
    from pyctr_shim.oci.checkpoint.choices import Dump, Restore
    from pyctr_shim.oci.in_place import Waiting

__all__ = ["Container", "CreateOptions", "OciError", "Process", "RootfsMount", "Stdio", "create", "load"]

# What ends a program that does not ask for anything else, and is sent for that.
_ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGTERM})
SECCOMP_CACHE: Final = os.environ.get("PYCTR_SECCOMP_CACHE", "/var/lib/pyctr/seccomp")


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """How to create, beside what config.json says.

    `console_size` is (columns, rows). The state lies in the bundle unless `state_directory` names another place. A
    `detached` container is started by `detached.start`, from any process, and waits for that as long as it takes.
    With a `checkpoint` the first process is not made to execute a program: it and the others are what was saved.
    """

    rootfs: tuple[RootfsMount, ...] = ()
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    systemd_cgroup: bool = False
    entered: bool = False  # this process is in the container's new user namespace already
    console_size: tuple[int, int] | None = None
    preserve_fds: int = 0
    state_directory: str = ""
    detached: bool = False
    seccomp_cache: str = SECCOMP_CACHE
    checkpoint: "Restore | None" = None
    service: Service = NOTHING


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """How to execute, beside what the process document says."""

    no_new_keyring: bool = False
    console_size: tuple[int, int] | None = None
    preserve_fds: int = 0
    ignore_paused: bool = False  # the process then waits for `resume`, and so does the call


@dataclass(frozen=True, slots=True)
class Stdio:
    """Borrowed fds for the process's 0, 1 and 2; not used where it has a terminal."""

    stdin: int
    stdout: int
    stderr: int


@dataclass(slots=True)
class Process:
    """A process executed in a container. The receiver owns both fds and reaps the process."""

    pid: int
    pidfd: int
    console_fd: int | None


@dataclass(slots=True)
class Container:
    """A container whose init process exists or existed. Owns `pidfd`; `console_fd` is its receiver's."""

    id: str
    bundle: str
    state_directory: str
    pid: int
    pidfd: int
    console_fd: int | None
    own_pid_namespace: bool
    cgroup: Cgroup
    notes: list[str]
    namespaces: int
    seccomp: str
    seccomp_flags: int
    linux: Mapping[str, Any]  # see state.py
    hook_kinds: frozenset[str]
    host_mount: str  # where the host sees its root, "" for nowhere
    channel: Channel | None = None  # to an init that has been forked
    waiting: "Waiting | None" = None  # an init that has not
    restorer_fd: int = -1  # a pidfd of who restores and has not ended yet

    def start(self) -> None:
        """Let init execute its program. Raises OciError with the program's ENOENT or EACCES.

        After an error init has ended; its exit is still to be reaped and the container to be deleted.
        """
        if self.waiting is not None:
            self.waiting.start()
            self.waiting = None
        else:
            self._start_forked()
        if "poststart" in self.hook_kinds:
            try:
                run_hooks("poststart", state.read(self.state_directory), Status.RUNNING)
            except OciError:
                with suppress(ProcessLookupError):  # it has ended by itself
                    self.kill(signal.SIGKILL)
                raise

    def _start_forked(self) -> None:
        if self.channel is None:
            raise OciError("cannot start a container that is not in the created state")
        try:
            self.channel.send(Message.START)
            answer = self.channel.receive()
            if answer is not None and answer[0] is Message.LISTENER:
                record = state.read(self.state_directory)
                listener.hand_over(record, Status.CREATED, self.pid, self.pidfd, answer[1]["fd"])
                self.channel.send(Message.GO)
                answer = self.channel.receive()
        except BrokenPipeError:
            raise OciError("container init has ended before it was started") from None
        finally:
            self.channel.close()
            self.channel = None
        self._await_restorer()
        if answer is not None:
            raise OciError(answer[1]["text"], answer[1]["errno"])

    def _await_restorer(self) -> None:
        """Wait for the end of who has restored: his children, init among them, are those of a reaper then."""
        if self.restorer_fd >= 0:
            wait(self.restorer_fd)
            os.close(self.restorer_fd)
            self.restorer_fd = -1

    def exec(self, process: bytes, stdio: Stdio, options: ExecOptions = ExecOptions()) -> Process:
        """Execute a further process, given as a JSON document of the spec's `process`.

        Returns once its program runs. Raises OciError, with the program's ENOENT or EACCES.
        """
        if self.pidfd < 0:
            raise OciError("cannot exec in a stopped container")
        if not options.ignore_paused and self.cgroup.is_paused():
            raise OciError("cannot exec in a paused container")
        request = self.exec_request(process, stdio, options)
        return _exec(request, self.state_directory)

    def exec_request(self, process: bytes, stdio: Stdio, options: ExecOptions) -> "joining.Request":
        """Return what a child that joins this container needs to know."""
        from pyctr_shim.oci import exec as joining

        return joining.Request(
            id=self.id,
            init_pid=self.pid,
            init_pidfd=self.pidfd,
            namespaces=self.namespaces,
            cgroup=self.cgroup,
            seccomp=self.seccomp,
            seccomp_flags=self.seccomp_flags,
            linux=self.linux,
            process=process,
            stdio=(stdio.stdin, stdio.stdout, stdio.stderr),
            preserve_fds=options.preserve_fds,
            no_new_keyring=options.no_new_keyring,
            console_size=options.console_size,
            in_cgroup=bool(self.cgroup.directory_for_clone()),
        )

    def kill(self, number: int) -> None:
        """Signal init. Raises ProcessLookupError if it has been reaped."""
        pidfd_send_signal(self.pidfd, number)
        if number == signal.SIGKILL and self.cgroup.is_paused():
            self.cgroup.resume()  # on v1 the frozen take no signal, not even this one

    def kill_all(self, number: int) -> None:
        """Signal every process in the container's cgroup; SIGKILL also catches what is being forked."""
        if number == signal.SIGKILL:
            self.cgroup.kill()
            return
        for pid in self.cgroup.pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def pids(self) -> list[int]:
        """Return the container's processes, as the host numbers them."""
        return self.cgroup.pids()

    def pause(self) -> None:
        """Freeze all processes. Raises OciError if that takes more than ten seconds."""
        self.cgroup.pause()

    def resume(self) -> None:
        """Let them run again."""
        self.cgroup.resume()

    def update(self, resources: bytes) -> None:
        """Change limits to those of a LinuxResources document (JSON). Raises OciError naming the field."""
        from pyctr_shim.oci import validate

        self.cgroup.apply(validate.load_resources(resources))

    def stats(self) -> tuple[str, bytes]:
        """Return type URL and bytes of io.containerd.cgroups.v1.Metrics or v2.Metrics."""
        return self.cgroup.metrics()

    def oom_kills(self) -> int:
        """Return how many processes the kernel killed for memory; read it before `delete`."""
        return self.cgroup.oom_kills()

    def checkpoint(self, choices: "Dump") -> "forks.Child":
        """Have the container saved by a child, whose channel ends once that is done, or tells why it failed.

        Closing it before means that nobody is interested any more: then the container goes on.
        """
        from pyctr_shim.oci import forks

        return forks.fork_dumper(state.read(self.state_directory), choices)

    def delete(self) -> None:
        """Remove cgroup, mounts and state, and run the poststop hooks; init must have ended.

        May be repeated: what is gone already is passed over. Raises OciError if processes of the
        container are still there, and PoststopFailed, after everything is removed.
        """
        for end in (self.channel, self.waiting):
            if end is not None:
                end.close()
        self.channel = self.waiting = None
        self._await_restorer()
        _remove(self.state_directory, self.cgroup, with_record=bool(self.hook_kinds or self.linux or self.host_mount))
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def before_start(number: int, *, own_pid_namespace: bool) -> int:
    """Return what to send to an init that waits for its start, for it to end by `number` as its program would.

    It asks for no signal, and of those the first process of a PID namespace gets SIGKILL and SIGSTOP alone.
    Source: pid_namespaces(7).
    """
    return signal.SIGKILL if own_pid_namespace and number in _ENDING else number


def create(
    id: str,
    bundle: str,
    stdio: Stdio,
    options: CreateOptions,
    hierarchies: Hierarchies | None = None,
) -> Container:
    """Make a container: everything up to the exec of its program.

    Raises OciError; nothing is left of the container then. The calling process has one thread.
    """
    from pyctr_shim.oci import init

    if hierarchies is None:
        hierarchies = mounted()
    state_directory = options.state_directory or bundle
    listening = detached.listen(state_directory) if options.detached else None
    request = init.Request(
        id=id,
        bundle=bundle,
        state_directory=state_directory,
        stdio=(stdio.stdin, stdio.stdout, stdio.stderr),
        preserve_fds=options.service.sockets + options.preserve_fds,
        rootfs=options.rootfs,
        no_pivot_root=options.no_pivot_root,
        no_new_keyring=options.no_new_keyring,
        console_size=options.console_size,
        start_fd=listening.fileno() if listening else -1,
        seccomp_cache=options.seccomp_cache,
        systemd_cgroup=options.systemd_cgroup,
        entered=options.entered,
        hierarchies=hierarchies,
        staged=options.checkpoint is not None,
        checkpoint=options.checkpoint,
        service=options.service,
    )
    try:
        container = _create_in_place(request) or _create(request) or _create(replace(request, staged=True))
    except OSError as error:  # no process, no descriptor, no memory
        raise OciError(f"error during create: {describe(error)}", error.errno or 0) from None
    finally:
        if listening:
            listening.close()
    if container is None:
        raise OciError("handshake: the stager asks for another one")
    return container


def _create_in_place(request: "init.Request") -> Container | None:
    """Make it without a fork; None where that cannot be, or did not work."""
    from pyctr_shim.oci import in_place

    if not in_place.suits(request):
        return None
    try:
        waiting = in_place.create(request)
    except OciError as error:
        _undo_after(error, request)
        raise
    if waiting is None:
        _undo(request, for_good=False)
        return None
    container = _container(request, waiting.pid, waiting.pidfd, waiting.master_fd, waiting.fields)
    container.waiting = waiting
    return container


def _create(request: "init.Request") -> Container | None:
    """Fork a child, and follow it to CREATED; None if it asks for a stager."""
    from pyctr_shim.oci import forks

    forks.dismiss()
    request = replace(request, staged=request.staged or request.hierarchies.is_v2)
    child = forks.fork_init(request) if request.checkpoint is None else forks.fork_restorer(request)
    console_fd = restorer_fd = -1
    try:
        while (answer := child.channel.receive()) is not None:
            message, fields, fds = answer
            if message is Message.RESTAGE:
                child.end()
                return None
            if message in {Message.INIT, Message.STEPPED}:
                try:
                    init_pidfd = pidfd_open(fields["pid"])
                except ProcessLookupError:
                    continue  # it has failed, and who became its parent has reaped it; what failed comes next
                before_pidfd = child.pidfd
                child = replace(child, pid=fields["pid"], pidfd=init_pidfd)
                if message is Message.INIT:
                    wait(before_pidfd)  # it has little left to do and needs nothing from here
                if request.checkpoint is not None:
                    restorer_fd = before_pidfd
                else:
                    os.close(before_pidfd)
            elif message is Message.CONSOLE:
                console_fd = fds[0]
            elif message is Message.NETWORK:
                net_devices.move(fields["devices"], child.pid, child.pidfd)
                child.channel.send(Message.GO)
            elif message is Message.HOOKS:
                record = state.read(request.state_directory)
                run_hooks("prestart", record, Status.CREATING)
                run_hooks("createRuntime", record, Status.CREATING)
                child.channel.send(Message.GO)
            elif message is Message.FAILED:
                _raise_failure(fields)
            elif message is Message.CREATED:
                container = _container(request, child.pid, child.pidfd, console_fd, fields)
                container.channel, container.restorer_fd = child.channel, restorer_fd
                return container
        _raise_vanished()
    except BaseException as error:
        if console_fd >= 0:
            os.close(console_fd)
        if request.checkpoint is not None:
            forks.give_up(child.channel, restorer_fd if restorer_fd >= 0 else child.pidfd)
            if restorer_fd >= 0:
                forks.kill_and_reap(child.pidfd)
        else:
            child.end()
        _undo_after(error, request)
        raise


def _raise_vanished() -> NoReturn:
    raise OciError("container init ended without a word")


def _container(request: "init.Request", pid: int, pidfd: int, console_fd: int, fields: Mapping[str, Any]) -> Container:
    return Container(
        id=request.id,
        bundle=request.bundle,
        state_directory=request.state_directory,
        pid=pid,
        pidfd=pidfd,
        console_fd=console_fd if console_fd >= 0 else None,
        own_pid_namespace=fields["own_pid_namespace"],
        cgroup=cgroup_for(request.hierarchies, fields["cgroup"], pid),
        notes=fields["notes"],
        namespaces=fields["namespaces"],
        seccomp=fields["seccomp"],
        seccomp_flags=fields["seccomp_flags"],
        linux=fields["linux"],
        hook_kinds=frozenset(fields["hooks"]),
        host_mount=fields["host_mount"],
    )


def _exec(request: "joining.Request", state_directory: str) -> Process:
    """Make a process that joins, straight away or by a fork that can tell what is wrong."""
    from pyctr_shim.oci import exec as joining
    from pyctr_shim.oci import forks

    try:
        with closing(joining.Joiner(request)) as joiner:
            spawned = forks.spawn_into(joiner)
            if spawned is not None:
                return Process(*spawned, None)
            child = forks.fork_into(joiner)
    except ProcessLookupError:
        raise OciError("cannot exec in a stopped container") from None
    except OSError as error:
        raise OciError(f"error during exec: {describe(error)}", error.errno or 0) from None
    return _follow_to_exec(child, state_directory)


def _follow_to_exec(child: "forks.Child", state_directory: str) -> Process:
    console_fd = -1
    try:
        while (answer := child.channel.receive()) is not None:
            message, fields, fds = answer
            if message is Message.CONSOLE:
                console_fd = fds[0]
            elif message is Message.LISTENER:
                record = state.read(state_directory)
                listener.hand_over(record, Status.RUNNING, child.pid, child.pidfd, fields["fd"])
                child.channel.send(Message.GO)
            elif message is Message.FAILED:
                _raise_failure(fields)
    except BaseException:
        if console_fd >= 0:
            os.close(console_fd)
        child.end()
        raise
    child.channel.close()
    return Process(child.pid, child.pidfd, console_fd if console_fd >= 0 else None)


def _raise_failure(fields: Mapping[str, Any]) -> NoReturn:
    raise OciError(fields["text"], fields["errno"])


def run_hooks(kind: str, record: State, status: Status) -> None:
    """Run a container's hooks of one kind, telling them its state. Raises OciError at the first that fails."""
    if found := record.hooks.get(kind):
        run = hooks.run_all if kind == "poststop" else hooks.run
        run(kind, found, record.document(status))


def _undo_after(error: BaseException, request: "init.Request") -> None:
    """Do `_undo`. Raises OciError with both reasons if that fails too."""
    try:
        _undo(request)
    except OciError as left:
        raise OciError(f"{error}; cleaning up after that: {left}", getattr(error, "errno", 0)) from None


def _undo(request: "init.Request", *, for_good: bool = True) -> None:
    """Remove what a failed creation left, as its state names it; its process has ended.

    Hooks are told of that if it is `for_good`, and not tried in another way.
    """
    try:
        record = state.read(request.state_directory)
    except FileNotFoundError:
        return
    cgroup = cgroup_for(request.hierarchies, record.cgroup)
    if request.checkpoint is not None:
        cgroup.kill()  # who was to restore may have been killed in the middle of it
    _remove(request.state_directory, cgroup, with_record=True, with_hooks=for_good)


def _remove(state_directory: str, cgroup: Cgroup, *, with_record: bool, with_hooks: bool = True) -> None:
    """Remove cgroup, mounts and state file in that order, so that the state names what is left."""
    record = None
    if with_record:
        try:
            record = state.read(state_directory)
        except FileNotFoundError:
            record = None
    try:
        cgroup.remove()
    except OSError as error:
        raise OciError(f"cgroup {cgroup.path} cannot be removed: {error.strerror}", error.errno or 0) from None
    if record is not None:
        try:
            rdt.remove(record.linux.get("rdtMade") or ())
        except OSError as error:
            raise OciError(f"linux.intelRdt: groups cannot be removed: {error.strerror}", error.errno or 0) from None
    if record is not None and record.host_mount:
        unmount_all(record.host_mount)
    if record is not None and record.linux.get("attached"):
        _detach(state.attached(state_directory))
    state.remove(state_directory)
    if record is not None and with_hooks:
        try:
            run_hooks("poststop", record, Status.STOPPED)
        except OciError as error:
            raise PoststopFailed(str(error), error.errno) from None


def _detach(directory: str) -> None:
    """Remove the root from the mount namespace that it was attached in, whichever that is.

    The kernel detaches what is mounted on a directory that is removed, in all other namespaces. Source: rmdir(2) has
    nothing of it; Linux 3.18, "vfs: Lazily remove mounts on unlinked files and directories".
    """
    unmount_all(directory)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OciError(f"{directory} cannot be removed: {error.strerror}", error.errno or 0) from None


def unmount_all(directory: str) -> None:
    """Detach everything mounted on a directory, and nothing of what it shares mounts with."""
    try:
        while True:
            # Or whatever is mounted in what it shows of the host's would be unmounted there, too.
            mount(None, directory, None, MountFlag.REC | MountFlag.PRIVATE)
            umount2(directory, MNT_DETACH)
    except OSError:
        return  # EINVAL: nothing is mounted there any more


def load(state_directory: str) -> Container:
    """Return a container from its state file. Raises FileNotFoundError if there is none."""
    record = state.read(state_directory)
    pidfd = -1
    with suppress(ProcessLookupError):  # it may be about to end
        if record.is_alive():
            pidfd = pidfd_open(record.pid)
    return Container(
        id=record.id,
        bundle=record.bundle,
        state_directory=state_directory,
        pid=record.pid,
        pidfd=pidfd,
        console_fd=None,
        own_pid_namespace=record.own_pid_namespace,
        cgroup=cgroup_for(mounted(), record.cgroup, record.pid if pidfd >= 0 else 0),
        notes=[],
        namespaces=record.namespaces,
        seccomp=record.seccomp,
        seccomp_flags=record.seccomp_flags,
        linux=record.linux,
        hook_kinds=frozenset(record.hooks),
        host_mount=record.host_mount,
    )
