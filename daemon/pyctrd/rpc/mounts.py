"""containerd.services.mounts.v1: mounts that need a helper, of which there are none here."""

from typing import ClassVar, NoReturn

from pyctr_wire.containerd.services.mounts.v1 import mounts_pb2 as pb
from pyctr_wire.errors import NotFound, Unimplemented
from pyctrd.rpc.headers import Context, namespace_of


class Mounts:
    """Our snapshotters return mounts that the kernel understands as they are.

    Clients try Activate first and use the mounts themselves when it is not implemented: this code,
    and no other, tells them to.
    """

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Mounts"]

    async def Activate(self, request: pb.ActivateRequest, context: Context) -> NoReturn:
        """Raise Unimplemented, which means: use the mounts as they are."""
        types = ", ".join(sorted({mount.type for mount in request.mounts}))
        raise Unimplemented(f"mounts {request.name}: no handler for mounts of type {types or 'none'}")

    async def Deactivate(self, request: pb.DeactivateRequest, context: Context) -> NoReturn:
        """Raise NotFound: nothing was activated."""
        raise NotFound(f"mounts {request.name} in namespace {namespace_of(context)}")

    async def Info(self, request: pb.InfoRequest, context: Context) -> NoReturn:
        """Raise NotFound: nothing was activated."""
        raise NotFound(f"mounts {request.name} in namespace {namespace_of(context)}")

    async def Update(self, request: pb.UpdateRequest, context: Context) -> NoReturn:
        """Raise Unimplemented, as containerd does."""
        raise Unimplemented("method Mounts.Update")

    async def List(self, request: pb.ListRequest, context: Context) -> None:
        """Send nothing: nothing was activated."""
        namespace_of(context)
