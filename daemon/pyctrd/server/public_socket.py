"""A socket path that clients know, taken over without a moment in which nobody listens.

    <state>/pyctrd.sock          a hard link to
    <state>/pyctrd.sock.<pid>    what the listener of process <pid> has bound

A listener binds a path of its own and is then shown at the public one by rename, which replaces
whatever was there. grpcio unlinks the path that it bound when it stops, and nothing else.
"""

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.addresses import Tcp


def answers(path: Path) -> bool:
    """Return whether somebody accepts connections at `path`; False too if nothing is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # its queue of connections is full: it is busy, so it lives
            return True
    return True


def refuse_if_served(path: Path) -> None:
    """Raise FailedPrecondition if another server answers at `path`, or if it is no socket at all."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"address {path}: exists and is not a socket")
    if answers(path):
        raise FailedPrecondition(f"address {path}: another server answers on it")


def private_path(public: Path) -> Path:
    """Return the path that this process binds in order to be shown at `public`."""
    return public.with_name(f"{public.name}.{os.getpid()}")


def clear(public: Path) -> None:
    """Unlink what dead processes bound for `public`, and what this process's number left behind."""
    pattern = re.compile(re.escape(public.name) + r"\.\d+(\.new)?")
    for path in public.parent.iterdir():
        if pattern.fullmatch(path.name) and path.is_socket() and not answers(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(address: Path | Tcp) -> Iterator[None]:
    """Make what goes wrong while an address is taken a FailedPrecondition that names it."""
    try:
        yield
    except OSError as error:
        raise FailedPrecondition(f"address {address}: {error.strerror or error}") from error
    except RuntimeError as error:  # of grpc, which does not say why
        raise FailedPrecondition(f"address {address}: cannot listen on it") from error


def connections(private: Path) -> int:
    """Return how many clients are connected to the listener that has bound `private`. Source: proc(5), net/unix."""
    suffix = f" {private}"
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as sockets:
        # Num RefCount Protocol Flags Type St Inode Path: an accepted socket has the listener's path, and state 3.
        return sum(line.rstrip("\n").endswith(suffix) and line.split()[5:6] == ["03"] for line in sockets)


def publish(private: Path, public: Path, uid: int, gid: int) -> None:
    """Show the bound socket `private` at `public`, usable by the owner `uid` and the group `gid` only."""
    os.chown(private, uid, gid)
    private.chmod(0o660)
    staged = private.with_name(private.name + ".new")
    os.link(private, staged)
    staged.rename(public)


def withdraw(private: Path, public: Path) -> None:
    """Unlink `public` if it still shows `private`: a successor may have taken it."""
    with contextlib.suppress(FileNotFoundError):
        if public.samefile(private):
            public.unlink()
