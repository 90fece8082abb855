"""Commands in a pod's container whose output the caller gets at once (ExecSync)."""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import ApiError, DeadlineExceeded, FailedPrecondition, InvalidArgument, UnknownError
from pyctrd.core.containers import Container
from pyctrd.cri import attach
from pyctrd.cri.records import NAMESPACE, PodContainer
from pyctrd.cri.streaming.remote_command import Streams
from pyctrd.offload import Offload
from pyctrd.runtime.creation import available_capabilities
from pyctrd.runtime.exec_spec import ExecOptions, build_process
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.tasks import Tasks

_PROCESS_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_MAX_OUTPUT: Final = (16 << 20) - 4096  # bytes of both streams, as much as a message has; the rest is read and dropped


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...


class Execs:
    """Runs commands."""

    def __init__(self, rows: ContainerRows, tasks: Tasks, lifecycle: Lifecycle, threads: Offload) -> None:
        """Use these."""
        self._rows = rows
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._threads = threads

    async def run(self, container: PodContainer, command: Sequence[str], seconds: float) -> tuple[bytes, bytes, int]:
        """Run a command and return its output, its errors and its exit status; it is killed after `seconds`, 0 never.

        Raises FailedPrecondition unless the container runs, DeadlineExceeded, UnknownError for what cannot be run.
        """
        if not command:
            raise InvalidArgument("exec: cmd must not be empty")
        if container.state != runtime_pb2.CONTAINER_RUNNING:
            raise FailedPrecondition(f"container is in {container.state_name} state")
        async with self.registered(container, ExecOptions(tuple(command))) as exec_id:
            connection = await self.attach(
                container, exec_id, stdin=False, stdout=True, stderr=True, left=signal.SIGKILL
            )
            try:
                async with asyncio.timeout(seconds or None):
                    await self.start(container, exec_id)
                    return await _collect(connection)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"failed to exec in container: timeout {seconds:g}s exceeded: context deadline exceeded"
                ) from None
            finally:
                connection.close()

    @asynccontextmanager
    async def registered(self, container: PodContainer, options: ExecOptions) -> AsyncIterator[str]:
        """Register an exec without input and yield its id; at the end it is killed, if it still runs, and forgotten."""
        exec_id = await self.register(container, options, Streams(stdout=True, stderr=True))
        try:
            yield exec_id
        finally:
            await self.discard(container, exec_id)

    async def register(self, container: PodContainer, options: ExecOptions, streams: Streams) -> str:
        """Register an exec whose streams clients attach to, and return its id; what is not wanted is /dev/null."""
        row = await self._threads.run(self._rows.get, NAMESPACE, container.id)
        assert row.spec is not None
        process = build_process(json.loads(row.spec.value), options, None, available_capabilities())
        exec_id = secrets.token_hex(16)
        request = shim.ExecProcessRequest(
            id=container.id,
            exec_id=exec_id,
            terminal=options.terminal,
            stdin="attach:" if streams.stdin else "",
            stdout="attach:" if streams.stdout else "",
            stderr="attach:" if streams.stderr and not options.terminal else "",
            spec=AnyMessage(type_url=_PROCESS_URL, value=json.dumps(process).encode()),
        )
        await self._tasks.exec(NAMESPACE, request)
        return exec_id

    async def discard(self, container: PodContainer, exec_id: str) -> None:
        """Kill an exec, if it runs, and forget it, also if the caller is cancelled meanwhile."""
        await asyncio.shield(asyncio.ensure_future(self._end(container.id, exec_id)))

    async def forget_ended(self, container: PodContainer, exec_id: str) -> None:
        """Wait for an exec's end and forget it."""
        with suppress(ApiError):  # gone with its container
            await self._tasks.wait(NAMESPACE, container.id, exec_id)
            await self._tasks.delete_process(NAMESPACE, container.id, exec_id)

    async def _end(self, id: str, exec_id: str) -> None:
        with suppress(ApiError):
            request = shim.KillRequest(id=id, exec_id=exec_id, signal=signal.SIGKILL, all=True)  # its process group
            await self._tasks.kill(NAMESPACE, request)
            await self._tasks.wait(NAMESPACE, id, exec_id)
        with suppress(ApiError):
            await self._tasks.delete_process(NAMESPACE, id, exec_id)

    async def start(self, container: PodContainer, exec_id: str) -> None:
        """Run what was registered. Raises UnknownError for what cannot be run."""
        try:
            await self._lifecycle.start(NAMESPACE, container.id, exec_id)
        except ApiError as error:
            raise UnknownError(f"failed to exec in container: {error}") from error

    async def attach(
        self,
        container: PodContainer,
        exec_id: str,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        ends_input: bool = False,
        left: int = 0,
    ) -> attach.Connection:
        """Connect to the streams of a process, "" for the container's first; see attach.connect. UnknownError."""
        address = await self._threads.run(self._tasks.find(NAMESPACE, container.id).bundle.attachment)
        if address is None or not address.attach:
            raise UnknownError(f'container "{container.id}" has no shim to attach to')
        return await attach.connect(
            address.attach, exec_id, stdin=stdin, stdout=stdout, stderr=stderr, ends_input=ends_input, left=left
        )


async def _collect(connection: attach.Connection) -> tuple[bytes, bytes, int]:
    output = {attach.STDOUT: bytearray(), attach.STDERR: bytearray()}
    while True:
        kind, payload = await connection.receive()
        if kind == attach.EXIT:
            status = int(json.loads(payload)["exit_status"])
            return bytes(output[attach.STDOUT]), bytes(output[attach.STDERR]), status
        if kind in output:
            room = _MAX_OUTPUT - sum(map(len, output.values()))
            output[kind] += payload[:room]
