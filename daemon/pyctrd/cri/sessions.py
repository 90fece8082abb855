"""What is behind the URLs of the streaming server: processes of containers, and ports of pods."""

import asyncio
import json
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import FailedPrecondition, UnknownError
from pyctrd.cri import attach
from pyctrd.cri.exec import Execs
from pyctrd.cri.index import Index
from pyctrd.cri.records import PodContainer
from pyctrd.cri.streaming.remote_command import Output, Session, Streams
from pyctrd.network.netns import inside
from pyctrd.offload import Offload
from pyctrd.runtime.exec_spec import ExecOptions
from pyctrd.sandbox.files import SandboxFiles

_SIZE: Final = struct.Struct(">2H")
_CONNECT_SECONDS: Final = 10.0


class Sessions:
    """Starts processes and attaches to them."""

    def __init__(self, index: Index, execs: Execs, group: asyncio.TaskGroup) -> None:
        """Find containers in `index`; what outlives a session runs in `group`."""
        self._index = index
        self._execs = execs
        self._group = group

    async def exec(self, container_id: str, command: Sequence[str], streams: Streams) -> Session:
        """Start `command`; no output is lost. Raises ApiError."""
        container = running(self._index, container_id)
        options = ExecOptions(tuple(command), terminal=streams.tty)
        ends_input = streams.stdin and not streams.tty
        exec_id = await self._execs.register(container, options, streams)
        try:
            connection = await self._execs.attach(
                container,
                exec_id,
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
                ends_input=ends_input,
                # As when a terminal's line is cut. Without a terminal the process goes on until it ends by itself.
                left=signal.SIGHUP if streams.tty else 0,
            )
            try:
                await self._execs.start(container, exec_id)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            await self._execs.discard(container, exec_id)
            raise

        def let_go() -> None:
            with suppress(RuntimeError):  # the daemon is ending, which forgets nothing
                self._group.create_task(self._execs.forget_ended(container, exec_id), name=f"end of {exec_id}")

        return _Session(connection, let_go, ends_input=ends_input)

    async def attach(self, container_id: str, streams: Streams) -> Session:
        """Join a container's streams. Raises ApiError."""
        container = running(self._index, container_id)
        config = container.config
        stdin = streams.stdin and config.stdin
        ends_input = stdin and config.stdin_once and not config.tty
        connection = await self._execs.attach(
            container, "", stdin=stdin, stdout=streams.stdout, stderr=streams.stderr, ends_input=ends_input
        )
        return _Session(connection, lambda: None, ends_input=ends_input, attached=True)


def running(index: Index, container_id: str) -> PodContainer:
    """Return a container that runs. Raises NotFound, FailedPrecondition."""
    container = index.container(container_id)
    if container.state != runtime_pb2.CONTAINER_RUNNING:
        raise FailedPrecondition(f"container is in {container.state_name} state")
    return container


class _Session:
    """A process's streams, as one client has them."""

    def __init__(
        self,
        connection: attach.Connection,
        let_go: Callable[[], None],
        *,
        ends_input: bool,
        attached: bool = False,
    ) -> None:
        """Own the connection; `let_go` is called at its end."""
        self._connection = connection
        self._let_go = let_go
        self._ends_input = ends_input
        self._attached = attached
        self._exit_code: int | None = None

    async def output(self) -> AsyncIterator[tuple[Output, bytes]]:
        while self._exit_code is None:
            kind, payload = await self._connection.receive()
            if kind == attach.EXIT:
                self._exit_code = int(json.loads(payload)["exit_status"])
            elif kind == attach.MESSAGE:
                raise UnknownError(payload.decode(errors="replace"))
            elif kind in (attach.STDOUT, attach.STDERR):
                yield Output.STDOUT if kind == attach.STDOUT else Output.STDERR, payload

    async def write_stdin(self, data: bytes) -> None:
        if data:  # an empty frame is the end of the input
            await self._connection.send(attach.STDIN, data)

    async def close_stdin(self) -> None:
        if self._ends_input:
            await self._connection.send(attach.STDIN, b"")

    async def resize(self, columns: int, rows: int) -> None:
        await self._connection.send(attach.RESIZE, _SIZE.pack(columns, rows))

    async def wait(self) -> int:
        return 0 if self._attached else self._exit_code or 0

    async def abandon(self) -> None:
        self._connection.close()
        self._let_go()


class Ports:
    """Connects to ports inside of pods."""

    def __init__(self, index: Index, files: SandboxFiles, threads: Offload) -> None:
        """Find pods in `index`, and their namespaces by `files`."""
        self._index = index
        self._files = files
        self._threads = threads

    async def port_forward(self, sandbox_id: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to `port` on localhost in the sandbox's network namespace. Raises ApiError."""
        pod = self._index.pod(sandbox_id)
        if not pod.ready:
            raise FailedPrecondition("sandbox container is not running")
        path = self._files.namespaces(pod.id) / "net" if "net" in pod.kinds else None
        connection = await self._threads.run(_connect, pod.id, path, port)
        return await asyncio.open_connection(sock=connection)


def _connect(sandbox_id: str, netns: Path | None, port: int) -> socket.socket:
    if netns is None:
        return _connect_here(sandbox_id, "the host", port)
    try:
        return inside(netns, _connecting(sandbox_id, str(netns), port))
    except FileNotFoundError:
        raise UnknownError(f'network namespace for sandbox "{sandbox_id}" is closed') from None


def _connecting(sandbox_id: str, where: str, port: int) -> Callable[[], socket.socket]:
    return lambda: _connect_here(sandbox_id, where, port)


def _connect_here(sandbox_id: str, where: str, port: int) -> socket.socket:
    failures = []
    for family, address, name in (
        (socket.AF_INET, "127.0.0.1", "IPv4"),
        (socket.AF_INET6, "::1", "IPv6"),
    ):
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect((address, port))
        except OSError as error:
            connection.close()
            failures.append(f"{name} dial tcp {address}:{port}: {error.strerror or error}")
        else:
            connection.setblocking(False)
            return connection
    raise UnknownError(
        f'failed to execute portforward in network namespace "{where}": failed to connect to localhost:{port} '
        f'inside namespace "{sandbox_id}", {" ".join(failures)}'
    )
