"""Images, namespaces, blobs, ingests, leases, snapshots, and the descriptors, mounts and platforms in them."""

from collections.abc import Iterable

from pyctr_wire.containerd.services.content.v1 import content_pb2
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.services.leases.v1 import leases_pb2
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2
from pyctr_wire.containerd.types import descriptor_pb2, mount_pb2, platform_pb2
from pyctrd.core.content import BlobInfo, IngestStatus
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import Digest
from pyctrd.core.images import Image
from pyctrd.core.leases import Lease, Resource
from pyctrd.core.mounts import Mount
from pyctrd.core.namespaces import Namespace
from pyctrd.core.platforms import Platform
from pyctrd.core.snapshots import Kind, SnapshotInfo
from pyctrd.core.times import UNSET
from pyctrd.rpc.convert.well_known import time_to_proto


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


def namespace_to_proto(namespace: Namespace) -> namespace_pb2.Namespace:
    """Return the message for a namespace."""
    return namespace_pb2.Namespace(name=namespace.name, labels=namespace.labels)


def namespace_from_proto(message: namespace_pb2.Namespace) -> Namespace:
    """Return the namespace that a client sent."""
    return Namespace(message.name, dict(message.labels))


def blob_to_proto(info: BlobInfo) -> content_pb2.Info:
    """Return the message for a blob."""
    return content_pb2.Info(
        digest=info.digest,
        size=info.size,
        created_at=time_to_proto(info.created_at),
        updated_at=time_to_proto(info.updated_at),
        labels=info.labels,
    )


def blob_from_proto(message: content_pb2.Info) -> BlobInfo:
    """Return the blob that a client sent."""
    return BlobInfo(Digest(message.digest), message.size, UNSET, UNSET, dict(message.labels))


def ingest_to_proto(status: IngestStatus) -> content_pb2.Status:
    """Return the message for an ingest."""
    return content_pb2.Status(
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


def platform_to_proto(platform: Platform) -> platform_pb2.Platform:
    """Return the message for a platform."""
    return platform_pb2.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)
