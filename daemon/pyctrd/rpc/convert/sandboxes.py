"""Sandboxes."""

from pyctr_wire.containerd.types import sandbox_pb2
from pyctrd.core.sandboxes import Sandbox
from pyctrd.rpc.convert.well_known import any_from_proto, any_to_proto, time_to_proto


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
