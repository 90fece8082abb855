"""Between messages and core values: the only place that knows both.

A message from a client becomes a core value without judgement; stores check it.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from pyctr_wire.containerd.events import container_pb2, content_pb2, image_pb2, namespace_pb2, snapshot_pb2
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.content.v1 import content_pb2 as content_service_pb2
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.services.leases.v1 import leases_pb2
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2 as namespaces_pb2
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2
from pyctr_wire.containerd.types import descriptor_pb2, mount_pb2, platform_pb2, sandbox_pb2
from pyctrd.core import events
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.content import BlobInfo, IngestStatus
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest
from pyctrd.core.images import Image
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.namespaces import Namespace
from pyctrd.core.platforms import Platform
from pyctrd.core.sandboxes import Sandbox
from pyctrd.core.snapshots import Kind, SnapshotInfo
from pyctrd.core.times import UNSET

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def time_to_proto(time: datetime) -> Timestamp:
    """Return a timestamp; UNSET is Go's zero time, which clients know as "not set"."""
    seconds, microseconds = divmod((time - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def time_from_proto(message: Timestamp) -> datetime:
    """Return the time in UTC, cut to microseconds; what lies outside of the years 1 to 9999 is UNSET."""
    try:
        return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)
    except OverflowError:
        return UNSET


def any_to_proto(value: AnyValue) -> AnyMessage:
    """Return the message that carries `value`."""
    return AnyMessage(type_url=value.type_url, value=value.value)


def any_from_proto(message: AnyMessage) -> AnyValue:
    """Return what the message carries, undecoded."""
    return AnyValue(message.type_url, message.value)


def mask_from_proto(message: FieldMask) -> tuple[str, ...]:
    """Return the paths of a field mask."""
    return tuple(message.paths)


def container_to_proto(container: Container) -> containers_pb2.Container:
    """Return the message for a container."""
    runtime = containers_pb2.Container.Runtime(name=container.runtime_name)
    if container.runtime_options is not None:
        runtime.options.CopyFrom(any_to_proto(container.runtime_options))
    return containers_pb2.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=runtime,
        spec=None if container.spec is None else any_to_proto(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=time_to_proto(container.created_at),
        updated_at=time_to_proto(container.updated_at),
        extensions={key: any_to_proto(value) for key, value in container.extensions.items()},
        sandbox=container.sandbox_id,
    )


def container_from_proto(message: containers_pb2.Container) -> Container:
    """Return the container that a client sent."""
    runtime = message.runtime
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime_name=runtime.name,
        runtime_options=any_from_proto(runtime.options) if runtime.HasField("options") else None,
        spec=any_from_proto(message.spec) if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions={key: any_from_proto(value) for key, value in message.extensions.items()},
        sandbox_id=message.sandbox,
    )


def sandbox_to_proto(sandbox: Sandbox) -> sandbox_pb2.Sandbox:
    """Return the message for a sandbox."""
    runtime = sandbox_pb2.Sandbox.Runtime(name=sandbox.runtime_name)
    if sandbox.runtime_options is not None:
        runtime.options.CopyFrom(any_to_proto(sandbox.runtime_options))
    return sandbox_pb2.Sandbox(
        sandbox_id=sandbox.id,
        runtime=runtime,
        spec=None if sandbox.spec is None else any_to_proto(sandbox.spec),
        labels=sandbox.labels,
        created_at=time_to_proto(sandbox.created_at),
        updated_at=time_to_proto(sandbox.updated_at),
        extensions={key: any_to_proto(value) for key, value in sandbox.extensions.items()},
        sandboxer=sandbox.sandboxer,
    )


def sandbox_from_proto(message: sandbox_pb2.Sandbox) -> Sandbox:
    """Return the sandbox that a client sent."""
    runtime = message.runtime
    return Sandbox(
        id=message.sandbox_id,
        runtime_name=runtime.name,
        runtime_options=any_from_proto(runtime.options) if runtime.HasField("options") else None,
        spec=any_from_proto(message.spec) if message.HasField("spec") else None,
        labels=dict(message.labels),
        extensions={key: any_from_proto(value) for key, value in message.extensions.items()},
        sandboxer=message.sandboxer,
    )


