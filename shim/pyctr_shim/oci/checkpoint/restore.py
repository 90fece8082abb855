"""Making a container of a checkpoint: what its own spec says is made by us, the rest by CRIU, and checked by us.

Runs in a child of the runtime's parent side, which takes it for a stager: it tells of the first process, and that
waits for its start. Until then CRIU holds all processes; none of them has executed an instruction. This child does
not end with the parent, as others do: somebody must be left to kill them.

    here        cgroup, root, external mounts; CRIU in that cgroup and in its namespace
    CRIU        namespaces, mounts, processes from the images
    here        verify.py: do they have what the spec gives, and nothing else? Mounts follow the host's
    parent      CREATED … START
    CRIU        lets them go on

An error, the end of the parent or of the first process before the start: all processes are killed, and reaped.
"""

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from pyctr_shim.oci import init, lockdown, rootfs, seccomp, state
from pyctr_shim.oci.cgroups import Cgroup, mount_view
from pyctr_shim.oci.checkpoint import criu, images, mount_table, verify
from pyctr_shim.oci.checkpoint.choices import Restore
from pyctr_shim.oci.checkpoint.dump import EXTERNAL_NAMESPACES, refuse_namespaces, work_directory
from pyctr_shim.oci.checkpoint.sources import Source, Stage
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.init import Build
from pyctr_shim.oci.namespaces import KINDS
from pyctr_sys.mount import MountFlag, mount, set_group
from pyctr_sys.namespaces import Clone, clone3, unshare
from pyctr_sys.openat2 import O_PATH, open_in_root
from pyctr_sys.pidfd import readable, wait
from pyctr_sys.process import set_name
from pyctr_wire.criu import rpc_pb2 as pb

LOG: Final = "restore.log"
_END_SECONDS: Final = 10.0
_PAUSE: Final = 0.01  # seconds
_ABOVE_STDIO: Final = 3
_PATH: Final = O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK_AGAIN: Final = 1.0  # seconds
_FLAGS: Final = 6  # of the fields behind the name. Source: proc_pid_stat(5)
_PF_EXITING: Final = 0x4


def become(request: init.Request, channel: Channel) -> NoReturn:
    """Run in the forked child: restore, wait for the start, end. What goes wrong is told over the channel."""
    try:
        lockdown.take_stdio(request.stdio, channel, request.preserve_fds)
        set_name("pyctr-restore")
        assert request.checkpoint is not None
        own = verify.own_namespaces()
        build = init.read(request)
        assert build is not None  # a stager is what this is
        build.connection = channel
        _Restoring(build, request.checkpoint, own).run()
    except OciError as error:
        channel.fail(str(error), error.errno)
    except BrokenPipeError:
        pass  # the parent is gone
    except OSError as error:
        channel.fail(f"restore: {describe(error)}", error.errno or 0)
    except Exception as error:
        # A bug of ours; the parent is the top that it reaches.
        channel.fail(f"internal error during restore: {type(error).__name__}: {error}", 0)
    finally:
        os._exit(0)


