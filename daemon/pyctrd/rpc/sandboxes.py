"""containerd.services.sandbox.v1: the records of sandboxes. Who runs them, the Controller, is not there yet."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from pyctr_wire.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from pyctrd.core.sandboxes import Sandbox
from pyctrd.offload import Offload
from pyctrd.rpc.convert.sandboxes import sandbox_from_proto, sandbox_to_proto
from pyctrd.rpc.headers import Context, namespace_of


class SandboxStore(Protocol):
    """Where sandboxes are kept."""

    def get(self, ns: str, id: str, /) -> Sandbox: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Sandbox]: ...
    def create(self, ns: str, sandbox: Sandbox, /) -> Sandbox: ...
    def update(self, ns: str, sandbox: Sandbox, paths: Sequence[str], /) -> Sandbox: ...
    def delete(self, ns: str, id: str, /) -> None: ...


class Store:
    """Records of what groups of containers share."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Store"]

    def __init__(self, store: SandboxStore, rows: Offload) -> None:
        """Serve `store`, whose calls run in `rows`."""
        self._store = store
        self._rows = rows

    async def Create(self, request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        """Store a sandbox. AlreadyExists, InvalidArgument."""
        sandbox = sandbox_from_proto(request.sandbox)
        sandbox = await self._rows.run(self._store.create, namespace_of(context), sandbox)
        return pb.StoreCreateResponse(sandbox=sandbox_to_proto(sandbox))

    async def Update(self, request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        """Change the fields that are named, or all that may change. NotFound, InvalidArgument."""
        sandbox = sandbox_from_proto(request.sandbox)
        sandbox = await self._rows.run(self._store.update, namespace_of(context), sandbox, tuple(request.fields))
        return pb.StoreUpdateResponse(sandbox=sandbox_to_proto(sandbox))

    async def Delete(self, request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        """Forget a sandbox. NotFound."""
        await self._rows.run(self._store.delete, namespace_of(context), request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        """Return the sandboxes that match, sorted by id. InvalidArgument."""
        found = await self._rows.run(self._store.list, namespace_of(context), tuple(request.filters))
        return pb.StoreListResponse(list=map(sandbox_to_proto, found))

    async def Get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        """Return a sandbox. NotFound."""
        found = await self._rows.run(self._store.get, namespace_of(context), request.sandbox_id)
        return pb.StoreGetResponse(sandbox=sandbox_to_proto(found))
