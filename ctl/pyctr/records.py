"""Containers as records: what they run, a new task for them, their removal."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf import any_pb2, empty_pb2
from google.protobuf.field_mask_pb2 import FieldMask

from pyctr import tasks
from pyctr.connection import CONTAINERS, SNAPSHOTS, Connection
from pyctr.errors import CommandError
from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Status
from pyctr_wire.errors import NotFound


def spec_of(container: containers_pb2.Container) -> dict[str, Any]:
    """Return the container's OCI spec."""
    spec: dict[str, Any] = json.loads(container.spec.value or b"{}")
    return spec


def ready_task(connection: Connection, container: containers_pb2.Container, checkpoint: str = "") -> bool:
    """Make a new task for a container whose last one, if any, has ended; tell whether there is one to start.

    A task that whoever made it did not start is as good as a new one; one that runs is left alone. With the absolute
    path of a `checkpoint` neither will do: raises CommandError then.
    """
    process = tasks.get(connection, container.id)
    if process is not None and process.status != Status.STOPPED:
        if checkpoint:
            raise CommandError(f"container {container.id} must be stopped to be restored: pyctr stop {container.id}")
        return process.status == Status.CREATED
    if process is not None:
        tasks.delete(connection, container.id)
    mounts = connection.call(
        SNAPSHOTS,
        "Mounts",
        snapshots_pb2.MountsRequest(snapshotter=container.snapshotter, key=container.snapshot_key),
        snapshots_pb2.MountsResponse,
    ).mounts
    tasks.create(
        connection,
        container.id,
        mounts,
        container.labels.get(labels.LOG_URI, ""),
        terminal=bool(spec_of(container).get("process", {}).get("terminal")),
        interactive=container.labels.get(labels.INTERACTIVE) == "true",
        options=_restoring(container, checkpoint) if checkpoint else None,
    )
    return True


def _restoring(container: containers_pb2.Container, checkpoint: str) -> any_pb2.Any:
    """Return a container's runtime options, with a checkpoint to make the task of."""
    options = oci_pb2.Options.FromString(container.runtime.options.value)
    options.criu_image_path = checkpoint
    return any_pb2.Any(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


@contextlib.contextmanager
def kept(connection: Connection, container: containers_pb2.Container) -> Iterator[None]:
    """Keep a container that goes when its task ends from going, for as long as another task is made for it."""
    if container.labels.get(labels.AUTO_REMOVE) != "true":
        yield
        return
    _set_label(connection, container.id, labels.AUTO_REMOVE, "")
    try:
        yield
    finally:
        _set_label(connection, container.id, labels.AUTO_REMOVE, "true")
    process = tasks.get(connection, container.id)
    if process is not None and process.status == Status.STOPPED:  # meanwhile, so that nobody took notice
        tasks.delete(connection, container.id)
        remove(connection, container.id, container.snapshotter, container.snapshot_key)


def _set_label(connection: Connection, container_id: str, name: str, value: str) -> None:
    changed = containers_pb2.Container(id=container_id, labels={name: value})
    request = containers_pb2.UpdateContainerRequest(container=changed, update_mask=FieldMask(paths=[f"labels.{name}"]))
    connection.call(CONTAINERS, "Update", request, containers_pb2.UpdateContainerResponse)


def mark_stopped(connection: Connection, container: containers_pb2.Container) -> None:
    """Keep the daemon from starting a container again that is about to be stopped; its next start ends that."""
    if container.labels.get(labels.RESTART_STATUS):
        _set_label(connection, container.id, labels.RESTART_EXPLICITLY_STOPPED, "true")


def remove(connection: Connection, container_id: str, snapshotter: str, snapshot_key: str) -> None:
    """Remove a container whose task is gone: the record, then its snapshot. What is gone is fine."""
    with contextlib.suppress(NotFound):
        record = containers_pb2.DeleteContainerRequest(id=container_id)
        connection.call(CONTAINERS, "Delete", record, empty_pb2.Empty, patience=tasks.RECONNECT)
    if snapshot_key:
        with contextlib.suppress(NotFound):
            snapshot = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=snapshot_key)
            connection.call(SNAPSHOTS, "Remove", snapshot, empty_pb2.Empty, patience=tasks.RECONNECT)
