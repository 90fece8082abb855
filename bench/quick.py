"""A short benchmark of two daemons that speak containerd's API, in turns, in one run.

Prints the median of each figure and the ratio peer / pyctrd. The machine's noise falls on both
sides alike, so the ratio is what to read. Both addresses come from the environment (see arena).
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from pyctr_wire.containerd.services.diff.v1 import diff_pb2, diff_pb2_grpc
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2, snapshots_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from pyctr_wire.containerd.types import descriptor_pb2, mount_pb2
from pyctr_wire.containerd.types.task import task_pb2
from pyctr_wire.oci.default_spec import default_process, default_spec

SNAPSHOTTER = "overlayfs"
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LAYER = "application/vnd.oci.image.layer.v1.tar"
KEEP = {"containerd.io/gc.root": "bench"}
SIGKILL = 9
SETTLE = 5.0  # seconds between the last call and the reading of memory


class Daemon:
    """One daemon under test: the calls that a container's life is made of."""

    def __init__(self, name: str, address: str) -> None:
        """Connect to `address`, the path of a unix socket."""
        self.name = name
        self._call = {"metadata": (("containerd-namespace", "bench"),), "timeout": 60, "wait_for_ready": True}
        channel = grpc.insecure_channel(f"unix://{address}", options=[("grpc.default_authority", "localhost")])
        self._content = content_pb2_grpc.ContentStub(channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        self._diff = diff_pb2_grpc.DiffStub(channel)
        self._containers = containers_pb2_grpc.ContainersStub(channel)
        self._tasks = tasks_pb2_grpc.TasksStub(channel)
        self._numbers = iter(range(1_000_000))
        self._top = ""

    def prepare_image(self, layer: bytes) -> None:
        """Unpack one uncompressed layer into a committed snapshot named by its digest."""
        digest = "sha256:" + hashlib.sha256(layer).hexdigest()
        write = content_pb2.WriteContentRequest
        requests = [
            write(
                action=content_pb2.WRITE,
                ref="bench-layer",
                total=len(layer),
                offset=start,
                data=layer[start : start + 2**20],
            )
            for start in range(0, len(layer), 2**20)
        ]
        requests.append(
            write(
                action=content_pb2.COMMIT,
                ref="bench-layer",
                offset=len(layer),
                total=len(layer),
                expected=digest,
                labels=KEEP,
            )
        )
        for _ in self._content.Write(iter(requests), **self._call):
            pass
        prepared = self._snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key="unpack", labels=KEEP), **self._call
        )
        blob = descriptor_pb2.Descriptor(media_type=LAYER, digest=digest, size=len(layer))
        self._diff.Apply(diff_pb2.ApplyRequest(diff=blob, mounts=prepared.mounts), **self._call)
        self._snapshots.Commit(
            snapshots_pb2.CommitSnapshotRequest(snapshotter=SNAPSHOTTER, name=digest, key="unpack", labels=KEEP),
            **self._call,
        )
        self._top = digest

    def launch(self, args: list[str]) -> tuple[str, dict[str, float]]:
        """Start a container: its id, and the seconds that each step took."""
        name = f"{self.name}-{os.getpid()}-{next(self._numbers)}"
        took = {}
        begin = time.perf_counter()
        mounts = self._snapshots.Prepare(
            snapshots_pb2.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=name, parent=self._top, labels=KEEP),
            **self._call,
        ).mounts
        spec = default_spec()
        spec["process"]["args"] = args
        spec["linux"]["cgroupsPath"] = f"/bench/{name}"
        container = containers_pb2.Container(
            id=name,
            image="bench",
            runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
            spec=AnyMessage(type_url=SPEC, value=json.dumps(spec).encode()),
            snapshotter=SNAPSHOTTER,
            snapshot_key=name,
        )
        self._containers.Create(containers_pb2.CreateContainerRequest(container=container), **self._call)
        records = time.perf_counter()
        self._tasks.Create(
            tasks_pb2.CreateTaskRequest(
                container_id=name, rootfs=[mount_pb2.Mount.FromString(m.SerializeToString()) for m in mounts]
            ),
            **self._call,
        )
        self._tasks.Start(tasks_pb2.StartRequest(container_id=name), **self._call)
        started = time.perf_counter()
        took["create + start"] = started - records
        took["to running"] = started - begin
        return name, took

    def wait(self, name: str, exec_id: str = "") -> int:
        """Return the exit status of a task or exec."""
        status: int = self._tasks.Wait(
            tasks_pb2.WaitRequest(container_id=name, exec_id=exec_id), **self._call
        ).exit_status
        return status

    def remove(self, name: str) -> float:
        """Delete an ended container: the seconds that Tasks.Delete took."""
        begin = time.perf_counter()
        self._tasks.Delete(tasks_pb2.DeleteTaskRequest(container_id=name), **self._call)
        took = time.perf_counter() - begin
        self._containers.Delete(containers_pb2.DeleteContainerRequest(id=name), **self._call)
        self._snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=name), **self._call)
        return took

    def lifecycle(self) -> dict[str, float]:
        """One container from nothing to nothing, running `true`."""
        begin = time.perf_counter()
        name, took = self.launch(["/bin/busybox", "true"])
        if status := self.wait(name):
            sys.exit(f"quick: {self.name}: container ended with {status}")
        took["delete task"] = self.remove(name)
        took["lifecycle"] = time.perf_counter() - begin
        return took

    def exec(self, name: str) -> float:
        """Run `true` in a running container and delete the exec: seconds."""
        exec_id = f"exec-{next(self._numbers)}"
        process = default_process()
        process["args"] = ["/bin/busybox", "true"]
        begin = time.perf_counter()
        spec = AnyMessage(type_url=PROCESS, value=json.dumps(process).encode())
        self._tasks.Exec(tasks_pb2.ExecProcessRequest(container_id=name, exec_id=exec_id, spec=spec), **self._call)
        self._tasks.Start(tasks_pb2.StartRequest(container_id=name, exec_id=exec_id), **self._call)
        if status := self.wait(name, exec_id):
            sys.exit(f"quick: {self.name}: exec ended with {status}")
        self._tasks.DeleteProcess(tasks_pb2.DeleteProcessRequest(container_id=name, exec_id=exec_id), **self._call)
        return time.perf_counter() - begin

    def kill(self, name: str) -> None:
        """Kill a running container and remove it."""
        self._tasks.Kill(tasks_pb2.KillRequest(container_id=name, signal=SIGKILL), **self._call)
        self.wait(name)
        self.remove(name)

    def containers(self) -> int:
        """Return how many containers are listed."""
        return len(self._containers.List(containers_pb2.ListContainersRequest(), **self._call).containers)

    def running(self) -> int:
        """Return how many tasks are listed that run."""
        tasks = self._tasks.List(tasks_pb2.ListTasksRequest(), **self._call).tasks
        return sum(task.status == task_pb2.RUNNING for task in tasks)

    def pid(self, name: str) -> int:
        """Return the pid of a container's first process."""
        pid: int = self._tasks.Get(tasks_pb2.GetRequest(container_id=name), **self._call).process.pid
        return pid


