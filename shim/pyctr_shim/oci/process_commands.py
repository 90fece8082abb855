"""The subcommands of `pyctr-oci` that make processes: create, run, exec."""

import argparse
import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any, Final

from pyctr_shim.oci import commands, log, runtime, service
from pyctr_shim.oci.cgroups import Cgroup, cgroup_for, mounted
from pyctr_shim.oci.cgroups.v1 import PlacesV1
from pyctr_shim.oci.checkpoint.choices import Restore
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.runtime import Container, CreateOptions, ExecOptions, Stdio
from pyctr_shim.oci.state import Status
from pyctr_sys import pidfd
from pyctr_sys.process import set_child_subreaper

_STDIO: Final = Stdio(0, 1, 2)
_CHUNK: Final = 65536
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def create(options: argparse.Namespace) -> int:
    """Create a container that `start` will run."""
    container, directory = _create(options)
    with _undone_on_error(container, directory):
        _hand_over(options, container.pid, container.pidfd, container.console_fd)
    return 0


def run(options: argparse.Namespace) -> int:
    """Create and start a container; unless detached, wait for its end and return its exit status."""
    return _run(options, None)


def run_restored(options: argparse.Namespace, checkpoint: Restore) -> int:
    """Do what `run` does with a container made of a checkpoint."""
    return _run(options, checkpoint)


def _run(options: argparse.Namespace, checkpoint: Restore | None) -> int:
    set_child_subreaper()  # a stager's child is ours to wait for
    container, directory = _create(options, checkpoint)
    if options.no_subreaper:
        set_child_subreaper(on=False)
    relayed_fd = None if options.console_socket else container.console_fd
    with contextlib.ExitStack() as stack:
        with _undone_on_error(container, directory):
            _hand_over(options, container.pid, container.pidfd, container.console_fd if relayed_fd is None else None)
            if not options.detach:
                _pass_signals_on(container.pidfd)  # before anybody can know that it runs
            if relayed_fd is not None and os.isatty(0):
                _copy_size(relayed_fd)  # before the program can ask for it
            ready = stack.enter_context(service.Readiness(directory))
            if checkpoint is None:
                commands.begin(options)
            else:
                container.start()
        if options.detach:
            _relay_readiness(options, ready, container.pidfd, container.pid)
            return 0
        stack.enter_context(_relayed_meanwhile(options, ready, container.pidfd))
        status = _await(container.pidfd, relayed_fd)
    if not options.keep:
        commands.delete(argparse.Namespace(**{**vars(options), "force": True}))
    return status


@contextlib.contextmanager
def _relayed_meanwhile(options: argparse.Namespace, ready: service.Readiness, process_fd: int) -> Iterator[None]:
    """Pass readiness on beside whatever else is done until the end of the process; this one is to be watched."""

    def relay() -> None:
        _relay_readiness(options, ready, process_fd, os.getpid())
        ready.drain(process_fd)

    if not ready.is_awaited:
        yield
        return
    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _relay_readiness(options: argparse.Namespace, ready: service.Readiness, process_fd: int, main_pid: int) -> None:
    try:
        ready.relay(process_fd, main_pid)
    except OSError as error:
        log.warning(options, f"$NOTIFY_SOCKET: {describe(error)}")


def _create(options: argparse.Namespace, checkpoint: Restore | None = None) -> tuple[Container, str]:
    _check_preserved(options, service.sockets())
    directory = commands.directory_of(options)
    os.makedirs(options.root, 0o711, exist_ok=True)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise OciError("container with given ID already exists") from None
    try:
        bundle = os.path.abspath(options.bundle)
        choices = CreateOptions(
            no_pivot_root=options.no_pivot,
            no_new_keyring=options.no_new_keyring,
            systemd_cgroup=options.systemd_cgroup,
            entered=options.entered,
            preserve_fds=options.preserve_fds,
            state_directory=directory,
            detached=checkpoint is None,
            checkpoint=checkpoint,
            service=service.given(directory) if checkpoint is None else service.NOTHING,
        )
        container = runtime.create(options.id, bundle, _STDIO, choices)
    except BaseException:
        with contextlib.suppress(OSError):
            commands.remove_directory(directory)
        raise
    for note in container.notes:
        log.warning(options, note)
    with _undone_on_error(container, directory):
        detaches = options.command is create or options.detach
        _check_console(options, detaches=detaches, terminal=container.console_fd is not None)
    return container, directory


