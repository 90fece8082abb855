"""A daemon's side of a shim, in one thread: a zygote to ask, ttrpc to call, an endpoint that takes events."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message

from pyctr_wire import ttrpc
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.services.ttrpc.events.v1 import events_pb2
from pyctr_wire.errors import NotFound

from .patience import DEADLINE as DEADLINE

PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESPONSES: dict[str, type[Message]] = {
    "Create": pb.CreateTaskResponse,
    "Start": pb.StartResponse,
    "Delete": pb.DeleteResponse,
    "Wait": pb.WaitResponse,
    "State": pb.StateResponse,
    "Pids": pb.PidsResponse,
    "Stats": pb.StatsResponse,
    "Connect": pb.ConnectResponse,
}


def eventually(condition: Any, what: str, deadline: float = DEADLINE) -> Any:
    """Return the first true value of `condition()`, or fail after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what}: did not happen in {deadline} s"
        select.select([], [], [], 0.005)


class ShimClient:
    """A blocking ttrpc client; calls may be sent first and their answers awaited later.

    With `takes_events` it is told what happens by its own connection, as a daemon is, and acknowledges that with the
    next call; otherwise that goes to the events endpoint.
    """

    takes_events = False

    def __init__(self, connection: socket.socket, version: int = 3) -> None:
        connection.settimeout(DEADLINE)
        self.socket = connection
        self.service = f"containerd.task.v{version}.Task"
        self._stream = -1
        self._decoder = ttrpc.FrameDecoder()
        self._answers: dict[int, bytes] = {}
        self._methods: dict[int, str] = {}
        self._acknowledgements = b""

    def send(self, method: str, request: Message, timeout: float = 0) -> int:
        self._stream += 2
        self._methods[self._stream] = method
        metadata = {"pyctr-events": "1"} if self.takes_events else {}
        data = ttrpc.encode_request(
            ttrpc.Request(self.service, method, request.SerializeToString(), int(timeout * 1e9), metadata)
        )
        frame = ttrpc.encode_frame(self._stream, ttrpc.FrameType.REQUEST, data)
        self.socket.sendall(self._acknowledgements + frame)
        self._acknowledgements = b""
        return self._stream

    def answer(self, stream: int) -> Any:
        while stream not in self._answers:
            data = self.socket.recv(65536)
            assert data, "the shim closed the connection"
            for frame in self._decoder.feed(data):
                assert isinstance(frame, ttrpc.Frame)
                if frame.type == ttrpc.FrameType.REQUEST:
                    nothing = ttrpc.encode_response(b"")
                    self._acknowledgements += ttrpc.encode_frame(frame.stream_id, ttrpc.FrameType.RESPONSE, nothing)
                else:
                    self._answers[frame.stream_id] = frame.data
        payload = ttrpc.decode_response(self._answers.pop(stream))
        kind = RESPONSES.get(self._methods[stream])
        return kind.FromString(payload) if kind is not None else None

    def call(self, method: str, request: Message, timeout: float = 0) -> Any:
        return self.answer(self.send(method, request, timeout))

    def close(self) -> None:
        self.socket.close()


@dataclass
class Told:
    """An event as it arrived."""

    sequence: int
    instance: str
    namespace: str
    topic: str
    event: Any


