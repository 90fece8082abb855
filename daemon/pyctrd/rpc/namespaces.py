"""containerd.services.namespaces.v1."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2 as pb
from pyctrd.core.namespaces import Namespace
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import namespace_from_proto, namespace_to_proto
from pyctrd.rpc.convert.well_known import mask_from_proto
from pyctrd.rpc.headers import Context


class NamespaceStore(Protocol):
    """Where namespaces are kept."""

    def get(self, name: str, /) -> Namespace: ...
    def list(self) -> Sequence[Namespace]: ...
    def create(self, namespace: Namespace, /) -> Namespace: ...
    def update(self, namespace: Namespace, mask: tuple[str, ...], /) -> Namespace: ...
    def delete(self, name: str, /) -> None: ...


class Namespaces:
    """The tenants of the API. None of these calls needs the namespace header."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Namespaces"]

    def __init__(self, store: NamespaceStore, rows: Offload) -> None:
        """Serve `store`, whose calls run in `rows`."""
        self._store = store
        self._rows = rows

    async def Get(self, request: pb.GetNamespaceRequest, context: Context) -> pb.GetNamespaceResponse:
        """Return a namespace; one that is not there has no labels, and that is all."""
        namespace = self._rows.at_once(self._store.get, request.name)
        return pb.GetNamespaceResponse(namespace=namespace_to_proto(namespace))

    async def List(self, request: pb.ListNamespacesRequest, context: Context) -> pb.ListNamespacesResponse:
        """Return all namespaces; the filter is for nothing, as in containerd."""
        namespaces = await self._rows.run(self._store.list)
        return pb.ListNamespacesResponse(namespaces=map(namespace_to_proto, namespaces))

    async def Create(self, request: pb.CreateNamespaceRequest, context: Context) -> pb.CreateNamespaceResponse:
        """Create a namespace. AlreadyExists, InvalidArgument."""
        namespace = await self._rows.run(self._store.create, namespace_from_proto(request.namespace))
        return pb.CreateNamespaceResponse(namespace=namespace_to_proto(namespace))

    async def Update(self, request: pb.UpdateNamespaceRequest, context: Context) -> pb.UpdateNamespaceResponse:
        """Change labels, those that the mask names or all. InvalidArgument."""
        namespace = await self._rows.run(
            self._store.update,
            namespace_from_proto(request.namespace),
            mask_from_proto(request.update_mask),
        )
        return pb.UpdateNamespaceResponse(namespace=namespace_to_proto(namespace))

    async def Delete(self, request: pb.DeleteNamespaceRequest, context: Context) -> Empty:
        """Delete an empty namespace. FailedPrecondition, NotFound."""
        await self._rows.run(self._store.delete, request.name)
        return Empty()
