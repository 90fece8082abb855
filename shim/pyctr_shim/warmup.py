"""A shim's life, run for practice in the zygote.

    warm_up         in the zygote itself, with a container that is only a child of ours: what Python and protobuf make
                    on first use is then shared by all shims, and CPython has fitted the code to its operands
    touched_pages   with a real one, in a child that is looked at from outside: after a fork, a page is copied when it
                    is first written to, and reference counts are written to all the time: some 800 of the
                    interpreter's pages, 3 to 5 microseconds each. A spare copies them before it is asked for

Nothing of it reaches the outside: a temporary directory is the bundle, and the daemon is ourselves.
"""

import gc
import os
import signal
import socket
from array import array
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from google.protobuf.message import Message

from pyctr_shim import descriptors, journal
from pyctr_shim.identity import Identity, Inheritance
from pyctr_shim.keeper import Common, Keeper, share
from pyctr_shim.loop import READ, Future, Loop
from pyctr_shim.oci import practice, runtime, scratch
from pyctr_shim.shim import Shim, prepare_process
from pyctr_sys import pagemap
from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types.mount_pb2 import Mount

_ROUNDS: Final = 8  # CPython fits a function to its operands in the first eight or so calls
_ID: Final = "practice"
_PATIENCE: Final = 2.0  # seconds: practice that goes wrong must not keep the real thing waiting
_SERVICE: Final = "containerd.task.v3.Task"
_TAKES_EVENTS: Final = {"pyctr-events": "1"}


class _Cgroup:
    """Tells of no out-of-memory kill."""

    def oom_kills(self) -> int:
        """None so far."""
        return 0

    def oom_watch(self) -> tuple[int, int]:
        """Two descriptors that never become ready."""
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), os.open(os.devnull, os.O_RDONLY)


class _Container:
    """What the runtime would have made: a process that lives as long as we do, unless it is killed."""

    own_pid_namespace = True
    console_fd = None

    def __init__(self) -> None:
        """Fork it."""
        self.cgroup = _Cgroup()
        life_fd, self._life_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._life_fd)
            while os.read(life_fd, 1):
                continue
            os._exit(0)
        os.close(life_fd)
        self.pidfd = os.pidfd_open(self.pid)

    def start(self) -> None:
        """Let it run on."""
        os.write(self._life_fd, b"x")

    def delete(self) -> None:
        """Close what we have of it."""
        os.close(self._life_fd)
        os.close(self.pidfd)


class _Client:
    """A daemon's connection to the shim, on a loop: it takes every event."""

    def __init__(self, loop: Loop, connection: socket.socket) -> None:
        """Use `connection` (borrowed)."""
        self._loop = loop
        self._connection = connection
        self._decoder = ttrpc.FrameDecoder()
        self._stream = -1
        self._acknowledgements = b""

    async def call(self, method: str, request: Message) -> None:
        """Send a request and wait for its answer, whatever it is."""
        self._stream += 2
        data = ttrpc.encode_request(ttrpc.Request(_SERVICE, method, request.SerializeToString(), 0, _TAKES_EVENTS))
        frame = ttrpc.encode_frame(self._stream, ttrpc.FrameType.REQUEST, data)
        self._connection.send(self._acknowledgements + frame)
        self._acknowledgements = b""
        while await self._loop.readable(self._connection.fileno(), _PATIENCE):
            data = self._connection.recv(65536)
            if not data or self._answered(data):
                return

    def _answered(self, data: bytes) -> bool:
        """Whether the call has been answered; what events are in `data` will be."""
        frames = self._decoder.feed(data)
        for frame in frames:
            if frame.type == ttrpc.FrameType.REQUEST:
                nothing = ttrpc.encode_response(b"")
                self._acknowledgements += ttrpc.encode_frame(frame.stream_id, ttrpc.FrameType.RESPONSE, nothing)
        return any(frame.stream_id == self._stream for frame in frames)

    async def start(self, bundle: str, *rootfs: Mount) -> None:
        """Bring a container up, as far as it goes before it is left alone."""
        await self.call("Connect", pb.ConnectRequest(id=_ID))
        await self.call("Create", pb.CreateTaskRequest(id=_ID, bundle=bundle, rootfs=rootfs))
        await self.call("Start", pb.StartRequest(id=_ID))
        await self.call("State", pb.StateRequest(id=_ID))

    async def end(self) -> None:
        """Take it down, and the shim."""
        await self.call("Kill", pb.KillRequest(id=_ID, signal=signal.SIGKILL))
        await self.call("Wait", pb.WaitRequest(id=_ID))
        await self.call("Delete", pb.DeleteRequest(id=_ID))
        await self.call("Shutdown", pb.ShutdownRequest(id=_ID))