class EventsEndpoint:
    """The daemon's ttrpc socket: takes Forward calls on a thread and acknowledges them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.told: list[Told] = []
        self.error: bytes | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stop, self._stopper = socket.socketpair()

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._stopper.send(b"x")
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.stop()
        self._stop.close()
        self._stopper.close()

    def topics(self) -> list[str]:
        return [told.topic for told in self.told]

    def about(self, container: str) -> list[Told]:
        """Return what was told of one container."""
        return [told for told in self.told if told.event.container_id == container]

    def wait_for(self, topic: str, **fields: Any) -> Told:
        def found() -> Told | None:
            for told in list(self.told):
                if told.topic == topic and all(getattr(told.event, key) == value for key, value in fields.items()):
                    return told
            return None

        return eventually(found, f"event {topic} {fields}")

    def _serve(self, listener: socket.socket) -> None:
        peers: dict[socket.socket, ttrpc.FrameDecoder] = {}
        try:
            while True:
                ready, _, _ = select.select([self._stop, listener, *peers], [], [])
                if self._stop in ready:
                    self._stop.recv(1)
                    return
                if listener in ready:
                    peers[listener.accept()[0]] = ttrpc.FrameDecoder()
                for peer in [sock for sock in ready if sock in peers]:
                    if not self._answer(peer, peers[peer]):
                        del peers[peer]
                        peer.close()
        finally:
            for peer in peers:
                peer.close()
            listener.close()

    def _answer(self, peer: socket.socket, decoder: ttrpc.FrameDecoder) -> bool:
        """Take what a shim has sent; returns whether it is still there."""
        try:
            data = peer.recv(65536)
            for frame in decoder.feed(data):
                assert isinstance(frame, ttrpc.Frame)
                answer = ttrpc.encode_frame(frame.stream_id, ttrpc.FrameType.RESPONSE, self._take(frame.data))
                peer.sendall(answer)
        except OSError:
            return False
        return bool(data)

    def _take(self, data: bytes) -> bytes:
        request = ttrpc.decode_request(data)
        assert request.method == "Forward"
        envelope = events_pb2.ForwardRequest.FromString(request.payload).envelope
        kind = getattr(events, envelope.event.type_url.rpartition(".")[2])
        self.told.append(
            Told(
                int(request.metadata.get("pyctr-sequence", 0)),
                request.metadata.get("pyctr-instance", ""),
                envelope.namespace,
                envelope.topic,
                kind.FromString(envelope.event.value),
            )
        )
        return self.error or ttrpc.encode_response(b"")


@dataclass
class Host:
    """A temporary state directory, a zygote and an events endpoint."""

    root: Path
    events: EventsEndpoint
    zygote: subprocess.Popen[bytes]
    requests: socket.socket
    rootfs: Path
    group: str
    shims: list[int] = field(default_factory=list)

    def bundle(self, container: str, spec: dict[str, Any] | None = None) -> Path:
        bundle = self.root / "tasks" / "ns" / container
        bundle.mkdir(parents=True, mode=0o700)
        (bundle / "rootfs").mkdir()
        if spec is not None:
            (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def container(
        self, container: str, *arguments: str, terminal: bool = False, own_pids: bool = True, **linux: Any
    ) -> Path:
        """Make a bundle whose container runs busybox with `arguments`."""
        kinds = ["mount", "ipc", "uts", "network", *(["pid"] if own_pids else [])]
        spec = {
            "ociVersion": "1.2.0",
            "root": {"path": str(self.rootfs)},
            "process": process(*arguments, terminal=terminal),
            "hostname": container,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
                },
            ],
            "linux": {
                "cgroupsPath": f"/{self.group}/{container}",
                "namespaces": [{"type": kind} for kind in kinds],
                **linux,
            },
        }
        return self.bundle(container, spec)

    def run(self, container: str, *arguments: str, stdio: dict[str, str] | None = None, **options: Any) -> "Running":
        """Make a shim and a container and start it."""
        made = self.create(container, *arguments, stdio=stdio, **options)
        made.start()
        return made

    def create(
        self,
        container: str,
        *arguments: str,
        stdio: dict[str, str] | None = None,
        runtime: any_pb2.Any | None = None,
        **options: Any,
    ) -> "Running":
        """Make a shim and a container, not started; `runtime` is the task's options."""
        bundle = self.container(container, *arguments, **options)
        client, request, shim_pid = self.shim(container)
        terminal = bool(options.get("terminal"))
        streams: dict[str, Any] = {**(stdio or {})}
        asked = pb.CreateTaskRequest(id=container, bundle=str(bundle), terminal=terminal, options=runtime, **streams)
        try:
            created = client.call("Create", asked)
        except BaseException:
            client.close()
            raise
        return Running(self, container, bundle, client, request, shim_pid, created.pid)

    def fifo(self, name: str) -> str:
        """Make a FIFO and return its path."""
        path = self.root / name
        os.mkfifo(path)
        return str(path)

    def request(self, container: str, **changes: Any) -> tuple[ShimClient, dict[str, Any]]:
        """Ask for a shim; return its first connection and what was asked for."""
        ours, theirs = socket.socketpair()
        request = {
            "op": "shim",
            "namespace": "ns",
            "id": container,
            "bundle": str(self.root / "tasks" / "ns" / container),
            "socket": str(self.root / f"{container}.sock"),
            "attach": str(self.root / f"{container}.att"),
            "ttrpc_address": self.events.path,
            "grpc_address": str(self.root / "grpc"),
            "log_level": "debug",
            "instance": uuid.uuid4().hex,
            **changes,
        }
        socket.send_fds(self.requests, [json.dumps(request).encode()], [theirs.fileno()])
        theirs.close()
        return ShimClient(ours), request

    def reply(self) -> dict[str, Any]:
        reply = json.loads(self.requests.recv(65536))
        if "pid" in reply:
            self.shims.append(reply["pid"])
        return reply

    def shim(self, container: str) -> tuple[ShimClient, dict[str, Any], int]:
        client, request = self.request(container)
        reply = self.reply()
        assert "pid" in reply, reply
        return client, request, reply["pid"]

    def connect(self, request: dict[str, Any]) -> ShimClient:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(request["socket"])
        return ShimClient(connection)