def _check_preserved(options: argparse.Namespace, sockets: int = 0) -> None:
    """Raise OciError if an fd to hand on is not there: before anything of ours can take its number."""
    for number in range(sockets + options.preserve_fds):
        try:
            os.fstat(3 + number)
        except OSError as error:
            source = "$LISTEN_FDS" if number < sockets else "--preserve-fds"
            raise OciError(f"{source}: fd {3 + number}: {error.strerror}", error.errno or 0) from None


def _check_console(options: argparse.Namespace, *, detaches: bool, terminal: bool) -> None:
    """Raise OciError if a terminal has nowhere to go, or nothing is to go to the socket for it."""
    if terminal and detaches and not options.console_socket:
        raise OciError("cannot allocate tty if runc will detach without setting console socket")
    if options.console_socket and not (terminal and detaches):
        raise OciError("cannot use console socket if runc will not detach or allocate tty")


@contextlib.contextmanager
def _undone_on_error(container: Container, directory: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        commands.end(container)
        pidfd.wait(container.pidfd)
        container.delete()
        with contextlib.suppress(OSError):
            commands.remove_directory(directory)
        raise


def _hand_over(options: argparse.Namespace, pid: int, process_fd: int, console_fd: int | None) -> None:
    """Give the caller terminal and pidfd, then the pid: who reads the pid may count on the rest."""
    if console_fd is not None:
        _send_fd(options.console_socket, console_fd, b"/dev/ptmx")  # as containerd's console library expects it
        os.close(console_fd)
    if options.pidfd_socket:
        _send_fd(options.pidfd_socket, process_fd, b"pidfd")
    if options.pid_file:
        temporary = os.path.join(os.path.dirname(options.pid_file), f".{os.path.basename(options.pid_file)}")
        with open(temporary, "w") as file:
            file.write(str(pid))
        os.rename(temporary, options.pid_file)


def _send_fd(path: str, fd: int, name: bytes) -> None:
    """Send one fd, and a name of it, to the unix socket at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError as error:
            raise OciError(f"{path}: {error.strerror}", error.errno or 0) from None
        client.sendmsg([name], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def exec_(options: argparse.Namespace) -> int:
    """Execute a process; unless detached, wait for its end and return its exit status."""
    _check_preserved(options)
    set_child_subreaper()
    with commands.existing(options) as (directory, record, container):
        status = commands.status_of(directory, record, container)
        if status is Status.STOPPED:
            raise OciError("cannot exec in a stopped container")
        if status is Status.PAUSED and not options.ignore_paused:
            raise OciError("cannot exec in a paused container (use --ignore-paused to override)")
        document = _process_document(options, record.bundle)
        terminal = bool(document.get("terminal"))
        _check_console(options, detaches=options.detach or bool(options.console_socket), terminal=terminal)
        relays = terminal and not options.console_socket
        if relays and os.isatty(0):
            document["consoleSize"] = _own_size()  # before the program can ask for it
        if options.cgroup:
            container.cgroup = _places_below(container, options.cgroup)
        choices = ExecOptions(preserve_fds=options.preserve_fds, ignore_paused=options.ignore_paused)
        joined = container.exec(json.dumps(document).encode(), _STDIO, choices)
        _hand_over(options, joined.pid, joined.pidfd, None if relays else joined.console_fd)
        if options.detach:
            return 0
        _pass_signals_on(joined.pidfd)
        return _await(joined.pidfd, joined.console_fd if relays else None)


def _places_below(container: Container, places: list[str]) -> Cgroup:
    """Return what to join for `--cgroup [CONTROLLER[,CONTROLLER]:]PATH`, given once or more often.

    Raises OciError for a controller that is not there, and for a path that climbs.
    """
    below: dict[str, str] = {}
    hierarchies, path = mounted(), container.cgroup.path
    for place in places:
        controllers, colon, below_it = place.rpartition(":")
        if ".." in below_it.split("/"):
            raise OciError(f"--cgroup: bad sub cgroup path: {place!r} is not below the container's")
        if not colon:
            path = os.path.normpath(f"{container.cgroup.path}/{below_it}")
            continue
        for controller in controllers.split(","):
            if controller not in hierarchies.controllers:
                raise OciError(f"--cgroup: {place!r}: unknown controller {controller!r}")
            below[controller] = below_it
    if not below:
        return cgroup_for(hierarchies, path)
    if path != container.cgroup.path:
        raise OciError("--cgroup: a path for all controllers and one for some do not go together")
    return PlacesV1(hierarchies, path, below)


def _process_document(options: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """Return the process to execute: a document of its own, or init's with what the options change."""
    if options.process:
        return commands.read_json(options.process)
    from pyctr_shim.oci import validate

    document = {"cwd": "/", **(validate.load_spec(os.path.join(bundle, "config.json")).get("process") or {})}
    arguments = options.args[1:] if options.args[:1] == ["--"] else options.args
    if not arguments:
        raise OciError("exec: no program given")
    document["args"], document["terminal"] = arguments, options.tty
    document["env"] = [*(document.get("env") or ()), *options.env]
    if options.cwd:
        document["cwd"] = options.cwd
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise OciError(f"--user: {options.user!r} is not UID or UID:GID")
        document["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    if options.additional_gids:
        document["user"] = {**(document.get("user") or {}), "additionalGids": options.additional_gids}
    if options.cap:
        sets = dict(document.get("capabilities") or {})
        # Not inheritable: a program that is not root would hand them on (CVE-2022-29162).
        for kind in ("bounding", "effective", "permitted"):
            sets[kind] = [*(sets.get(kind) or ()), *options.cap]
        document["capabilities"] = sets
    if options.no_new_privs:
        document["noNewPrivileges"] = True
    if options.process_label:
        document["selinuxLabel"] = options.process_label
    if options.apparmor:
        document["apparmorProfile"] = options.apparmor
    return document


def _pass_signals_on(process_fd: int) -> None:
    for number in _FORWARDED:
        signal.signal(number, lambda received, _frame: _forward(process_fd, received))


def _await(process_fd: int, console_fd: int | None) -> int:
    """Wait for a process's end; with a terminal, be it meanwhile. Returns 128 + N for signal N."""
    if console_fd is None:
        select.select([process_fd], [], [])
    else:
        _relay(console_fd)
    result = os.waitid(os.P_PIDFD, process_fd, os.WEXITED)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status


def _forward(process_fd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd.pidfd_send_signal(process_fd, number)


def _relay(console_fd: int) -> None:
    """Copy between our terminal and the process's, in raw mode, until its output ends."""
    before = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        if before is not None:
            tty.setraw(0)
            signal.signal(signal.SIGWINCH, lambda _number, _frame: _copy_size(console_fd))
            _copy_size(console_fd)  # once changes are told: none falls between
        sources = [0, console_fd]
        while console_fd in sources:
            ready, _, _ = select.select(sources, [], [])
            for source in ready:
                try:
                    data = os.read(source, _CHUNK)
                except OSError:  # EIO: nobody has the other side open any more
                    data = b""
                if data:
                    os.write(console_fd if source == 0 else 1, data)
                else:
                    sources.remove(source)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSAFLUSH, before)
        os.close(console_fd)


def _own_size() -> dict[str, int]:
    """Return the size of the caller's terminal as a process document has it."""
    size = os.get_terminal_size(0)
    return {"width": size.columns, "height": size.lines}


def _copy_size(console_fd: int) -> None:
    fcntl.ioctl(console_fd, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