@dataclass(slots=True)
class _Restoring:
    """One restore: what has been made so far."""

    build: Build
    choices: Restore
    own_namespaces: dict[Clone, int]
    stage: Stage = field(init=False)
    sources: list[Source] = field(default_factory=list)
    console_fd: int = -1
    handed_over: bool = False
    expected: verify.Expected | None = None

    def run(self) -> None:
        """Do all of it, in order."""
        build, common = self.build, self.choices.common
        refuse_namespaces(build.spec)
        if common.cgroup_mode not in {"", "ignore"}:
            text = "in any but ignore, a checkpoint says what is written to the machine's cgroups"
            raise OciError(f"restore: cgroups mode {common.cgroup_mode!r}: {text}")
        images.check(common.images)
        criu.require_new_enough(common.program)
        self._check_filters()
        with ExitStack() as stack:
            work = stack.enter_context(work_directory(common.work))
            work_fd = stack.enter_context(_opened(work))
            init.write_state(build)
            init.mount_for_host(build)
            init.make_cgroup(build)
            init.open_sources(build)
            try:
                self._leave_mounts()
                self.stage = stack.enter_context(Stage())
                self._set_stage()
                images_fd = stack.enter_context(_opened(common.images))  # in this mount namespace
                self._ask(images_fd, work_fd)
            except BaseException:
                build.cgroup.kill()
                if not self.handed_over:  # else the first process's end is waited for by whoever inherits it
                    _reap_all(build.cgroup)
                raise

    def _check_filters(self) -> None:
        """Raise OciError unless every filter that was loaded first is the spec's own."""
        request = self.build.request
        wanted = seccomp.prepare(self.build.linux.get("seccomp"), request.seccomp_cache, request.state_directory)
        if wanted is None:
            return
        if wanted.notifies:
            raise OciError("restore: linux.seccomp: a filter with a listener cannot be restored")
        if any(program != wanted.program for program in images.first_filters(self.choices.common.images)):
            raise OciError("restore: the checkpoint's seccomp filter is not the one of linux.seccomp")

    def _leave_mounts(self) -> None:
        """Mount whatever is mounted from here on for nobody but this process and CRIU."""
        unshare(Clone.NEWNS)
        mount(None, "/", None, MountFlag.REC | MountFlag.SLAVE)

    def _set_stage(self) -> None:
        """Lay out the root and the external mounts; see sources.py."""
        build, stage = self.build, self.stage
        propagation = rootfs.propagation_flag(build.linux.get("rootfsPropagation") or "")
        directory = init.rootfs_directory(build)
        if build.request.rootfs and not build.state.host_mount:
            os.makedirs(directory, 0o711, exist_ok=True)
            rootfs.mount_rootfs(build.request.rootfs, directory)
        build.root_fd = rootfs.clone_tree(directory)
        rootfs.set_propagation(build.root_fd, propagation)
        devices = frozenset(item.device for item in mount_table.of("self"))
        stage.attach_root(build.root_fd)
        self.sources = stage.bind(build.root_fd, build.mounts, propagation)
        for item in build.mounts:
            if item.kind in {"cgroup", "cgroup2"}:
                flags = item.options.flags
                self.sources += stage.show_cgroups(item.destination, partial(self._mount_cgroups, flags))
        if build.spec["root"].get("readonly"):
            rootfs.make_readonly(build.root_fd)
        self._expect(devices)
        directory = self.choices.common.images
        for name, data in images.without_masters(directory, self._laid_out()):
            stage.cover(f"{directory}/{name}", data)

    def _laid_out(self) -> dict[str, str]:
        """Return where on the stage lies what is mounted in the container, by mount point."""
        return {"/": self.stage.root} | {source.where: source.path for source in self.sources}

    def _expect(self, devices: frozenset[str]) -> None:
        """Learn what this process's mounts are, as the container's will be compared with them."""
        on_stage = {item.where: item for item in mount_table.of("self")}
        mounts_ = {where: on_stage[path] for where, path in self._laid_out().items()}
        optional = frozenset(source.where for source in self.sources if source.is_optional)
        self.expected = verify.Expected(mounts_, optional, devices, self.own_namespaces)

    def _mount_cgroups(self, flags: int) -> None:
        """Mount the container's view of its cgroups, from where it will look: only there has it the right root."""
        build = self.build

        def view() -> None:
            self._enter_cgroup()
            stage_fd = os.open(self.stage.directory, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            own = build.plan.has(Clone.NEWCGROUP)
            mount_view(stage_fd, "/cgroup", flags, build.cgroup, build.request.hierarchies, own_namespace=own)

        _in_child(view)

    def _enter_cgroup(self) -> None:
        """Join the container's cgroup and its view of it; what CRIU forks is then there from the beginning."""
        self.build.cgroup.join()
        if self.build.plan.new & Clone.NEWCGROUP:
            unshare(Clone.NEWCGROUP)

    def _ask(self, images_fd: int, work_fd: int) -> None:
        """Have CRIU restore; returns once everything runs."""
        options = criu.options_for(self.choices.common)
        options.images_dir_fd, options.work_dir_fd, options.log_file = images_fd, work_fd, LOG
        options.root = self.stage.root
        options.evasive_devices = True
        options.restore_as_sibling = True  # a child of ours, so of whoever inherits our children
        fds = [images_fd, work_fd]
        for source in self.sources:
            options.external_mounts.add(key=source.where, value=source.path)
        for key, fd in self._inherited():
            options.inherited_fds.add(key=key, fd=fd)
            fds.append(fd)
        for kind, name in ((Clone.NEWIPC, "ipc"), (Clone.NEWUTS, "uts"), (Clone.NEWTIME, "time")):
            if kind in self.build.plan.joined:
                fd = self.build.plan.joined[kind]
                options.joined_namespaces.add(kind=name, file=f"/proc/self/fd/{fd}")
                fds.append(fd)
        self._choose_labels(options)
        request = pb.Request(type=pb.RESTORE, options=options)
        log = Path(f"/proc/self/fd/{work_fd}", LOG)
        with criu.Criu(self.choices.common.program, fds, self._enter_cgroup) as process:
            response = process.ask(request, self._notified)
        if not response.success:
            kept = f"{self.choices.common.work}/{LOG}" if self.choices.common.work else ""
            raise criu.failure("restore the container", response, log, kept)

    def _inherited(self) -> list[tuple[str, int]]:
        """Return what CRIU finds by fd: the container's streams, and namespaces that it shares."""
        found = []
        # One with a terminal of its own has nothing to do with what our streams are.
        has_terminal = self.build.process.get("terminal")
        names = [] if has_terminal else images.read_descriptors(self.choices.common.images)[:_ABOVE_STDIO]
        for number, name in enumerate(names):
            if name.startswith("file[") and not _has_position(number):
                # CRIU sets the position that a file had. What the process wrote went to one, and not to anybody.
                found.append((name, os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))
            elif name.startswith(("pipe:", "file[", "socket:")):
                # Higher up: CRIU's own stdio is the null device.
                found.append((name, fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STDIO)))
        for kind, (_, key) in EXTERNAL_NAMESPACES.items():
            if KINDS[kind] in self.build.plan.joined:
                found.append((key, self.build.plan.joined[KINDS[kind]]))
        return found

    def _choose_labels(self, options: pb.Options) -> None:
        """Have CRIU give the processes the labels of the spec, or those that the caller insists on."""
        process = self.build.process
        if self.choices.lsm_profile:
            options.lsm_profile = self.choices.lsm_profile
        elif process.get("apparmorProfile"):
            options.lsm_profile = f"apparmor:{process['apparmorProfile']}"
        elif process.get("selinuxLabel"):
            options.lsm_profile = f"selinux:{process['selinuxLabel']}"
        context = self.choices.lsm_mount_context or self.build.linux.get("mountLabel")
        if context:
            options.lsm_mount_context = context

    def _notified(self, notification: pb.Notification, fd: int) -> bool:
        if notification.script == "orphan-pts-master":
            self.console_fd = fd
        elif notification.script == "setup-namespaces":
            self._tell_state(notification.pid)
            if self.build.state.hooks.keys() & {"prestart", "createRuntime"}:
                self.build.channel.send(Message.HOOKS)
                if self.build.channel.receive() is None:
                    raise OciError("restore: a hook failed")
        elif notification.script == "pre-resume":
            build = self.build
            assert self.expected is not None
            try:
                verify.check(build.spec, build.plan, build.state.pid, self.expected)
                self._follow_the_host()
                self._hand_over()
            except BaseException:
                # Before CRIU, at whose end they would go on.
                _kill(verify.tree(build.state.pid))
                raise
        return True

    def _follow_the_host(self) -> None:
        """Make slaves of the host's of those mounts that are on the stage, see images.without_masters."""
        assert self.expected is not None
        there = {item.where: item for item in mount_table.of(self.build.state.pid)}
        root_fd = os.open(f"/proc/{self.build.state.pid}/root", _PATH)
        try:
            for where, path in self._laid_out().items():
                if self.expected.mounts[where].is_slave and where in there and not there[where].propagation:
                    _share(path, root_fd, where)
        finally:
            os.close(root_fd)

    def _tell_state(self, pid: int) -> None:
        self.build.state = self.build.state.with_pid(pid)
        state.write(self.build.request.state_directory, self.build.state)

    def _hand_over(self) -> None:
        """Tell the parent that the container is there, and wait for its start."""
        build = self.build
        channel = build.channel
        if bool(build.process.get("terminal")) != (self.console_fd >= 0):
            raise OciError("restore: process.terminal and the checkpoint disagree about a terminal")
        if self.console_fd >= 0:
            channel.send(Message.CONSOLE, [self.console_fd])
            os.close(self.console_fd)
        channel.send(Message.STEPPED, pid=build.state.pid)
        self.handed_over = True
        init.tell_created(build)
        self._wait_for_start()

    def _wait_for_start(self) -> None:
        """Wait for the start. Raises OciError if the parent goes away or the first process ends instead."""
        channel, pid = self.build.channel, self.build.state.pid
        while not readable(channel.fileno(), _LOOK_AGAIN):
            if _is_ending(pid):
                raise OciError("restore: the container's first process has been killed before it was started")
        if channel.receive() is None:
            raise OciError("restore: the container has been given up before it was started")


