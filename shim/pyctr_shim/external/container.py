"""A container that another runtime makes: its command line, and what is checked of what that claims.

    create   mount the root, write the record, `create`, find the first process by its pid file
    start    `start`
    exec     `exec --detach`, find the process by its pid file
    delete   `delete`, then remove whatever is left all the same

The runtime's processes end as orphans of ours, so the shim's keeper reaps them. A runtime that hangs, fails or lies
costs its container at most a call with an error: what is removed is what the record names, with or without its help.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyctr_shim import journal
from pyctr_shim.container import Accounts, Program
from pyctr_shim.external import cgroup as cgroups
from pyctr_shim.external import command, remains
from pyctr_shim.external.remains import Record
from pyctr_shim.external.terminal import ConsoleSocket
from pyctr_shim.identity import write_file
from pyctr_shim.loop import Future, Loop
from pyctr_shim.oci import program as programs
from pyctr_shim.oci import runtime
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.forks import Child
from pyctr_shim.oci.rootfs import check_place, mount_rootfs
from pyctr_shim.reaper import Reaper
from pyctr_sys.pidfd import pidfd_open, pidfd_send_signal

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Dump

_MAX_PID_FILE: Final = 32
_VERSION_SECONDS: Final = 5.0
_LOOKS: Final = 20
_PAUSE: Final = 0.05


class Surroundings(NamedTuple):
    """What of the shim a container needs: its loop, who reaps, the keeper's pid, and where its sockets are."""

    loop: Loop
    reaper: Reaper
    keeper_pid: int
    socket: str


class Found(NamedTuple):
    """A process that a runtime has made; whoever gets it owns both descriptors. `pidfd` is None if it has ended."""

    pid: int
    pidfd: int | None
    console_fd: int | None


class Wanted(NamedTuple):
    """The container that is to be made, beside what its config.json says."""

    namespace: str
    id: str
    bundle: str
    options: runtime.CreateOptions


def plan(around: Surroundings, wanted: Wanted, program: Program) -> "External":
    """Return a container that is still to be made. Raises OciError: no such program, no usable config.json."""
    bundle = wanted.bundle
    try:
        spec = _read_spec(bundle)
        linux: Mapping[str, Any] = spec.get("linux") or {}
        namespaces = {item["type"]: item.get("path") for item in linux.get("namespaces") or ()}
        rootfs = os.path.normpath(os.path.join(bundle, spec["root"]["path"])) if wanted.options.rootfs else ""
        if rootfs:
            check_place(rootfs, bundle)
        cgroup = str(linux.get("cgroupsPath") or "")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OciError(f"config.json: {error!r}") from None
    if "user" in namespaces:
        os.chmod(bundle, 0o711)  # noqa: S103 - the container's root, who is nobody here, passes through to its root
    known = Record(
        id=wanted.id,
        program=programs.find(program.path, os.environ),
        root=f"{program.root}/{wanted.namespace}" if program.root else f"{bundle}/runtime",
        seconds=program.seconds,
        systemd_cgroup=wanted.options.systemd_cgroup,
        rootfs=rootfs,
        asked_cgroup=cgroup if cgroup.startswith("/") and not wanted.options.systemd_cgroup else "",
    )
    return External(around, bundle, known, own_pid_namespace=namespaces.get("pid", "") is None)


