"""containerd.services.leases.v1."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.leases.v1 import leases_pb2 as pb
from pyctrd.core.leases import Lease, Resource
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import lease_to_proto, resource_from_proto, resource_to_proto
from pyctrd.rpc.headers import Context, namespace_of


class LeaseStore(Protocol):
    """Where leases are kept."""

    def create(self, ns: str, lease: Lease, /) -> Lease: ...
    def delete(self, ns: str, id: str, /) -> None: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Lease]: ...
    def add_resource(self, ns: str, id: str, resource: Resource, /) -> None: ...
    def delete_resource(self, ns: str, id: str, resource: Resource, /) -> None: ...
    def list_resources(self, ns: str, id: str, /) -> Sequence[Resource]: ...


class Leases:
    """What keeps objects from garbage collection while nothing else refers to them."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Leases"]

    def __init__(self, store: LeaseStore, rows: Offload, collect: Callable[[], Awaitable[Any]]) -> None:
        """Serve `store`, whose calls run in `rows`; `collect` is a whole garbage collection."""
        self._store = store
        self._rows = rows
        self._collect = collect

    async def Create(self, request: pb.CreateRequest, context: Context) -> pb.CreateResponse:
        """Create a lease, under a new id if none is given. AlreadyExists, InvalidArgument."""
        lease = Lease(request.id, dict(request.labels))
        lease = await self._rows.run(self._store.create, namespace_of(context), lease)
        return pb.CreateResponse(lease=lease_to_proto(lease))

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> Empty:
        """Delete a lease; `sync` also collects what it kept before this returns. NotFound."""
        await self._rows.run(self._store.delete, namespace_of(context), request.id)
        if request.sync:
            await self._collect()
        return Empty()

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        """Return the leases that match. InvalidArgument."""
        leases = await self._rows.run(self._store.list, namespace_of(context), tuple(request.filters))
        return pb.ListResponse(leases=map(lease_to_proto, leases))

    async def AddResource(self, request: pb.AddResourceRequest, context: Context) -> Empty:
        """Let the lease hold an object, there or not. NotFound, InvalidArgument, Unimplemented."""
        resource = resource_from_proto(request.resource)
        await self._rows.run(self._store.add_resource, namespace_of(context), request.id, resource)
        return Empty()

    async def DeleteResource(self, request: pb.DeleteResourceRequest, context: Context) -> Empty:
        """Let the lease no longer hold an object, if it did. NotFound, InvalidArgument, Unimplemented."""
        resource = resource_from_proto(request.resource)
        await self._rows.run(self._store.delete_resource, namespace_of(context), request.id, resource)
        return Empty()

    async def ListResources(self, request: pb.ListResourcesRequest, context: Context) -> pb.ListResourcesResponse:
        """Return what the lease holds. NotFound."""
        resources = await self._rows.run(self._store.list_resources, namespace_of(context), request.id)
        return pb.ListResourcesResponse(resources=map(resource_to_proto, resources))
