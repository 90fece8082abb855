"""Beside a shim of another make: the process that has its container's streams, as a shim of ours would have them.

    <bundle>/streams/init.stdout …       FIFOs, made by the daemon; the other shim has their other ends
    <bundle>/streams/exec-<exec id>.stdout …
    <bundle>/streams/drained             there once the first process's output has ended and is in its log
    <bundle>/streams.lock                held by this process for its whole life
    <bundle>/streams.json                its pid, and where clients attach

The other shim opens FIFOs, and knows neither logs nor attached clients. This process writes the log, whether or not a
daemon lives, opens it anew at SIGUSR1, and serves the attach socket. How a process has ended it reads in the daemon's
record of it; what only the other shim can do (a terminal's size, the end of an input) it asks of that. It ends at
SIGTERM, when all output has been moved, or when the bundle is gone.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

from google.protobuf.message import Message

from pyctr_shim import detached, journal, placement
from pyctr_shim.identity import write_file
from pyctr_shim.loop import READ, Loop, Timer
from pyctr_shim.server import listen_at, same_user
from pyctr_shim.stdio.attach import Client
from pyctr_shim.stdio.streams import DRAIN_LIMIT, Names, Owner, Streams
from pyctr_sys.signalfd import read_signals, take_over_signals
from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2
from pyctr_wire.errors import NotFound

_LOOK: Final = 60.0  # idle seconds between two looks whether the bundle is there
_SOON: Final = 0.01  # seconds between two looks for a record at first; then twice as many, and so on
_LATER: Final = 0.25  # the most: the process may run for long


def start(bundle: str, attach: str) -> None:
    """Have a process serve the bundle's streams at the socket `attach`; it serves when this returns.

    One that does already is left alone. Raises OSError with what it could not do.
    """
    detached.start(lambda tell: _serve(bundle, attach, tell), "it")


def _serve(bundle: str, attach: str, tell: detached.Tell) -> NoReturn:
    """Be that process, in a session of its own, with no descriptor of the daemon's."""
    detached.leave_the_session("pyctr-streams")
    placement.leave_the_daemon()
    placement.become_the_next_victim()
    try:
        beside = Beside(Loop(), bundle, attach, take_over_signals())
    except Exception as error:
        tell(None if isinstance(error, BlockingIOError) else error)  # another one serves
        os._exit(1)
    tell(None)
    beside.run()
    os._exit(0)


