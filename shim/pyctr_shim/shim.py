"""A shim: its parts put together, from the bundle's lock to the last event.

    lock the bundle → listen → say so in shim.json → serve → (Shutdown) → stop listening → flush events → end

The lock is held for the shim's whole life and by the kernel's grace no longer: who can take it knows that the shim
is gone. A crash before shim.json leaves a bundle without an address, after it an address where nobody answers.
"""

import fcntl
import json
import os
import socket
from typing import Final

from pyctr_shim import journal
from pyctr_shim.identity import Identity, Inheritance, write_file
from pyctr_shim.loop import READ, Loop
from pyctr_shim.oci import runtime
from pyctr_shim.publisher import Publisher
from pyctr_shim.reaper import Reaper
from pyctr_shim.server import Server, listen_at, same_user
from pyctr_shim.stdio.attach import Client
from pyctr_shim.task_service import TaskService
from pyctr_shim.tasks import MakeContainer, Tasks
from pyctr_sys.process import set_child_subreaper

VERSION: Final = 1
_NEVER_USED: Final = 60.0
_UNUSED: Final = 10.0
_FLUSH_LIMIT: Final = 2.0
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC
_READ_WRITE: Final = os.O_RDWR | os.O_CLOEXEC
_LOCK_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK: Final = fcntl.LOCK_EX | fcntl.LOCK_NB


class BundleTaken(Exception):
    """Another live shim holds the bundle."""


class Shim:
    """One shim, in the process that it is to live in."""

    def __init__(
        self, loop: Loop, identity: Identity, inheritance: Inheritance, make: MakeContainer = runtime.create
    ) -> None:
        """Lock the bundle and put the parts together; raises BundleTaken, or OSError if the bundle is not there."""
        self._identity = identity
        self._boot_id = inheritance.boot_id
        self._lock_fd = lock_bundle(identity.bundle)
        journal.open_log(identity.bundle)
        self._loop = loop
        self._publisher = Publisher(loop, identity)
        reaper = Reaper(loop, inheritance.signal_fd, self._reopen_logs)
        self._tasks = Tasks(loop, reaper, self._publisher, identity, inheritance.boot_id, make)
        service = TaskService(self._tasks, self._publisher, os.getpid(), self._shut_down)
        self._server = Server(loop, service, self._quiet)
        self._attach_listener: socket.socket | None = None
        self._sockets: list[str] = []
        self._stopping = False

    def listen(self, listener: socket.socket | None = None) -> None:
        """Listen at the identity's sockets, on `listener` if that has been done; raises OSError."""
        identity = self._identity
        if listener is None:
            listener = listen_at(identity.socket)
        self._sockets.append(identity.socket)
        self._server.listen(listener)
        self._attach_listener = listen_at(identity.attach)
        self._attach_listener.setblocking(False)
        self._sockets.append(identity.attach)
        self._loop.watch(self._attach_listener.fileno(), READ, self._attach)
        write_description(identity, self._boot_id)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that the daemon made beforehand."""
        self._server.adopt(connection)

    def run(self) -> None:
        """Serve until told to shut down, or until nobody has any use for this shim."""
        self._loop.call_later(_NEVER_USED, self._end_if_unused)
        self._loop.run()
        self._publisher.close()
        self._server.close()

    def _shut_down(self) -> None:
        """Stop listening at once: a new shim of the same name may take the sockets over from now on."""
        if self._stopping:
            return
        self._stopping = True
        for path in self._sockets:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
        self._loop.call_soon(self._begin_the_end)

    def _begin_the_end(self) -> None:
        self._loop.spawn(self._end())

    async def _end(self) -> None:
        await self._publisher.flush(_FLUSH_LIMIT)
        self._loop.stop()

    def _quiet(self) -> None:
        """The last connection has closed."""
        if self._tasks.empty:
            self._loop.call_later(_UNUSED, self._end_if_unused)

    def _end_if_unused(self) -> None:
        if self._tasks.empty and self._server.quiet:
            journal.log("nobody uses this shim")
            self._shut_down()

    def _reopen_logs(self) -> None:
        self._tasks.reopen_logs()

    def _attach(self, _events: int) -> None:
        assert self._attach_listener is not None
        try:
            peer, _address = self._attach_listener.accept()
        except OSError as error:
            journal.log("accept failed", error=str(error))
            return
        if same_user(peer):
            Client(self._loop, peer, self._tasks.streams)
        else:
            peer.close()


def prepare_process() -> None:
    """Make this process what a shim is, whoever it will be: nobody's session, parent of orphans, no one's stdio."""
    os.setsid()
    os.chdir("/")
    set_child_subreaper()
    fd = os.open("/proc/self/comm", _WRITE)
    os.write(fd, b"pyctr-shim")
    os.close(fd)
    null_fd = os.open("/dev/null", _READ_WRITE)
    for fd in range(3):
        os.dup2(null_fd, fd)
    os.close(null_fd)


def lock_bundle(bundle: str) -> int:
    """Return the bundle's lock, held until the process ends; raises BundleTaken, or OSError without a bundle."""
    fd = os.open(f"{bundle}/lock", _LOCK_FILE, 0o600)
    try:
        fcntl.flock(fd, _LOCK)
    except BlockingIOError as error:
        os.close(fd)
        raise BundleTaken(f"a live shim holds {bundle}") from error
    return fd


def write_description(identity: Identity, boot_id: str) -> None:
    """Write shim.json, whole or not at all: where this shim answers."""
    description = {
        "version": VERSION,
        "pid": os.getpid(),
        "address": identity.socket,
        "attach": identity.attach,
        "boot_id": boot_id,
    }
    write_file(f"{identity.bundle}/shim.json", json.dumps(description).encode())