def _is_ending(pid: int) -> bool:
    """Whether a process is on its way out.

    It may have to stay: the first of a PID namespace waits for the others, and those for CRIU, which waits for us.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return bool(int(file.read().rpartition(b")")[2].split()[_FLAGS]) & _PF_EXITING)
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Yield an fd of a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _share(path: str, root_fd: int, where: str) -> None:
    """Have the mount at `where` below a root see what is mounted on the one at `path` later."""
    source_fd, target_fd = os.open(path, O_PATH | os.O_CLOEXEC), open_in_root(root_fd, where)
    try:
        set_group(source_fd, target_fd)
    except OSError as error:
        raise OciError(f"restore: propagation of {where}: {describe(error)}", error.errno or 0) from None
    finally:
        os.close(target_fd)
        os.close(source_fd)


def _has_position(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:  # ESPIPE
        return False
    return True


def _in_child(do: Callable[[], None]) -> None:
    """Do something in a forked child and wait for it. Raises OciError with its error's text."""
    ours, theirs = Channel.pair()
    pid, pidfd = clone3(0, signal.SIGCHLD)
    if pid == 0:
        try:
            ours.close()
            do()
        except OSError as error:
            theirs.fail(describe(error), error.errno or 0)
        finally:
            os._exit(0)
    theirs.close()
    answer = ours.receive()
    wait(pidfd)
    os.close(pidfd)
    ours.close()
    if answer is not None:
        raise OciError(f"restore: the view of cgroups: {answer[1]['text']}", answer[1]["errno"])


def _kill(pids: Iterable[int]) -> None:
    """Kill processes that CRIU has stopped: they are woken, and take the signal before they take any other step."""
    for pid in list(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap_all(cgroup: Cgroup) -> None:
    """Reap what has been restored and killed; who removes the cgroup finds what is left after ten seconds."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        cgroup.kill()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            if not cgroup.pids():
                return
        time.sleep(_PAUSE)
