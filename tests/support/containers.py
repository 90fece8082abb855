"""Containers on a private daemon, over containerd's API: a busybox below a directory, no image, no snapshot.

    with DaemonProcess() as daemon, Containers(daemon) as containers:
        containers.run("web", "sleep", "1000")

Leaving the context removes what is left of the containers and asserts that this was everything: no task, bundle,
shim, shim socket, cgroup or record remains.
"""

import json
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from pyctr_wire.containerd.events import task_pb2 as task_events
from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from pyctr_wire.containerd.types.task import task_pb2

from .daemon_process import DEADLINE, DaemonProcess, wait_until

BUSYBOX = Path("/usr/bin/busybox")
NAMESPACE = "default"
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_HEADERS = (("containerd-namespace", NAMESPACE),)
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    at: datetime


@dataclass(frozen=True)
class Event:
    """A task event, decoded."""

    topic: str
    container: str
    id: str
    status: int


class Containers:
    """Calls about the containers of one daemon, which may be killed and started again meanwhile."""

    def __init__(self, daemon: DaemonProcess) -> None:
        """Make a root file system in the daemon's directory."""
        self.daemon = daemon
        self.group = f"pyctr-test-{uuid.uuid4().hex[:8]}"
        self.rootfs = daemon.base / "rootfs"
        for name in ("bin", "dev", "proc", "sys", "tmp"):
            (self.rootfs / name).mkdir(parents=True, exist_ok=True)
        if not (self.rootfs / "bin/busybox").exists():
            shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        self._channel: grpc.Channel | None = None
        self._server = self.daemon.process

    # Calls.

    @property
    def channel(self) -> grpc.Channel:
        """A channel to the daemon that runs now, or to one that has been replaced and passes our calls on."""
        if self._channel is None or self._server is None or self._server.poll() is not None:
            self.close()
            self._channel, self._server = self.daemon.channel(), self.daemon.process
        return self._channel

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def tasks(self, method: str, request: Any, timeout: float = DEADLINE) -> Any:
        """Make one call of the tasks service."""
        return getattr(tasks_pb2_grpc.TasksStub(self.channel), method)(request, metadata=_HEADERS, timeout=timeout)

    def future(self, method: str, request: Any, timeout: float = DEADLINE) -> Any:
        """Begin one call of the tasks service and return its future."""
        stub = getattr(tasks_pb2_grpc.TasksStub(self.channel), method)
        return stub.future(request, metadata=_HEADERS, timeout=timeout)

    def records(self, method: str, request: Any) -> Any:
        """Make one call of the containers service."""
        stub = containers_pb2_grpc.ContainersStub(self.channel)
        return getattr(stub, method)(request, metadata=_HEADERS, timeout=DEADLINE)

    # Containers.

    def define(self, id: str, *arguments: str, **changes: Any) -> None:
        """Create a container's record; `changes` replace parts of its spec."""
        spec = {**self.spec(id, *arguments), **changes}
        container = containers_pb2.Container(
            id=id, runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2")
        )
        container.spec.type_url, container.spec.value = SPEC_URL, json.dumps(spec).encode()
        self.records("Create", containers_pb2.CreateContainerRequest(container=container))

    def create(self, id: str, **options: Any) -> int:
        """Create the task of a defined container and return its pid."""
        return self.tasks("Create", tasks_pb2.CreateTaskRequest(container_id=id, **options)).pid

    def start(self, id: str, exec_id: str = "") -> int:
        """Start a created process and return its pid."""
        return self.tasks("Start", tasks_pb2.StartRequest(container_id=id, exec_id=exec_id)).pid

    def run(self, id: str, *arguments: str) -> int:
        """Define, create and start; return the pid."""
        self.define(id, *arguments)
        self.create(id)
        return self.start(id)

    def exec(self, id: str, exec_id: str, *arguments: str) -> int:
        """Run another process in the container and return its pid."""
        self.add_exec(id, exec_id, *arguments)
        return self.start(id, exec_id)

    def add_exec(self, id: str, exec_id: str, *arguments: str, **changes: object) -> None:
        """Register a process without starting it, with `changes` to its document."""
        self.tasks("Exec", exec_request(id, exec_id, *arguments, **changes))

    def kill(self, id: str, number: int = 9, exec_id: str = "") -> None:
        """Send a signal."""
        self.tasks("Kill", tasks_pb2.KillRequest(container_id=id, exec_id=exec_id, signal=number))

    def wait(self, id: str, exec_id: str = "") -> Ended:
        """Wait for the end of a process."""
        return _ended(self.tasks("Wait", tasks_pb2.WaitRequest(container_id=id, exec_id=exec_id)))

    def delete(self, id: str) -> Ended:
        """Delete the task."""
        return _ended(self.tasks("Delete", tasks_pb2.DeleteTaskRequest(container_id=id)))

    def status(self, id: str, exec_id: str = "") -> int | None:
        """Return the status of a process, None if there is no such process."""
        try:
            request = tasks_pb2.GetRequest(container_id=id, exec_id=exec_id)
            return int(self.tasks("Get", request).process.status)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise

    def remove(self, id: str) -> None:
        """End and delete everything about a container, whatever state it is in."""
        status = self.status(id)
        if status is not None:
            if status not in (task_pb2.STOPPED, task_pb2.CREATED):
                try:
                    self.kill(id)
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.NOT_FOUND:
                        raise
                self.wait(id)
            self.delete(id)
        self.records("Delete", containers_pb2.DeleteContainerRequest(id=id))

    def ids(self) -> list[str]:
        """Return the ids of all containers."""
        found = self.records("List", containers_pb2.ListContainersRequest()).containers
        return [container.id for container in found]

    def task_ids(self) -> list[str]:
        """Return the ids of all tasks."""
        return [task.id for task in self.tasks("List", tasks_pb2.ListTasksRequest()).tasks]

    def spec(self, id: str, *arguments: str) -> dict[str, Any]:
        """Return a small OCI spec."""
        return {
            "ociVersion": "1.2.0",
            "process": _process(*arguments),
            "root": {"path": str(self.rootfs)},
            "hostname": id,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self.group}/{id}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            },
        }

    def gate(self, name: str = "gate") -> "Gate":
        """Return something in the root file system that processes wait at: `read x < /NAME` ends when it is opened."""
        return Gate(self.rootfs / name)

    # What is there.

    @property
    def bundles(self) -> Path:
        """Where the bundles of our namespace are."""
        return self.daemon.state / "tasks" / NAMESPACE

    def shim_pid(self, id: str) -> int:
        """Return the pid of a container's shim."""
        return int(json.loads((self.bundles / id / "shim.json").read_text())["pid"])

    def worker_pid(self, id: str) -> int:
        """Return the pid of the process that works for a container's shim, having woken it if it slept."""
        self.future("ListPids", tasks_pb2.ListPidsRequest(container_id=id)).result()
        shim = self.shim_pid(id)
        for pid in Path(f"/proc/{shim}/task/{shim}/children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text() == "pyctr-shim:work\n":
                return int(pid)
        raise AssertionError(f"shim {shim} has no worker")

    def leftovers(self) -> list[str]:
        """Return what is left of tasks: bundles, sockets, shims, cgroups."""
        found = [str(path) for path in _entries(self.bundles)]
        found += [str(path) for path in _entries(self.daemon.state / "s")]
        found += self._cgroups()
        base = str(self.bundles)
        for pid in (name for name in os.listdir("/proc") if name.isdigit()):
            try:
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue
            found += [f"process {pid} has {link}" for link in links if link.startswith(base)]
        return found

    def _cgroups(self) -> list[str]:
        """Return our containers' cgroups, and remove the parent that they share once they are gone."""
        parents = [path for path in hierarchies() if (path / self.group).exists()]
        found: list[str] = []
        for parent in parents:
            children = [str(child) for child in (parent / self.group).iterdir() if child.is_dir()]
            found += children
            if not children:
                (parent / self.group).rmdir()
        return found

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove all containers and assert that nothing is left; after a failure, only try."""
        try:
            if self.daemon.process is None:
                self.daemon.start()
            for id in self.ids():
                self.remove(id)
            assert self.task_ids() == []
            wait_until(lambda: not self.leftovers(), lambda: f"nothing is left, but: {self.leftovers()}")
        except (AssertionError, grpc.RpcError) as failure:
            if error is None:
                raise
            sys.stderr.write(f"clean-up after the failure failed too: {failure}\n")
        finally:
            self.close()


class Gate:
    """A FIFO with a writer: its readers wait, without using the processor, and all see its end at once."""

    def __init__(self, path: Path) -> None:
        """Make the FIFO and hold it."""
        self._path = path
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def open(self) -> None:
        """Let everybody go, also those who have not come yet: they find an empty file."""
        empty = self._path.with_suffix(".open")
        empty.touch()
        empty.replace(self._path)
        os.close(self._fd)


class EventLog:
    """Collects task events until it is closed; it subscribes before it returns."""

    def __init__(self, containers: Containers) -> None:
        """Subscribe."""
        stub = events_pb2_grpc.EventsStub(containers.channel)
        request = events_pb2.SubscribeRequest(filters=[f"namespace=={NAMESPACE},topic~=/^.tasks/"])
        self._call = stub.Subscribe(request)
        self._call.initial_metadata()
        self.events: list[Event] = []
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        try:
            for envelope in self._call:
                name = envelope.event.type_url.rpartition(".")[2]
                event = getattr(task_events, name).FromString(envelope.event.value)
                id = getattr(event, "id", "") or getattr(event, "exec_id", "")
                self.events.append(Event(envelope.topic, event.container_id, id, int(getattr(event, "exit_status", 0))))
        except grpc.RpcError:
            return

    @property
    def alive(self) -> bool:
        """Whether the stream goes on."""
        return self._thread.is_alive()

    def of(self, container: str) -> list[Event]:
        """Return the events of one container so far."""
        return [event for event in self.events if event.container == container]

    def topics(self, container: str) -> list[str]:
        """Return the last parts of the topics of one container's events so far."""
        return [event.topic.rpartition("/")[2] for event in self.of(container)]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the events so far satisfy `condition`."""
        wait_until(condition, f"{what}; events so far: {self.events}")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unsubscribe."""
        self._call.cancel()
        self._thread.join()


def exec_request(id: str, exec_id: str, *arguments: str, **changes: object) -> tasks_pb2.ExecProcessRequest:
    """Return the message that registers a process, with `changes` to its document."""
    request = tasks_pb2.ExecProcessRequest(container_id=id, exec_id=exec_id)
    request.spec.type_url, request.spec.value = PROCESS_URL, json.dumps(_process(*arguments) | changes).encode()
    return request


def _process(*arguments: str) -> dict[str, Any]:
    return {
        "args": ["/bin/busybox", *arguments],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {},
        "noNewPrivileges": True,
    }


def _ended(reply: Any) -> Ended:
    return Ended(reply.exit_status, reply.exited_at.ToDatetime())


def _entries(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.exists() else []


def hierarchies() -> Iterator[Path]:
    """Yield the roots of the cgroup hierarchies."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in ("cgroup", "cgroup2"):
            yield Path(left.split()[4])
