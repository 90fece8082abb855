"""The three streams of one process, from the names that a client gave to running relays.

    ""             nothing: /dev/null
    /path, fifo:   a client's FIFO
    attach:        a pipe for attached clients alone
    json-file: cri: file: journald: binary:   a log

Where the output goes to a log and the client names no input, there is a pipe for it all the same: an attached
client may send it. It is closed at the start if no such client is there, so that it reads as /dev/null would.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

from pyctr_shim.loop import Future, Loop
from pyctr_shim.stdio import binary_logger, console, fifo
from pyctr_shim.stdio.attach import FrameType
from pyctr_shim.stdio.binary_logger import BinaryLogger
from pyctr_shim.stdio.journald import Journald
from pyctr_shim.stdio.log_driver import Log, open_file_log
from pyctr_shim.stdio.relay import InputRelay, NullSink, OutputRelay, PipeSink, Sink
from pyctr_wire.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from pyctr_shim.stdio.attach import Client

DRAIN_LIMIT: Final = 10.0
_FILE_LOGS: Final = frozenset({"json-file", "cri", "file"})
_BINARIES: Final = frozenset({"binary", "binary-v2"})


class Names(NamedTuple):
    """What a client asked for."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


class Owner(NamedTuple):
    """Whose streams they are, for logs that say so, and who owns the pipes."""

    namespace: str
    container_id: str
    io_uid: int
    io_gid: int


class Holder(Protocol):
    """Another shim, which has a process, its terminal, and the other ends of its FIFOs."""

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size."""

    def close_input(self) -> None:
        """Let the process's input end once what is in the FIFO has been read."""


