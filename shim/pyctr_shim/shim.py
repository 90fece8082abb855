"""A shim: its parts put together, from the bundle's lock to the last event.

    lock the bundle → listen → say so in shim.json → serve → (Shutdown) → stop listening → flush events → end
                                                      ↓ ↑
                                                     asleep: all of it written down, and the worker ended

The lock is held for the shim's whole life and by the kernel's grace no longer: who can take it knows that the shim
is gone. A crash before shim.json leaves a bundle without an address, after it an address where nobody answers.
"""

import contextlib
import copyreg
import fcntl
import json
import os
import pickle  # of what we write and read ourselves, in memory that is nobody else's
import socket
import time
from collections.abc import Callable
from typing import Final

from pyctr_shim import journal
from pyctr_shim.detached import leave_the_session
from pyctr_shim.identity import Identity, write_file
from pyctr_shim.keeper import ASLEEP, Common
from pyctr_shim.loop import READ, Loop
from pyctr_shim.oci import forks, runtime
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
_DROWSY: Final = 1.5  # idle seconds before it falls asleep: waking costs a fork and the copying of what it touches
_LONGEST_DROWSY: Final = 60.0
_FLUSH_LIMIT: Final = 2.0
_LOCK_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOCK: Final = fcntl.LOCK_EX | fcntl.LOCK_NB


class BundleTaken(Exception):
    """Another live shim holds the bundle."""


class Shim:
    """One shim, in the process that it is to live in."""

    def __init__(
        self, loop: Loop, identity: Identity, boot_id: str, common: Common, make: MakeContainer = runtime.create
    ) -> None:
        """Lock the bundle and put the parts together; raises BundleTaken, or OSError if the bundle is not there."""
        self._identity = identity
        self._boot_id = boot_id
        self._common = common
        self._lock_fd = lock_bundle(identity.bundle)
        journal.open_log(identity.bundle)
        self._loop = loop
        self._publisher = Publisher(loop, identity)
        reaper = Reaper(loop, common, self._reopen_logs)
        self._tasks = Tasks(loop, reaper, self._publisher, identity, boot_id, common.keeper_pid, make)
        self._service = TaskService(self._tasks, self._publisher, common.keeper_pid, self._shut_down)
        self._server = Server(loop, self._service, self._publisher, self._quiet)
        self._attach_listener: socket.socket | None = None
        self._sockets: list[str] = []
        self._stopping = False
        self._unused_until = time.monotonic() + _NEVER_USED
        self._drowsy = _DROWSY
        loop.when_idle(_DROWSY, self._idle)

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
        write_description(identity, self._common.keeper_pid, self._boot_id)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that the daemon made beforehand."""
        self._server.adopt(connection)

    def run(self) -> None:
        """Serve until told to shut down, or until nobody has any use for this shim; or fall asleep."""
        self._loop.run()
        self._publisher.close()
        self._server.close()

    @property
    def spotless(self) -> bool:
        """Whether this shim, which has run, leaves a process that can be another one: in its place, its duty done."""
        return self._publisher.empty and self._tasks.empty and not self._service.has_moved

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
        self._unused_until = time.monotonic() + _UNUSED

    def _idle(self) -> float:
        """Nothing has happened for a while; return in how many seconds that is to be told again."""
        if self._tasks.over and not os.fstat(self._lock_fd).st_nlink:
            journal.log("the bundle has been removed: nobody can find this shim")
            self._loop.spawn(self._bury())
            return _DROWSY
        if not self._tasks.empty:
            self._sleep()
            if not self._publisher.empty:  # until a daemon is there to tell
                return _DROWSY
            # Somebody's call is under way, perhaps for as long as the container lives.
            self._drowsy = min(self._drowsy * 2, _LONGEST_DROWSY)
            return self._drowsy
        if self._server.quiet and time.monotonic() > self._unused_until:
            journal.log("nobody uses this shim")
            self._shut_down()
        return _DROWSY

    async def _bury(self) -> None:
        """Remove what is left of containers that have ended, and end."""
        await self._tasks.delete_all()
        self._shut_down()

    def _sleep(self) -> None:
        """Write everything down for the next worker and end; returns if that cannot be done now."""
        if self._loop.has_plans:
            return
        forks.dismiss()  # the next worker does not know of it
        try:
            data = pickle.dumps((journal.current(), self), pickle.HIGHEST_PROTOCOL)
        except (TypeError, AttributeError, pickle.PicklingError):  # a call or a logger is under way
            return
        try:
            os.ftruncate(self._common.memory_fd, 0)
            os.pwrite(self._common.memory_fd, data, 0)
            statuses = self._tasks.statuses(self._identity.id)
            write_file(f"{self._identity.bundle}/asleep", json.dumps(statuses).encode())
        except OSError as error:
            journal.log("no room to fall asleep in", error=str(error))
            return
        os._exit(ASLEEP)

    def _reopen_logs(self) -> None:
        self._tasks.reopen_logs()

    def woken(self) -> None:
        """Go on after another worker: what it wrote down for the daemon may be wrong from now on."""
        self._drowsy = _DROWSY
        self._loop.when_idle(_DROWSY, self._idle)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._identity.bundle}/asleep")

    def _attach(self, _events: int) -> None:
        assert self._attach_listener is not None
        try:
            peer, _address = self._attach_listener.accept()
        except OSError as error:
            journal.log("accept failed", error=str(error))
            return
        if same_user(peer):
            Client(self._loop, peer, self._tasks.streams, self._tasks.left)
        else:
            peer.close()


def wake(common: Common) -> Shim:
    """Return the shim that an earlier worker has written down, in a worker with the same descriptors."""
    size = os.fstat(common.memory_fd).st_size
    where, shim = pickle.loads(os.pread(common.memory_fd, size, 0))  # noqa: S301 - written by _sleep
    journal.resume(where)
    assert isinstance(shim, Shim)
    shim.woken()
    return shim


def _socket_of(fd: int) -> socket.socket:
    connection = socket.socket(fileno=fd)
    connection.setblocking(False)
    return connection


def _reduce_socket(connection: socket.socket) -> tuple[Callable[[int], socket.socket], tuple[int]]:
    return _socket_of, (connection.fileno(),)


# For a successor with the same descriptors, a socket is its number; all sockets of a shim's loop are non-blocking.
copyreg.pickle(socket.socket, _reduce_socket)


def prepare_process() -> None:
    """Make this process what a shim is, whoever it will be: nobody's session, parent of orphans, no one's stdio."""
    leave_the_session("pyctr-shim")
    set_child_subreaper()


def lock_bundle(bundle: str) -> int:
    """Return the bundle's lock, held until the process ends; raises BundleTaken, or OSError without a bundle."""
    fd = os.open(f"{bundle}/lock", _LOCK_FILE, 0o600)
    try:
        fcntl.flock(fd, _LOCK)
    except BlockingIOError as error:
        os.close(fd)
        raise BundleTaken(f"a live shim holds {bundle}") from error
    return fd


def write_description(identity: Identity, pid: int, boot_id: str) -> None:
    """Write shim.json, whole or not at all: where this shim answers."""
    description = {
        "version": VERSION,
        "pid": pid,
        "address": identity.socket,
        "attach": identity.attach,
        "boot_id": boot_id,
    }
    write_file(f"{identity.bundle}/shim.json", json.dumps(description).encode())