def descriptor_to_proto(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """Return the message for a descriptor."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_from_proto(message: descriptor_pb2.Descriptor) -> Descriptor:
    """Return the descriptor that a client sent."""
    return Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))


def image_to_proto(image: Image) -> images_pb2.Image:
    """Return the message for an image."""
    return images_pb2.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor_to_proto(image.target),
        created_at=time_to_proto(image.created_at),
        updated_at=time_to_proto(image.updated_at),
    )


def image_from_proto(message: images_pb2.Image) -> Image:
    """Return the image that a client sent."""
    return Image(message.name, descriptor_from_proto(message.target), dict(message.labels))


def namespace_to_proto(namespace: Namespace) -> namespaces_pb2.Namespace:
    """Return the message for a namespace."""
    return namespaces_pb2.Namespace(name=namespace.name, labels=namespace.labels)


def namespace_from_proto(message: namespaces_pb2.Namespace) -> Namespace:
    """Return the namespace that a client sent."""
    return Namespace(message.name, dict(message.labels))


def blob_to_proto(info: BlobInfo) -> content_service_pb2.Info:
    """Return the message for a blob."""
    return content_service_pb2.Info(
        digest=info.digest,
        size=info.size,
        created_at=time_to_proto(info.created_at),
        updated_at=time_to_proto(info.updated_at),
        labels=info.labels,
    )


def blob_from_proto(message: content_service_pb2.Info) -> BlobInfo:
    """Return the blob that a client sent."""
    return BlobInfo(Digest(message.digest), message.size, UNSET, UNSET, dict(message.labels))


def ingest_to_proto(status: IngestStatus) -> content_service_pb2.Status:
    """Return the message for an ingest."""
    return content_service_pb2.Status(
        started_at=time_to_proto(status.started_at),
        updated_at=time_to_proto(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


def lease_to_proto(lease: Lease) -> leases_pb2.Lease:
    """Return the message for a lease."""
    return leases_pb2.Lease(id=lease.id, created_at=time_to_proto(lease.created_at), labels=lease.labels)


def resource_to_proto(resource: Resource) -> leases_pb2.Resource:
    """Return the message for something that a lease holds."""
    return leases_pb2.Resource(id=resource.id, type=resource.type)


def resource_from_proto(message: leases_pb2.Resource) -> Resource:
    """Return what a client names for a lease to hold."""
    return Resource(message.id, message.type)


def mount_to_proto(mount: Mount) -> mount_pb2.Mount:
    """Return the message for a mount."""
    return mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def mount_from_proto(message: mount_pb2.Mount) -> Mount:
    """Return the mount that a client sent."""
    return Mount(message.type, message.source, message.target, tuple(message.options))


def mounts_from_proto(messages: Iterable[mount_pb2.Mount]) -> tuple[Mount, ...]:
    """Return the mounts that a client sent, in order."""
    return tuple(map(mount_from_proto, messages))


def snapshot_to_proto(info: SnapshotInfo) -> snapshots_pb2.Info:
    """Return the message for a snapshot."""
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=snapshots_pb2.Kind.Name(info.kind),
        created_at=time_to_proto(info.created_at),
        updated_at=time_to_proto(info.updated_at),
        labels=info.labels,
    )


def snapshot_from_proto(message: snapshots_pb2.Info) -> SnapshotInfo:
    """Return the snapshot that a client sent: a name, and labels, which are all that a client can change."""
    return SnapshotInfo(message.name, message.parent, Kind.ACTIVE, UNSET, UNSET, dict(message.labels))


_EventMessage = (
    container_pb2.ContainerCreate
    | container_pb2.ContainerUpdate
    | container_pb2.ContainerDelete
    | content_pb2.ContentCreate
    | content_pb2.ContentDelete
    | image_pb2.ImageCreate
    | image_pb2.ImageUpdate
    | image_pb2.ImageDelete
    | namespace_pb2.NamespaceCreate
    | namespace_pb2.NamespaceUpdate
    | namespace_pb2.NamespaceDelete
    | snapshot_pb2.SnapshotPrepare
    | snapshot_pb2.SnapshotCommit
    | snapshot_pb2.SnapshotRemove
)


def event_to_any(event: events.Event) -> AnyValue:
    """Return the wire form of one of our own events; type URLs have no prefix, as containerd's."""
    message = _event_to_proto(event)
    return AnyValue(message.DESCRIPTOR.full_name, message.SerializeToString())


def _event_to_proto(event: events.Event) -> _EventMessage:
    match event:
        case events.ContainerCreate():
            runtime = container_pb2.ContainerCreate.Runtime(name=event.runtime_name)
            if event.runtime_options is not None:
                runtime.options.CopyFrom(any_to_proto(event.runtime_options))
            return container_pb2.ContainerCreate(id=event.id, image=event.image, runtime=runtime)
        case events.ContainerUpdate():
            return container_pb2.ContainerUpdate(
                id=event.id, image=event.image, labels=event.labels, snapshot_key=event.snapshot_key
            )
        case events.ContainerDelete():
            return container_pb2.ContainerDelete(id=event.id)
        case events.ImageCreate():
            return image_pb2.ImageCreate(name=event.name, labels=event.labels)
        case events.ImageUpdate():
            return image_pb2.ImageUpdate(name=event.name, labels=event.labels)
        case events.ImageDelete():
            return image_pb2.ImageDelete(name=event.name)
        case events.ContentCreate():
            return content_pb2.ContentCreate(digest=event.digest, size=event.size)
        case events.ContentDelete():
            return content_pb2.ContentDelete(digest=event.digest)
        case events.SnapshotPrepare():
            return snapshot_pb2.SnapshotPrepare(key=event.key, parent=event.parent, snapshotter=event.snapshotter)
        case events.SnapshotCommit():
            return snapshot_pb2.SnapshotCommit(key=event.key, name=event.name, snapshotter=event.snapshotter)
        case events.SnapshotRemove():
            return snapshot_pb2.SnapshotRemove(key=event.key, snapshotter=event.snapshotter)
        case events.NamespaceCreate():
            return namespace_pb2.NamespaceCreate(name=event.name, labels=event.labels)
        case events.NamespaceUpdate():
            return namespace_pb2.NamespaceUpdate(name=event.name, labels=event.labels)
        case events.NamespaceDelete():
            return namespace_pb2.NamespaceDelete(name=event.name)


def platform_to_proto(platform: Platform) -> platform_pb2.Platform:
    """Return the message for a platform."""
    return platform_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)
