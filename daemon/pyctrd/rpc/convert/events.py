"""Our own events."""

from pyctr_wire.containerd.events import container_pb2, content_pb2, image_pb2, namespace_pb2, snapshot_pb2
from pyctrd.core import events
from pyctrd.core.anys import AnyValue
from pyctrd.rpc.convert.well_known import any_to_proto

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