class Streams:
    """One process's streams: `open`, give `child_fds` to the runtime, `start`, `exited`, await `drained`, `close`.

    Those of a process that another shim has: `follow`, `exited`, await `drained`, `close`.
    """

    def __init__(self, loop: Loop, names: Names, owner: Owner) -> None:
        """Touch nothing yet."""
        self.names = names
        self.status = "created"
        self.drained: Future[None] = Future()
        self._logger: BinaryLogger | None = None
        self._loop = loop
        self._owner = owner
        self._child_fds: list[int] = []
        self._sinks: dict[int, Sink] = {}
        self._sources: dict[int, int] = {}
        self._relays: list[OutputRelay] = []
        self._fifos: list[PipeSink] = []
        self._log: Log | None = None
        self._stdin_fd: int | None = None
        self._client_fifo: tuple[int, int] | None = None
        self._input: InputRelay | None = None
        self._console_fd: int | None = None
        self._clients: list[Client] = []
        self._exit_status: int | None = None
        self._holder: Holder | None = None

    # --- before and at the start ---

    def follow(self, fifos: Names, holder: Holder) -> None:
        """Move the bytes of a process that `holder` has, by the FIFOs that it was told of ("" for none of them).

        Raises ApiError and leaves nothing open if one of them, or the log, cannot be opened.
        """
        self._holder = holder
        try:
            for kind, name, path in (
                (FrameType.STDOUT, self.names.stdout, fifos.stdout),
                (FrameType.STDERR, self.names.stderr, fifos.stderr),
            ):
                if path:
                    self._sinks[kind] = self._open_sink(kind, _parse(name)) or NullSink()
                    self._sources[kind] = fifo.open_reader(path)
            if fifos.stdin:
                self._input = InputRelay(self._loop, fifo.open_both_ways(fifos.stdin), holder.close_input)
        except BaseException:
            self.close()
            raise
        self.start(None)
        self.status = "running"

    async def open(self) -> None:
        """Open FIFOs, logs and pipes; raises ApiError and leaves nothing open if one of them cannot be."""
        try:
            await self._open_outputs()
            self._open_input()
        except ValueError as error:  # a NUL in a path, a URI that is none, a number beyond all
            self.close()
            raise InvalidArgument(f"stdio: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def child_fds(self) -> tuple[int, int, int]:
        """The process's descriptors 0, 1 and 2, borrowed, until `start`; they mean nothing if it has a terminal."""
        stdout_fd, stderr_fd, stdin_fd = self._child_fds
        return stdin_fd, stdout_fd, stderr_fd

    def start(self, console_fd: int | None) -> None:
        """The process has been made: move bytes from now on. `console_fd`, its terminal's master, is taken over."""
        self._close_child_fds()
        if console_fd is not None:
            # Pipes are there if only the process's document asks for a terminal, and not who made these streams.
            for fd in (*self._sources.values(), *([self._stdin_fd] if self._stdin_fd is not None else [])):
                os.close(fd)
            self._sources.clear()
            self._console_fd = console_fd
            self._stdin_fd = console.second_descriptor(console_fd)
            self._sources[FrameType.STDOUT] = os.dup(console_fd)
        if self._stdin_fd is not None:
            self._input = InputRelay(self._loop, self._stdin_fd)
            self._stdin_fd = None
        if self._client_fifo is not None and self._input is not None:
            self._input.follow(*self._client_fifo)
            self._client_fifo = None
        for kind, source_fd in self._sources.items():
            sink = self._sinks.pop(kind, None) or NullSink()
            self._relays.append(OutputRelay(self._loop, source_fd, sink, self, kind))
        self._sources.clear()
        if not self._relays:
            self.drained.set(None)
        for relay in self._relays:
            relay.ended.when_done(self._relay_ended)

    def running(self) -> None:
        """The process runs its program: an input that nobody will ever send ends here."""
        self.status = "running"
        awaited = self.names.stdin or self.names.terminal or self._client_sends_input()
        if self._input is not None and not awaited:
            self._input.end()

    # --- while it runs ---

    def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size; nothing happens without a terminal."""
        if self._console_fd is not None:
            console.resize(self._console_fd, columns, rows)
        elif self._holder is not None and self.names.terminal:
            self._holder.resize(columns, rows)

    def close_io(self) -> None:
        """The client will send no more input."""
        if self._input is not None:
            self._input.close_io()

    def reopen_log(self) -> None:
        """Write to a new log file, the old one having been renamed."""
        if self._log is not None:
            self._log.reopen()

    # --- attached clients ---

    def attach(self, client: "Client") -> None:
        """Add a client; raises FailedPrecondition if the output is out of our hands."""
        if self._logger is not None and not self.names.terminal:
            raise FailedPrecondition("attach: a logging binary takes this process's output")
        self._clients.append(client)

    def detach(self, client: "Client") -> None:
        """Remove a client; the process's input stays open for the next one."""
        if client in self._clients:
            self._clients.remove(client)

    def finish_if_ended(self, client: "Client") -> None:
        """Tell a client that came late that the process has ended."""
        if self._exit_status is not None and self.drained.done:
            client.finish(self._exit_status)

    @property
    def attended(self) -> bool:
        """Whether any client is attached."""
        return bool(self._clients)

    def listening(self, kind: int) -> bool:
        """Whether any attached client takes this stream."""
        return any(client.listening(kind) for client in self._clients)

    def write(self, kind: int, data: bytes) -> Future[None] | None:
        """Send output to attached clients; a future means that one of them has enough for now."""
        hold = None
        for client in self._clients[:]:
            if client.listening(kind):
                hold = client.send(kind, data) or hold
        return hold

    def write_input(self, data: bytes) -> None:
        """Input of an attached client; an empty one ends the input, unless a terminal is behind it."""
        if self._input is None:
            return
        if data:
            self._input.write(data)
        elif not self.names.terminal:
            self._input.end()

    @property
    def input_full(self) -> bool:
        """Whether attached clients should wait before they send more."""
        return self._input is not None and self._input.full

    def when_input_has_room(self, callback: Callable[[], None]) -> None:
        """Call once when they may go on."""
        if self._input is not None:
            self._input.when_room(callback)

    # --- after the process ---

    def exited(self, exit_status: int) -> None:
        """The process has ended: attached clients are told once its output has been moved, or has had its time."""
        self.status = "stopped"
        self._exit_status = exit_status
        if self._input is not None:
            self._input.close()
        if not self.drained.done and self._clients:
            self._loop.call_later(DRAIN_LIMIT, self._finish_clients)
        self.drained.when_done(self._finish_clients)

    def catch_up(self) -> None:
        """Move what has been written so far: a log is complete before its container's end is told."""
        for relay in self._relays:
            relay.catch_up()

    def hurry(self) -> None:
        """Somebody waits for the drain: a client FIFO that is full and that nobody reads shall not hold it up."""
        for sink in self._fifos:
            sink.release_reader()

    def close(self) -> None:
        """Close everything, moved or not."""
        self._close_child_fds()
        for relay in self._relays:
            relay.close()
        self._relays.clear()
        for sink in self._sinks.values():
            sink.end()
        self._sinks.clear()
        if self._input is not None:
            self._input.close()
        loose = [*self._sources.values(), *(self._client_fifo or ()), self._stdin_fd, self._console_fd]
        self._sources.clear()
        self._client_fifo = self._stdin_fd = self._console_fd = None
        for fd in loose:
            if fd is not None:
                os.close(fd)
        self.drained.set(None)
        logger, self._logger = self._logger, None
        if logger is not None:
            self._loop.spawn(logger.finish())
        for client in self._clients[:]:
            client.close()

    # --- opening ---

    async def _open_outputs(self) -> None:
        """Make the process's ends of its outputs, and sinks for ours."""
        stdout, stderr = _parse(self.names.stdout), _parse(self.names.stderr)
        if stdout.scheme in _BINARIES:
            await self._start_binary(stdout)
            return
        for kind, uri in ((FrameType.STDOUT, stdout), (FrameType.STDERR, stderr)):
            if self.names.terminal and kind == FrameType.STDERR:
                break
            sink = self._open_sink(kind, uri)
            if self.names.terminal:
                self._sinks[kind] = sink or NullSink()
            elif sink is None and not self.listening(kind):
                self._child_fds.append(os.open(os.devnull, os.O_WRONLY))
            else:
                self._sinks[kind] = sink or NullSink()
                self._add_pipe(kind)
        while len(self._child_fds) < 2:
            self._child_fds.append(os.open(os.devnull, os.O_WRONLY))

    def _open_sink(self, kind: FrameType, uri: SplitResult) -> Sink | None:
        """Return where a stream goes, None for nowhere."""
        if uri.scheme in ("", "fifo"):
            if not uri.path:
                return None
            sink = PipeSink(self._loop, *fifo.open_output(uri.path))
            self._fifos.append(sink)
            return sink
        if uri.scheme == "attach":
            return NullSink()
        stream = kind.name.lower()
        if self._log is not None:
            if self.names.stdout != self.names.stderr:
                raise InvalidArgument("stdout and stderr name different logs")
        elif uri.scheme in _FILE_LOGS:
            self._log = open_file_log(self._loop, uri)
        elif uri.scheme == "journald":
            self._log = Journald(_journal_fields(self._owner, uri))
        else:
            raise InvalidArgument(f"unknown STDIO scheme {uri.scheme}")
        return self._log.stream(stream)

    async def _start_binary(self, uri: SplitResult) -> None:
        """Give the process the logger's pipes; with a terminal we copy into the first of them."""
        owner = self._owner
        logger = await binary_logger.start(self._loop, uri, owner.container_id, owner.namespace)
        self._logger = logger
        if self.names.terminal:
            os.set_blocking(logger.stdout_fd, False)
            self._sinks[FrameType.STDOUT] = PipeSink(self._loop, logger.stdout_fd)
            self._child_fds += [os.open(os.devnull, os.O_WRONLY), logger.stderr_fd]
        else:
            self._child_fds += [logger.stdout_fd, logger.stderr_fd]

    def _open_input(self) -> None:
        """Make the process's end of its input, and ours."""
        uri = _parse(self.names.stdin)
        if uri.scheme in ("", "fifo") and uri.path:
            self._client_fifo = fifo.open_input(uri.path)
        elif uri.scheme not in ("", "attach"):
            raise InvalidArgument(f"unknown STDIO scheme {uri.scheme} for stdin")
        wanted = self.names.stdin or self._log is not None or self._client_sends_input()
        if wanted and not self.names.terminal:
            read_fd, self._stdin_fd = os.pipe()
            self._give(read_fd)
            self._child_fds.append(read_fd)
        else:
            self._child_fds.append(os.open(os.devnull, os.O_RDONLY))

    def _add_pipe(self, kind: FrameType) -> None:
        self._sources[kind], write_fd = os.pipe()
        self._give(write_fd)
        self._child_fds.append(write_fd)

    def _give(self, fd: int) -> None:
        """Let the container's user open its own stdio again (/dev/stdout)."""
        if self._owner.io_uid or self._owner.io_gid:
            os.fchown(fd, self._owner.io_uid, self._owner.io_gid)

    def _client_sends_input(self) -> bool:
        return any(client.sends_input for client in self._clients)

    # --- ending ---

    def _relay_ended(self) -> None:
        if all(relay.ended.done for relay in self._relays):
            self.drained.set(None)

    def _finish_clients(self) -> None:
        if self._exit_status is not None:
            for client in self._clients[:]:
                client.finish(self._exit_status)

    def _close_child_fds(self) -> None:
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()


def _parse(name: str) -> SplitResult:
    """Return a stream's name as a URI; a plain path has no scheme."""
    if name.startswith("/"):
        return SplitResult("", "", name, "", "")
    uri = urlsplit(name)
    if not uri.scheme and name:
        raise InvalidArgument(f"stdio {name!r} is neither an absolute path nor a URI")
    return uri


def _journal_fields(owner: Owner, uri: SplitResult) -> dict[str, str]:
    """Return the fields of docker's journald driver that we know, tag and identifier from the URI's path or the id."""
    tag = uri.path.strip("/") or owner.container_id[:12]
    return {
        "CONTAINER_ID": owner.container_id[:12],
        "CONTAINER_ID_FULL": owner.container_id,
        "CONTAINER_NAME": owner.container_id,
        "CONTAINER_NAMESPACE": owner.namespace,
        "CONTAINER_TAG": tag,
        "SYSLOG_IDENTIFIER": tag,
    }
