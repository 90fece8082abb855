"""The hot path, run for practice in the zygote: what Python and protobuf make on first use is then shared by all shims.

Nothing of it reaches the outside: a bundle in a temporary directory without a config.json, so that the container
cannot be made; a daemon's events endpoint that is ourselves.
"""

import gc
import os
import shutil
import signal
import socket
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pyctr_shim import journal
from pyctr_shim.identity import Identity, Inheritance
from pyctr_shim.loop import Loop
from pyctr_shim.server import Server, listen_at
from pyctr_shim.shim import Shim
from pyctr_sys import pagemap
from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb

_ROUNDS: Final = 8  # CPython rewrites a function for its operands in the first eight or so runs
_LIFE_LIMIT: Final = 5.0  # seconds
_ID: Final = "warm-up"


class _Daemon:
    """Takes every event."""

    async def call(self, service: str, method: str, payload: bytes) -> bytes:
        """Acknowledge."""
        return b""


def warm_up(inheritance: Inheritance) -> None:
    """Run requests, events and records through a shim that has no container; leaves nothing behind."""
    before = _descriptors()
    with _directory() as directory:
        for number in range(_ROUNDS):
            _live(f"{directory}/{number}", inheritance)
    journal.close_log()
    gc.collect()  # sockets close themselves; what a shim keeps until its end is only a number
    for fd in _descriptors() - before:
        with suppress(OSError):
            os.close(fd)


def touched_pages(inheritance: Inheritance) -> pagemap.Ranges:
    """Learn which pages the life of a shim touches, so that a spare can copy them before it is asked for.

    Must run in the process that forks the spares; see `practice.touched_pages`.
    """
    told_fd, tell_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with _directory() as directory:
                _live(f"{directory}/0", inheritance)
            os.write(tell_fd, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell_fd)
    try:
        return pagemap.touched(pid) if os.read(told_fd, 1) else array("Q")
    except OSError:
        return array("Q")
    finally:
        os.close(told_fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _directory() -> Iterator[str]:
    directory = f"/tmp/pyctr-zygote-{os.getpid()}-{os.urandom(8).hex()}"  # noqa: S108 - nobody guesses it
    os.mkdir(directory, 0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def _live(bundle: str, inheritance: Inheritance) -> None:
    """The life of one shim; it ends after a while even if something in it goes wrong."""
    os.mkdir(bundle)
    inheritance = inheritance._replace(signal_fd=os.dup(inheritance.signal_fd))
    loop = Loop()
    loop.call_later(_LIFE_LIMIT, loop.stop)
    identity = Identity("ns", _ID, bundle, f"{bundle}/s", f"{bundle}/a", f"{bundle}/e", "", "x", "info")
    daemon = Server(loop, _Daemon(), lambda: None)
    daemon.listen(listen_at(identity.ttrpc_address))
    shim = Shim(loop, identity, inheritance)
    shim.listen()
    ours, theirs = socket.socketpair()
    shim.adopt(theirs)
    requests = (
        ("Connect", pb.ConnectRequest(id=_ID)),
        ("Create", pb.CreateTaskRequest(id=_ID, bundle=bundle)),
        ("State", pb.StateRequest(id=_ID)),
        ("Wait", pb.WaitRequest(id=_ID)),
        ("Shutdown", pb.ShutdownRequest(id=_ID)),
    )
    for number, (method, request) in enumerate(requests):
        data = ttrpc.encode_request(
            ttrpc.Request("containerd.task.v3.Task", method, request.SerializeToString(), 0, {})
        )
        ours.send(ttrpc.encode_frame(2 * number + 1, ttrpc.FrameType.REQUEST, data))
    shim.run()
    daemon.close()
    ours.close()
