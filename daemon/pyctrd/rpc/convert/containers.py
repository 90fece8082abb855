"""Containers."""

from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctrd.core.containers import Container
from pyctrd.rpc.convert.well_known import any_from_proto, any_to_proto, time_to_proto


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