class External:
    """One container of a runtime that is a program of its own."""

    def __init__(self, around: Surroundings, bundle: str, known: Record, *, own_pid_namespace: bool) -> None:
        """Made by `plan`."""
        self.own_pid_namespace = own_pid_namespace
        self._around = around
        self._bundle = bundle
        self._record = known
        self._pidfd: int | None = None
        self._runtime_is_done = False
        self._count = 0

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._record.pid

    @property
    def cgroup(self) -> Accounts:
        """Where its processes are counted."""
        return cgroups.cgroup_of(self._record.cgroup)

    def pidfd(self) -> int | None:
        """Return a descriptor of the first process, the caller's to close; None if it has ended already."""
        return None if self._pidfd is None else os.dup(self._pidfd)

    async def create(
        self, stdio: runtime.Stdio, options: runtime.CreateOptions, *, terminal: bool, when_forked: Callable[[], None]
    ) -> int | None:
        """Make it up to its program; return its terminal. `when_forked` is called once the runtime has `stdio`.

        Raises OciError; nothing is left of it then.
        """
        arguments = ["--no-pivot"] if options.no_pivot_root else []
        arguments += ["--no-new-keyring"] if options.no_new_keyring else []
        try:
            with _as_oci_error():
                remains.write(self._bundle, self._record)
                arguments += ["--bundle", await self._readable_bundle()]
                if self._record.rootfs:
                    os.makedirs(self._record.rootfs, 0o711, exist_ok=True)
                    mount_rootfs(options.rootfs, self._record.rootfs)
                found = await self._make("create", arguments, stdio, terminal=terminal, when_forked=when_forked)
                self._pidfd = found.pidfd
                with suppress(ProcessLookupError):  # it has ended: its cgroup is found by nobody
                    self._record = self._record._replace(cgroup=cgroups.find(found.pid))
                self._record = self._record._replace(pid=found.pid)
                remains.write(self._bundle, self._record)
        except Exception as error:
            await self._undo(error)
            raise
        return found.console_fd

    async def start(self) -> None:
        """Let the first process run its program."""
        await self._call("start")

    async def exec(self, exec_id: str, process: bytes, stdio: runtime.Stdio, *, terminal: bool) -> Found:
        """Run a further process."""
        with self._document("process", process) as path:
            return await self._make("exec", ["--detach", "--process", path], stdio, terminal=terminal)

    async def kill(self, number: int) -> None:
        """Signal the first process, by way of the runtime, which may have more between it and us.

        SIGKILL goes to the process itself: that must work with a runtime that does not.
        """
        if self._pidfd is None:
            raise ProcessLookupError
        if number == signal.SIGKILL:
            pidfd_send_signal(self._pidfd, number)
            self._thaw()
            return
        try:
            await self._call("kill", after=(str(number),))
        except OciError:
            pidfd_send_signal(self._pidfd, 0)  # ended meanwhile: that is what to tell
            raise

    async def kill_all(self, number: int) -> None:
        """Signal every process in its cgroup."""
        place = cgroups.cgroup_of(self._record.cgroup)
        if isinstance(place, cgroups.NoCgroup):
            await self._call("kill", "--all", after=(str(number),))
        elif number == signal.SIGKILL:
            place.kill()
            self._thaw()
        else:
            for pid in place.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    async def pause(self) -> None:
        """Freeze it."""
        await self._call("pause")

    async def resume(self) -> None:
        """Let it go on, unless a SIGKILL has had it thawed."""
        place = cgroups.cgroup_of(self._record.cgroup)
        if isinstance(place, cgroups.NoCgroup) or place.is_paused():
            await self._call("resume")

    async def update(self, resources: bytes) -> None:
        """Change limits."""
        with self._document("resources", resources) as path:
            await self._call("update", "--resources", path)

    def checkpoint(self, choices: "Dump") -> Child:
        """Raise OciError: another runtime's checkpoints are its own affair."""
        raise OciError(
            f"checkpoint: only of containers of the embedded runtime, and this is one of {self._record.name}'s"
        )

    async def delete(self) -> None:
        """Remove it, whatever its runtime does. Raises OciError while processes of it are there."""
        if not self._runtime_is_done:
            try:
                await self._call("delete", "--force")
            except OciError as error:
                journal.log("runtime does not delete", runtime=self._record.program, error=str(error))
            self._runtime_is_done = True
        remains.remove(self._record)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    # --- the command line

    async def _make(
        self,
        verb: str,
        arguments: Sequence[str],
        stdio: runtime.Stdio,
        *,
        terminal: bool,
        when_forked: Callable[[], None] = lambda: None,
    ) -> Found:
        """Have the runtime make a process, and find that."""
        pid_file = self._file("pid")
        arguments = [*arguments, "--pid-file", pid_file]
        console = None
        if terminal:
            console = ConsoleSocket(self._around.loop, f"{self._around.socket}.{os.urandom(4).hex()}")
            arguments += ["--console-socket", console.path]
        try:
            with self._around.reaper.holding():
                given = None if terminal else (stdio.stdin, stdio.stdout, stdio.stderr)
                await self._call(verb, *arguments, stdio=given, when_forked=when_forked)
                pid, pidfd = await self._find(verb, pid_file)
            try:
                return Found(pid, pidfd, console.take() if console is not None else None)
            except OciError:
                if pidfd is not None:
                    pidfd_send_signal(pidfd, signal.SIGKILL)
                    os.close(pidfd)
                raise
        finally:
            if console is not None:
                console.close()
            with suppress(FileNotFoundError):
                os.unlink(pid_file)

    async def _call(
        self,
        verb: str,
        *options: str,
        after: Sequence[str] = (),
        stdio: tuple[int, int, int] | None = None,
        when_forked: Callable[[], None] = lambda: None,
    ) -> None:
        """Run one command about this container: options, its id, what comes `after` that. Raises OciError."""
        log = self._file("log")
        known = self._record
        words = [*known.arguments(log), verb, *options, known.id, *after]
        try:
            child = command.start(self._around.loop, known.program, words, known.seconds, stdio)
            when_forked()
            result = await child.ended
            if result.code != 0:
                raise OciError(command.explain(known.name, verb, result, known.seconds, command.last_error(log)))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(log)

    async def _find(self, verb: str, pid_file: str) -> tuple[int, int | None]:
        """Return pid and pidfd of the process that a runtime says it has made.

        Nobody but a child of the keeper is believed to be it: a number in a file must never get a stranger killed.
        """
        pid = _number_in(pid_file)
        if pid <= 0:
            raise OciError(f"{self._record.name} {verb}: exit status 0, and no process")
        for _ in range(_LOOKS):
            if self._around.reaper.has_seen(pid):
                return pid, None
            with suppress(OSError, OverflowError):
                pidfd = pidfd_open(pid)
                parent = _parent_of(pid)
                if parent == self._around.keeper_pid:
                    return pid, pidfd
                os.close(pidfd)
                if parent:
                    break
            # Reaped, and the keeper is about to say so; or there never was such a process.
            await self._around.loop.wait(Future(), _PAUSE)
        raise OciError(f"{self._record.name} {verb}: exit status 0, and process {pid} is none of its making")

    async def _readable_bundle(self) -> str:
        """Return a bundle whose version the runtime knows: ours, or one with an older version written into it.

        crun before 1.8.4 refuses what is not of 1.0 unread. Each version only adds to the one before it.
        """
        spec = _read_spec(self._bundle)
        known = await self._known_version()
        if not known or _release(str(spec.get("ociVersion") or "")) <= _release(known):
            return self._bundle
        spec["ociVersion"] = known
        spec["root"] = {**spec["root"], "path": os.path.join(self._bundle, spec["root"]["path"])}
        older = f"{self._bundle}/older"
        os.makedirs(older, 0o700, exist_ok=True)
        os.chmod(older, os.stat(self._bundle).st_mode & 0o777)
        write_file(f"{older}/config.json", json.dumps(spec).encode())
        return older

    async def _known_version(self) -> str:
        """Return the version of the specification that the runtime claims to know, "" if it does not say."""
        record = self._record
        child = command.start(self._around.loop, record.program, ["--version"], min(record.seconds, _VERSION_SECONDS))
        result = await child.ended
        found = (line.removeprefix("spec:").strip() for line in result.words.splitlines() if line.startswith("spec:"))
        return next(found, "")

    async def _undo(self, error: BaseException) -> None:
        """Leave nothing of a creation that failed."""
        try:
            await self.delete()
        except OciError as left:
            raise OciError(f"{error}; cleaning up after that: {left}") from None
        remains.forget(self._bundle)

    def _file(self, purpose: str) -> str:
        """Return a name in the bundle that is used once."""
        self._count += 1
        return f"{self._bundle}/.{purpose}-{self._count}"

    @contextmanager
    def _document(self, purpose: str, data: bytes) -> Iterator[str]:
        """Have a file for the runtime to read. Raises OciError, also for what goes wrong with other files meanwhile."""
        path = self._file(purpose)
        with _as_oci_error():
            write_file(path, data)
            try:
                yield path
            finally:
                os.unlink(path)

    def _thaw(self) -> None:
        """The frozen of version 1 take no signal, not even SIGKILL."""
        place = cgroups.cgroup_of(self._record.cgroup)
        if place.is_paused():
            place.resume()


def _parent_of(pid: int) -> int:
    """Return a process's parent, 0 if it has been reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@contextmanager
def _as_oci_error() -> Iterator[None]:
    """Say what a full disk and the like have to do with it."""
    try:
        yield
    except OSError as error:
        raise OciError(describe(error), error.errno or 0) from None


def _read_spec(bundle: str) -> dict[str, Any]:
    with open(f"{bundle}/config.json", "rb") as file:
        spec = json.load(file)
    if not isinstance(spec, dict):
        raise TypeError("not an object")
    return spec


def _release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, which say what it has."""
    return tuple(int(number) for number in version.split(".")[:2] if number.isdigit())


def _number_in(path: str) -> int:
    """Return the number that a small file consists of, 0 if it is none."""
    try:
        with open(path, "rb") as file:
            return int(file.read(_MAX_PID_FILE))
    except (OSError, ValueError):
        return 0
