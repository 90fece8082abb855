"""A shim in the test's own event loop: real frames, locks and files, scripted answers, no processes."""

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyctr_wire import ttrpc
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.errors import ApiError, NotFound, Unavailable, UnknownError
from pyctrd.core.anys import AnyValue
from pyctrd.runtime.zygote_client import ShimRequest

Forward = Callable[[str, str, AnyValue, datetime, str, int], None]


class Hang:
    """Scripted outcome: no answer before `wake`."""


class Die:
    """Scripted outcome: the shim is killed instead of answering."""


class ScriptedProcess:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status = types.CREATED
        self.exit_status = 0
        self.exited_at_ns = 0


class ScriptedShim:
    """Keeps one container's imaginary processes; `script[method]` is a queue of outcomes before the usual one."""

    def __init__(self, request: ShimRequest, forward: Forward | None) -> None:
        self.request = request
        self.bundle = Path(request.bundle)
        self.forward = forward
        self.script: defaultdict[str, deque[ApiError | type[Hang] | type[Die]]] = defaultdict(deque)
        self.calls: list[str] = []
        self.processes: dict[str, ScriptedProcess] = {}
        self.alive = True
        self.sequence = 0
        self._held: list[tuple[_Connection, int, ttrpc.Request]] = []
        self._transports: set[asyncio.Transport] = set()
        self._lock_fd = os.open(self.bundle / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._server: asyncio.Server | None = None
        # Whose end is the shim's, for those who are not connected.
        self._stand_in = subprocess.Popen(["sleep", "infinity"])

    async def serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), self.request.socket)
        record = {"pid": self._stand_in.pid, "address": f"unix://{self.request.socket}", "attach": self.request.attach}
        (self.bundle / "shim.json").write_text(json.dumps({**record, "version": 1}))
        await loop.create_unix_connection(lambda: _Connection(self), sock=connection)

    @property
    def connected(self) -> bool:
        return bool(self._transports)

    def die(self) -> None:
        """End as if killed: no word to anybody, the lock is free."""
        self.alive = False
        if self._server is not None:
            self._server.close()
        for transport in list(self._transports):
            transport.abort()
        os.close(self._lock_fd)
        self._stand_in.kill()
        self._stand_in.wait()

    def kill(self) -> None:
        """Let it die if it lives."""
        if self.alive:
            self.die()

    def wake(self) -> None:
        """Answer what was left without an answer, as a process does that was stopped and goes on."""
        held, self._held = self._held, []
        for connection, stream_id, request in held:
            connection.handle(stream_id, request)

    def hold(self, connection: "_Connection", stream_id: int, request: ttrpc.Request) -> None:
        self._held.append((connection, stream_id, request))

    @property
    def holding(self) -> list[str]:
        """The methods of the calls that wait for `wake`."""
        return [request.method for _, _, request in self._held]

    def hang_up(self) -> None:
        """Close the connections, but live."""
        for transport in list(self._transports):
            transport.abort()

    def exit(self, exec_id: str, status: int) -> None:
        """End a process: record first, then event."""
        process = self.processes[exec_id]
        process.status, process.exit_status, process.exited_at_ns = types.STOPPED, status, time.time_ns()
        self.record(exec_id, process.pid, status)
        event = events.TaskExit(
            container_id=self.request.id, id=exec_id or self.request.id, pid=process.pid, exit_status=status
        )
        event.exited_at.FromNanoseconds(process.exited_at_ns)
        self.publish("/tasks/exit", event)

    def record(self, exec_id: str, pid: int, status: int) -> None:
        folder = self.bundle / "exits"
        folder.mkdir(exist_ok=True)
        record = {"exec_id": exec_id, "pid": pid, "exit_status": status, "exited_at_ns": time.time_ns()}
        name = f"exec-{exec_id}.json" if exec_id else "init.json"
        (folder / name).write_text(json.dumps(record))

    def publish(self, topic: str, event: Message) -> None:
        self.sequence += 1
        value = AnyValue(event.DESCRIPTOR.full_name, event.SerializeToString())
        if self.forward is not None:
            now = datetime.now(UTC)
            self.forward(self.request.namespace, topic, value, now, self.request.instance, self.sequence)

    def answer(self, method: str, payload: bytes) -> Message | None:
        """Return the answer to a call, None for none; raises the error to answer with."""
        self.calls.append(method)
        if self.script[method]:
            outcome = self.script[method].popleft()
            if isinstance(outcome, ApiError):
                raise outcome
            if outcome is Die:
                self.die()
            return None
        return getattr(self, f"_{method.lower()}")(payload)

    def _process(self, exec_id: str) -> ScriptedProcess:
        if "" not in self.processes:
            raise NotFound("container not created")
        if exec_id not in self.processes:
            raise NotFound(f"process does not exist {exec_id}")
        return self.processes[exec_id]

    def _create(self, payload: bytes) -> Message:
        self.processes[""] = ScriptedProcess(4000)
        (self.bundle / "state.json").write_text(json.dumps({"pid": 4000}))
        self.publish("/tasks/create", events.TaskCreate(container_id=self.request.id, pid=4000))
        return pb.CreateTaskResponse(pid=4000)

    def _start(self, payload: bytes) -> Message:
        request = pb.StartRequest.FromString(payload)
        process = self._process(request.exec_id)
        if process.status != types.CREATED:
            raise UnknownError("cannot start a running process")
        process.status = types.RUNNING
        if request.exec_id:
            event: Message = events.TaskExecStarted(
                container_id=self.request.id, exec_id=request.exec_id, pid=process.pid
            )
            self.publish("/tasks/exec-started", event)
        else:
            self.publish("/tasks/start", events.TaskStart(container_id=self.request.id, pid=process.pid))
        return pb.StartResponse(pid=process.pid)

    def _delete(self, payload: bytes) -> Message:
        request = pb.DeleteRequest.FromString(payload)
        process = self._process(request.exec_id)
        if process.status == types.RUNNING:
            raise UnknownError("cannot delete a running process")
        if process.status == types.CREATED and not request.exec_id:
            self.exit("", 137)
        del self.processes[request.exec_id]
        reply = pb.DeleteResponse(pid=process.pid, exit_status=process.exit_status)
        reply.exited_at.FromNanoseconds(process.exited_at_ns)
        if not request.exec_id:
            self.publish("/tasks/delete", events.TaskDelete(container_id=self.request.id, pid=process.pid))
        return reply

    def _state(self, payload: bytes) -> Message:
        exec_id = pb.StateRequest.FromString(payload).exec_id
        process = self._process(exec_id)
        reply = pb.StateResponse(
            id=self.request.id,
            pid=process.pid,
            status=process.status,
            stdout="/out",
            exit_status=process.exit_status,
            exec_id=exec_id,
        )
        reply.exited_at.FromNanoseconds(process.exited_at_ns)
        return reply

    def _exec(self, payload: bytes) -> Message:
        exec_id = pb.ExecProcessRequest.FromString(payload).exec_id
        self.processes[exec_id] = ScriptedProcess(5000 + len(self.processes))
        self.publish("/tasks/exec-added", events.TaskExecAdded(container_id=self.request.id, exec_id=exec_id))
        return pb.ExecProcessResponse()

    def _kill(self, payload: bytes) -> Message:
        request = pb.KillRequest.FromString(payload)
        self._process(request.exec_id)
        self.exit(request.exec_id, 128 + request.signal)
        return Empty()

    def _pause(self, payload: bytes) -> Message:
        self._process("").status = types.PAUSED
        return Empty()

    def _resume(self, payload: bytes) -> Message:
        self._process("").status = types.RUNNING
        return Empty()

    def _resizepty(self, payload: bytes) -> Message:
        return Empty()

    def _closeio(self, payload: bytes) -> Message:
        return Empty()

    def _pids(self, payload: bytes) -> Message:
        return pb.PidsResponse(processes=[types.ProcessInfo(pid=one.pid) for one in self.processes.values()])

    def _stats(self, payload: bytes) -> Message:
        reply = pb.StatsResponse()
        reply.stats.type_url = "io.containerd.cgroups.v1.Metrics"
        return reply

    def _connect(self, payload: bytes) -> Message:
        return pb.ConnectResponse(shim_pid=os.getpid())

    def _shutdown(self, payload: bytes) -> Message | None:
        asyncio.get_running_loop().call_soon(self.die)
        return Empty()