class Beside:
    """The streams of one container's processes."""

    def __init__(self, loop: Loop, bundle: str, attach: str, signal_fd: int) -> None:
        """Lock, open the first process's streams and log, and listen.

        Raises BlockingIOError if another process does all that, OSError, ApiError.
        """
        self._loop = loop
        self._bundle = bundle
        self._attach = attach
        self._lock_fd = os.open(f"{bundle}/streams.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        journal.open_log(bundle)
        manifest = _read(f"{bundle}/task.json")
        self._owner = Owner(str(manifest["namespace"]), str(manifest["id"]), 0, 0)
        self._known: dict[str, Streams] = {}
        self._looks: dict[str, tuple[Timer, float]] = {}  # the next one at a process's record, and the pause after it
        init = self._follow("", manifest)
        init.drained.when_done(self._note_drained)
        self._listener = listen_at(attach)
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), READ, self._accept)
        self._signal_fd = signal_fd
        loop.watch(signal_fd, READ, self._signalled)
        loop.when_idle(_LOOK, self._idle)
        write_file(f"{bundle}/streams.json", json.dumps({"pid": os.getpid(), "attach": attach}).encode())

    def run(self) -> None:
        """Serve until told to end."""
        self._loop.run()
        for streams in self._known.values():
            streams.close()
        with suppress(FileNotFoundError):
            os.unlink(self._attach)

    def streams(self, exec_id: str) -> Streams:
        """Return the streams of a process, opened if it is an exec that nobody has asked for yet. Raises NotFound."""
        streams = self._known.get(exec_id)
        if streams is None:
            try:
                streams = self._follow(exec_id, _read(f"{self._bundle}/execs/{exec_id}.json"))
            except FileNotFoundError:
                raise NotFound(f"exec {exec_id}") from None
        self._look_anew(exec_id)
        return streams

    def _follow(self, exec_id: str, names: Mapping[str, Any]) -> Streams:
        terminal = bool(names["terminal"])
        prefix = f"{self._bundle}/streams/{_name(exec_id)}"
        asked = Names(str(names["stdin"]), str(names["stdout"]), str(names["stderr"]), terminal)
        there = Names(_fifo(f"{prefix}.stdin"), _fifo(f"{prefix}.stdout"), _fifo(f"{prefix}.stderr"), terminal)
        streams = Streams(self._loop, asked, self._owner)
        streams.follow(there, Held(self._loop, self._bundle, self._owner, exec_id))
        self._known[exec_id] = streams
        streams.drained.when_done(partial(self._look_anew, exec_id))
        return streams

    def _look(self, exec_id: str) -> None:
        """Tell clients how their process has ended, once the daemon's record says so and its output was moved."""
        streams = self._known.get(exec_id)
        if streams is None or streams.status == "stopped":
            return
        try:
            record = _read(f"{self._bundle}/exits/{_name(exec_id)}.json")
        except (FileNotFoundError, ValueError):
            if streams.attended:
                self._look_again(exec_id)
            elif exec_id:
                self._forget(exec_id)
            return
        streams.exited(int(record["exit_status"]))
        if exec_id:
            streams.drained.when_done(lambda: self._forget(exec_id))

    def _look_anew(self, exec_id: str) -> None:
        """Look soon: somebody has come who waits, or the output has ended, so that the record is about to be there."""
        planned, _pause = self._looks.pop(exec_id, (None, 0.0))
        if planned is not None:
            planned.cancel()
        if exec_id in self._known:
            self._look_again(exec_id)

    def _look_again(self, exec_id: str) -> None:
        """Plan the next look, later and later; one at a time."""
        _planned, pause = self._looks.get(exec_id, (None, _SOON))
        look = self._loop.call_later(pause, partial(self._look, exec_id))
        self._looks[exec_id] = look, min(pause * 2, _LATER)

    def _forget(self, exec_id: str) -> None:
        self._looks.pop(exec_id, None)
        streams = self._known.pop(exec_id, None)
        if streams is not None:
            streams.close()

    def _note_drained(self) -> None:
        with suppress(OSError):  # the bundle is gone
            write_file(f"{self._bundle}/streams/drained", b"")

    def _accept(self, _events: int) -> None:
        try:
            peer, _address = self._listener.accept()
        except OSError as error:
            journal.log("accept failed", error=str(error))
            return
        if same_user(peer):
            Client(self._loop, peer, self.streams, self._left)
        else:
            peer.close()

    def _left(self, exec_id: str, number: int) -> None:
        """An exec has lost its client: it gets the signal that is for this."""
        Held(self._loop, self._bundle, self._owner, exec_id).kill(number)

    def _signalled(self, _events: int) -> None:
        for number in read_signals(self._signal_fd):
            if number == signal.SIGUSR1:
                self._known[""].reopen_log()
            elif number == signal.SIGTERM:
                self._loop.spawn(self._end())

    async def _end(self) -> None:
        """End when the first process's output has been moved, or has had its time."""
        await self._loop.wait(self._known[""].drained, DRAIN_LIMIT)
        self._loop.stop()

    def _idle(self) -> float:
        if not os.fstat(self._lock_fd).st_nlink:
            self._loop.stop()
        return _LOOK


class Held:
    """A process that another shim has, as far as its streams need that shim. Nothing is raised or waited for."""

    def __init__(self, loop: Loop, bundle: str, owner: Owner, exec_id: str) -> None:
        """Find the shim by what the daemon has noted in the bundle."""
        self._loop = loop
        self._bundle = bundle
        self._owner = owner
        self._exec_id = exec_id

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size."""
        id, exec_id = self._owner.container_id, self._exec_id
        self._ask("ResizePty", shim_pb2.ResizePtyRequest(id=id, exec_id=exec_id, width=columns, height=rows))

    def close_input(self) -> None:
        """Let the process's input end."""
        id, exec_id = self._owner.container_id, self._exec_id
        self._ask("CloseIO", shim_pb2.CloseIORequest(id=id, exec_id=exec_id, stdin=True))

    def kill(self, number: int) -> None:
        """Send a signal."""
        id, exec_id = self._owner.container_id, self._exec_id
        self._ask("Kill", shim_pb2.KillRequest(id=id, exec_id=exec_id, signal=number))

    def _ask(self, method: str, message: Message) -> None:
        try:
            shim = _read(f"{self._bundle}/bootstrap.json")
            request = ttrpc.Request(
                f"containerd.task.v{shim['version']}.Task",
                method,
                message.SerializeToString(),
                0,
                {"containerd-namespace-ttrpc": self._owner.namespace},
            )
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            connection.connect(str(shim["address"]).removeprefix("unix://"))
            connection.send(ttrpc.encode_frame(1, ttrpc.FrameType.REQUEST, ttrpc.encode_request(request)))
        except (OSError, ValueError, KeyError) as error:
            journal.log("the other shim was not asked", method=method, error=str(error))
            return

        # A server may drop the call of a connection that is closed, so it stays until there is an answer.
        def answered(_events: int) -> None:
            self._loop.unwatch(connection.fileno())
            connection.close()

        self._loop.watch(connection.fileno(), READ, answered)


def _name(exec_id: str) -> str:
    return f"exec-{exec_id}" if exec_id else "init"


def _fifo(path: str) -> str:
    return path if os.path.exists(path) else ""


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        found = json.load(file)
    if not isinstance(found, dict):
        raise TypeError(f"{path}: not an object")
    return found
