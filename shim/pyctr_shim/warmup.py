"""The hot path, run for practice in the zygote: what Python and protobuf make on first use is then shared by all shims.

Nothing of it reaches the outside: a bundle in a temporary directory without a config.json, so that the container
cannot be made; a daemon's events endpoint that is ourselves.
"""

import os
import shutil
import socket
from typing import Final

from pyctr_shim.identity import Identity, Inheritance
from pyctr_shim.loop import Loop
from pyctr_shim.server import Server, listen_at
from pyctr_shim.shim import Shim
from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb

_ROUNDS: Final = 8  # CPython rewrites a function for its operands in the first eight or so runs
_ID: Final = "warm-up"


class _Daemon:
    """Takes every event."""

    async def call(self, service: str, method: str, payload: bytes) -> bytes:
        """Acknowledge."""
        return b""


def warm_up(inheritance: Inheritance) -> None:
    """Run requests, events and records through a shim that has no container; leaves nothing behind."""
    directory = f"/tmp/pyctr-zygote-{os.getpid()}-{os.urandom(8).hex()}"  # noqa: S108 - nobody guesses it
    os.mkdir(directory, 0o700)
    try:
        for number in range(_ROUNDS):
            bundle = f"{directory}/{number}"
            os.mkdir(bundle)
            _live(bundle, inheritance._replace(signal_fd=os.dup(inheritance.signal_fd)))
    finally:
        shutil.rmtree(directory)


def _live(bundle: str, inheritance: Inheritance) -> None:
    """The life of one shim."""
    loop = Loop()
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