class _Connection(asyncio.Protocol):
    def __init__(self, shim: ScriptedShim) -> None:
        self._shim = shim
        self._decoder = ttrpc.FrameDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shim._transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shim._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            assert isinstance(frame, ttrpc.Frame)
            self.handle(frame.stream_id, ttrpc.decode_request(frame.data))

    def handle(self, stream_id: int, request: ttrpc.Request) -> None:
        try:
            answer = self._shim.answer(request.method, request.payload)
        except ApiError as error:
            reply = ttrpc.encode_error(error)
        else:
            if answer is None:
                self._shim.hold(self, stream_id, request)
                return
            reply = ttrpc.encode_response(answer.SerializeToString())
        self._transport.write(ttrpc.encode_frame(stream_id, ttrpc.FrameType.RESPONSE, reply))


class ScriptedZygote:
    """Makes scripted shims; `prepare` may script each before it serves, `available` False makes starts cold."""

    def __init__(self) -> None:
        self.shims: dict[str, ScriptedShim] = {}
        self.forward: Forward | None = None
        self.prepare: Callable[[ScriptedShim], None] = lambda _: None
        self.available = True
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def unanswered(self) -> bool:
        return False

    def request(self, request: ShimRequest, connection: socket.socket) -> "asyncio.Future[int]":
        if not self.available:
            raise Unavailable("no zygote")
        shim = ScriptedShim(request, lambda *event: self.forward and self.forward(*event))
        self.shims[request.id] = shim
        self.prepare(shim)
        theirs = connection.dup()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(shim.serve(theirs))
        self._serving.add(task)
        future: asyncio.Future[int] = loop.create_future()
        future.set_result(os.getpid())
        return future

    async def close(self) -> None:
        for shim in self.shims.values():
            if shim.alive:
                shim.die()
        await asyncio.gather(*self._serving)
        while any(shim.connected for shim in self.shims.values()):
            await asyncio.sleep(0)