@contextlib.contextmanager
def host(command: tuple[str, ...] = (sys.executable, "-I", "-m", "pyctr_shim.zygote")) -> Iterator[Host]:
    """Run a zygote below a new temporary directory; every shim that it made is ended afterwards."""
    root = Path(tempfile.mkdtemp(prefix="pys", dir="/run"))
    endpoint = EventsEndpoint(str(root / "e"))
    endpoint.start()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE)
    zygote = _spawn(command, theirs)
    theirs.close()
    here = Host(root, endpoint, zygote, ours, make_rootfs(root / "rootfs"), f"pyctr-test-{uuid.uuid4().hex[:8]}")
    try:
        yield here
    finally:
        ours.close()
        zygote.wait(DEADLINE)
        for pid in here.shims:
            _end(pid, root)
        endpoint.close()
        try:
            for cgroup in _groups(here.group):
                cgroup.rmdir()
        except OSError:
            _clear(here.group)
            raise
        finally:
            shutil.rmtree(root)


def _groups(name: str) -> list[Path]:
    """Return a cgroup in each hierarchy, of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    return [*root.glob(f"*/{name}"), *root.glob(name)]


def _clear(group: str) -> None:
    """End and remove what a test that failed has left of its containers."""
    for cgroup in _groups(group):
        for procs in cgroup.rglob("cgroup.procs"):
            for pid in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for directory in sorted((path.parent for path in cgroup.rglob("cgroup.procs")), reverse=True):
            eventually(lambda procs=directory / "cgroup.procs": not procs.read_text(), f"{directory} is empty")
            directory.rmdir()


class AttachClient:
    """A framed client of the attach socket."""

    def __init__(self, path: str, **hello: Any) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(path)
        self._buffer = b""
        self.send(0, json.dumps(hello).encode())

    def send(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(struct.pack(">BI", kind, len(payload)) + payload)

    def frame(self) -> tuple[int, bytes] | None:
        """Return the next frame, None at the end."""
        while True:
            if len(self._buffer) >= 5:
                kind, length = struct.unpack_from(">BI", self._buffer)
                if len(self._buffer) >= 5 + length:
                    payload = self._buffer[5 : 5 + length]
                    self._buffer = self._buffer[5 + length :]
                    return kind, payload
            data = self.socket.recv(65536)
            if not data:
                return None
            self._buffer += data

    def hello(self) -> dict[str, Any]:
        frame = self.frame()
        assert frame is not None
        assert frame[0] == 0
        return json.loads(frame[1])

    def rest(self) -> list[tuple[int, bytes]]:
        """Return all frames to the end."""
        frames = []
        while (frame := self.frame()) is not None:
            frames.append(frame)
        return frames

    def close(self) -> None:
        self.socket.close()


@dataclass
class Running:
    """A container, its shim and a connection to it."""

    host: Host
    id: str
    bundle: Path
    client: ShimClient
    request: dict[str, Any]
    shim_pid: int
    pid: int

    def start(self, exec_id: str = "") -> int:
        return self.client.call("Start", pb.StartRequest(id=self.id, exec_id=exec_id)).pid

    def wait(self, exec_id: str = "") -> int:
        return self.client.call("Wait", pb.WaitRequest(id=self.id, exec_id=exec_id)).exit_status

    def kill(self, number: int = 9, exec_id: str = "", everything: bool = False) -> None:
        self.client.call("Kill", pb.KillRequest(id=self.id, exec_id=exec_id, signal=number, all=everything))

    def delete(self, exec_id: str = "") -> Any:
        return self.client.call("Delete", pb.DeleteRequest(id=self.id, exec_id=exec_id))

    def state(self, exec_id: str = "") -> Any:
        return self.client.call("State", pb.StateRequest(id=self.id, exec_id=exec_id))

    def exec(self, exec_id: str, *arguments: str, terminal: bool = False, **stdio: str) -> None:
        spec = any_pb2.Any(type_url=PROCESS_URL, value=json.dumps(process(*arguments, terminal=terminal)).encode())
        self.client.call(
            "Exec", pb.ExecProcessRequest(id=self.id, exec_id=exec_id, terminal=terminal, spec=spec, **stdio)
        )

    def attach(self, **hello: Any) -> AttachClient:
        return AttachClient(self.request["attach"], **hello)

    def end(self) -> None:
        """Kill, delete, shut down; the shim must have given up the bundle then, and nothing of it be left."""
        with contextlib.suppress(NotFound):
            self.kill(everything=True)
        self.wait()
        self.delete()
        self.shut_down()

    def shut_down(self) -> None:
        self.client.call("Shutdown", pb.ShutdownRequest(id=self.id))
        eventually(lambda: is_free(self.bundle), "the shim gives up the bundle after Shutdown")
        assert not os.path.exists(self.request["socket"])
        assert not os.path.exists(self.request["attach"])
        self.client.close()


def is_free(bundle: Path) -> bool:
    """Whether no shim holds the bundle's lock; its process may go on as another one's."""
    with open(bundle / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def process(*arguments: str, terminal: bool = False) -> dict[str, Any]:
    """Return an OCI process that runs busybox."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/busybox", *arguments],
        "env": ["PATH=/bin"],
        "cwd": "/",
    }


def make_rootfs(path: Path) -> Path:
    """Make a root file system with a busybox in it."""
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", path / "bin/busybox")
    return path


def _spawn(command: tuple[str, ...], request_end: socket.socket) -> subprocess.Popen[bytes]:
    """Start the zygote with `request_end` as its descriptor 3."""

    def place() -> None:
        os.dup2(request_end.fileno(), 3)
        os.set_inheritable(3, True)

    return subprocess.Popen(command, close_fds=False, preexec_fn=place, stdin=subprocess.DEVNULL)


def _end(pid: int, root: Path) -> None:
    """Kill a shim that is still there, and only if it is one of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == "pyctr-shim":
            os.kill(pid, 9)
            select.select([pidfd], [], [], DEADLINE)
    os.close(pidfd)