def busybox_layer() -> bytes:
    """Return an uncompressed layer with /bin/busybox, statically linked, and the usual empty directories."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for directory in ("bin", "dev", "etc", "proc", "run", "sys", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        archive.add("/bin/busybox", "bin/busybox")
    return out.getvalue()


def shim_of(pid: int) -> int:
    """Return the parent of a container's first process."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def memory(pid: int) -> Iterator[tuple[str, float]]:
    """Yield a process's Pss, private dirty memory (MiB) and threads."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            key, _, rest = line.partition(":")
            if key in ("Pss", "Private_Dirty"):
                yield f"shim {key} (MiB)", int(rest.split()[0]) / 1024
    yield "shim threads", len(os.listdir(f"/proc/{pid}/task"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="lifecycles and execs of each daemon")
    parser.add_argument("--density", type=int, default=10, help="containers that run while memory is read")
    options = parser.parse_args()

    daemons = [Daemon("pyctrd", os.environ["PYCTR_ADDRESS"]), Daemon("containerd", os.environ["PEER_ADDRESS"])]
    samples: dict[str, dict[str, list[float]]] = {}

    def keep(daemon: Daemon, figure: str, value: float) -> None:
        samples.setdefault(figure, {}).setdefault(daemon.name, []).append(value)

    layer = busybox_layer()
    for daemon in daemons:
        daemon.prepare_image(layer)
        daemon.lifecycle()
    for _ in range(options.count):
        for daemon in daemons:
            for step, seconds in daemon.lifecycle().items():
                keep(daemon, f"{step} (ms)", seconds * 1000)
    for daemon in daemons:
        running = [daemon.launch(["/bin/busybox", "sleep", "3600"])[0] for _ in range(options.density)]
        for _ in range(options.count):
            keep(daemon, "exec (ms)", daemon.exec(running[0]) * 1000)
        time.sleep(SETTLE)
        for name in running:
            for figure, value in memory(shim_of(daemon.pid(name))):
                keep(daemon, figure, value)
        for name in running:
            keep(daemon, "exec after 5 s of rest (ms)", daemon.exec(name) * 1000)
        for name in running:
            daemon.kill(name)

    print(f"{'median':24}{'pyctrd':>10}{'containerd':>12}{'ratio':>8}")
    for figure, values in samples.items():
        ours, peer = (statistics.median(values[daemon.name]) for daemon in daemons)
        print(f"{figure:24}{ours:10.2f}{peer:12.2f}{peer / ours:8.2f}")


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