def warm_up(inheritance: Inheritance) -> None:
    """Make containers and live as a shim a few times; leaves nothing, and removes what one that was killed has left."""
    scratch.sweep()
    before = descriptors.opened()
    practice.plan_execs()
    practice.make_containers()
    for _ in range(_ROUNDS):
        _live(inheritance)
    journal.close_log()
    gc.collect()  # sockets close themselves; what a shim keeps until its end is only a number
    descriptors.close_all_but(before)


def touched_pages(inheritance: Inheritance) -> pagemap.Ranges:
    """Learn which pages a shim touches until its container runs, so that a spare can copy them beforehand.

    Must run in the very process that forks the spares: addresses only mean something there.
    """
    with scratch.practice_directory() as directory:
        mount = practice.write_bundle(Path(directory))
        rootfs = Mount(type=mount.type, source=mount.source, options=mount.options)
        identity = _identity(directory)
        loop = Loop()
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                prepare_process()
                common = share()
                own_loop = Loop(common.epoll_fd)
                _attend(own_loop, common, inheritance)
                shim = Shim(own_loop, identity, inheritance.boot_id, common)
                shim.listen()
                shim.adopt(theirs)
                shim.run()
            finally:
                os._exit(1)
        theirs.close()
        try:
            client, pages = _Client(loop, ours), array("Q")

            async def talk() -> None:
                await client.start(directory, rootfs)
                with suppress(OSError):
                    pages.extend(pagemap.touched(pid))
                await client.end()

            _run(loop, talk())
            return pages
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            ours.close()
            loop.close()


def _live(inheritance: Inheritance) -> None:
    """One life from beginning to end, with client, keeper and worker on one loop."""
    with scratch.practice_directory() as directory:
        identity = _identity(directory)
        common = share()
        loop = Loop(common.epoll_fd)
        _attend(loop, common, inheritance)
        ours, theirs = socket.socketpair()
        shim = _shim(loop, identity, inheritance, common, theirs)
        client = _Client(loop, ours)

        async def talk() -> None:
            await client.start(directory)
            await client.end()

        call = loop.spawn(talk())
        loop.call_later(_PATIENCE, loop.stop)
        shim.run()
        call.cancel()
        loop.unwatch(inheritance.signal_fd)
        ours.close()


def _attend(loop: Loop, common: Common, inheritance: Inheritance) -> None:
    """Do the keeper's work on a loop."""
    keeper = Keeper(common, inheritance.signal_fd)

    def forward(_events: int) -> None:
        keeper.forward()

    loop.watch(inheritance.signal_fd, READ, forward)


def _shim(loop: Loop, identity: Identity, inheritance: Inheritance, common: Common, connection: socket.socket) -> Shim:
    def make(*_arguments: object) -> runtime.Container:
        return cast("runtime.Container", _Container())

    shim = Shim(loop, identity, inheritance.boot_id, common, make)
    shim.listen()
    shim.adopt(connection)
    return shim


def _run(loop: Loop, talk: Coroutine[Future[Any], None, None]) -> None:
    """Serve until the talk has ended, for a limited time."""

    async def talk_and_stop() -> None:
        await talk
        loop.stop()

    call = loop.spawn(talk_and_stop())
    loop.call_later(_PATIENCE, loop.stop)
    loop.run()
    call.cancel()  # while what it waits for is still open


def _identity(directory: str) -> Identity:
    return Identity(
        namespace="ns",
        id=_ID,
        bundle=directory,
        socket=f"{directory}/s",
        attach=f"{directory}/a",
        ttrpc_address=f"{directory}/e",
        grpc_address="",
        instance="x",
        log_level="info",
    )
