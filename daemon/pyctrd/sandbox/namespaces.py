"""Namespaces without a process: each kept by a bind mount of its file, from `pin` to `unpin`.

    <directory>/net  ipc  uts  pid      and init.json: the first process of the last one, which cannot be without
    <directory>/user                    the owner of them all, where that is not the machine's own

A container joins them by path. They outlive every process, this daemon too, but not the machine.
Source: namespaces(7), "Namespace lifetime".
"""

import json
import os
import re
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_sys.namespaces import Clone, setns, unshare
from pyctr_sys.pidfd import pidfd_open, pidfd_send_signal, start_ticks, wait
from pyctr_sys.process import sethostname
from pyctr_wire.errors import InvalidArgument, UnknownError
from pyctrd.core.idmaps import Maps
from pyctrd.network.netns import in_thread, set_loopback_up
from pyctrd.sandbox import pid_one
from pyctrd.sandbox.owner import owner, write_sysctl

KINDS: Final[Mapping[str, Clone]] = {
    "user": Clone.NEWUSER,
    "net": Clone.NEWNET,
    "ipc": Clone.NEWIPC,
    "uts": Clone.NEWUTS,
    "pid": Clone.NEWPID,
}
_INIT: Final = "init.json"
_OF_IPC: Final = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")
_OF_NET: Final = ("net.",)
_SYSCTL: Final = re.compile(r"[a-z0-9_]+([./][a-zA-Z0-9_*:-]+)+")


def pin(
    directory: Path, kinds: Collection[str], hostname: str, sysctls: Mapping[str, str], maps: Maps | None = None
) -> None:
    """Make namespaces of `kinds` and keep them in `directory`; blocks.

    The loopback device is up, a UTS namespace has `hostname`, and `sysctls` are set. With the kind "user" they belong
    to a new user namespace with `maps`. Raises InvalidArgument for a sysctl that belongs to none of them, UnknownError
    for what the kernel refuses; nothing is kept then.
    """
    check_sysctls(sysctls, kinds)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if "user" in kinds:
            assert maps is not None
            _make_owned(directory, kinds, hostname, sysctls, maps)
        else:
            in_thread(lambda: _make(directory, kinds, hostname, sysctls))
    except OSError as error:
        unpin(directory)
        raise UnknownError(f"namespaces of the sandbox: {error}") from error
    except BaseException:
        unpin(directory)
        raise


def unpin(directory: Path) -> None:
    """Let the namespaces go, and whatever still runs in a PID namespace; what is gone already is passed over."""
    _end_init(directory / _INIT)
    for kind in KINDS:
        path = directory / kind
        with suppress(OSError):
            while True:
                umount2(str(path), MNT_DETACH)
        with suppress(FileNotFoundError):
            path.unlink()
    with suppress(OSError):
        directory.rmdir()


def is_pinned(directory: Path, kinds: Collection[str]) -> bool:
    """Tell whether the namespaces are there; after a reboot they are not."""
    return all(os.path.ismount(directory / kind) for kind in kinds)


def check_sysctls(sysctls: Mapping[str, str], kinds: Collection[str]) -> None:
    """Raise InvalidArgument for a sysctl that is none, or that is not one of the sandbox's own namespaces."""
    own = (_OF_IPC if "ipc" in kinds else ()) + (_OF_NET if "net" in kinds else ())
    for name, value in sysctls.items():
        dotted = _dotted(name)
        if not _SYSCTL.fullmatch(name) or ".." in dotted or "\0" in value or "\n" in value:
            raise InvalidArgument(f"sysctl {name[:80]!r} is not one")
        if not dotted.startswith(own or ("\0",)):
            raise InvalidArgument(f'sysctl "{name}" is not in a namespace of the sandbox\'s own')


def _dotted(sysctl: str) -> str:
    return sysctl.replace("/", ".")


def _make(directory: Path, kinds: Collection[str], hostname: str, sysctls: Mapping[str, str]) -> None:
    unshare(_flags(kinds) & ~Clone.NEWPID)  # that is another thread's: after it, this one could not start any
    _configure(kinds, hostname, sysctls)
    with pid_one.gate() as (waited_fd, opened_fd):
        first = in_thread(lambda: pid_one.start(waited_fd)) if "pid" in kinds else 0
        _keep(directory, kinds, "thread-self", first, opened_fd)


def _make_owned(directory: Path, kinds: Collection[str], hostname: str, sysctls: Mapping[str, str], maps: Maps) -> None:
    of_ipc = {name: value for name, value in sysctls.items() if _dotted(name).startswith(_OF_IPC)}
    with (
        pid_one.gate() as (waited_fd, opened_fd),
        owner(_flags(kinds), maps, of_ipc, waited_fd) as (pid, first),
    ):
        _keep(directory, kinds, str(pid), first, opened_fd)

    def enter_and_configure() -> None:
        for kind in ("net", "uts"):
            if kind in kinds:
                with open(directory / kind, "rb") as file:
                    setns(file.fileno(), KINDS[kind])
        # Not in there: its values may be ids that the user namespace does not have.
        _configure(kinds, hostname, {name: value for name, value in sysctls.items() if name not in of_ipc})

    in_thread(enter_and_configure)


def _configure(kinds: Collection[str], hostname: str, sysctls: Mapping[str, str]) -> None:
    """Set up the calling thread's namespaces."""
    if "net" in kinds:
        set_loopback_up()
    if "uts" in kinds:
        sethostname(hostname)
    for name, value in sysctls.items():
        try:
            write_sysctl(name, value)
        except OSError as error:
            raise UnknownError(f'sysctl "{name}": {error.strerror}') from error


def _flags(kinds: Collection[str]) -> int:
    flags = 0
    for kind in kinds:
        flags |= KINDS[kind]
    return flags


def _keep(directory: Path, kinds: Collection[str], task: str, first: int, opened_fd: int) -> None:
    """Keep the namespaces that `task` has in /proc, and the first process of a PID namespace, 0 for none."""
    if first:
        try:
            (directory / _INIT).write_text(json.dumps({"pid": first, "start_ticks": start_ticks(first)}))
            os.write(opened_fd, b"x")
        except BaseException:
            _end(first)
            raise
    for kind in kinds:
        path = directory / kind
        path.touch(mode=0o400)
        mount(f"/proc/{first if kind == 'pid' else task}/ns/{kind}", str(path), None, MountFlag.BIND)


def _end_init(record: Path) -> None:
    """Kill the first process of a PID namespace, and with it all others."""
    # Of one whose record has not been written to its end, nobody let it begin.
    with suppress(FileNotFoundError, ValueError):
        known = json.loads(record.read_text())
        _end(known["pid"], known["start_ticks"])
    record.unlink(missing_ok=True)


def _end(pid: int, ticks: int | None = None) -> None:
    """Kill a process, unless it is another one than that which started at `ticks`, and wait for its end."""
    with suppress(ProcessLookupError, FileNotFoundError):
        pidfd = pidfd_open(pid)
        try:
            if ticks in (None, start_ticks(pid)):
                pidfd_send_signal(pidfd, signal.SIGKILL)
                wait(pidfd)
        finally:
            os.close(pidfd)
