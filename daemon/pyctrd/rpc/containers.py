"""containerd.services.containers.v1."""

from typing import ClassVar, Protocol

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb
from pyctrd.core.containers import Container
from pyctrd.offload import Offload
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.rpc.convert.containers import container_from_proto, container_to_proto
from pyctrd.rpc.convert.well_known import mask_from_proto
from pyctrd.rpc.headers import Context, namespace_of


class ContainerStore(Protocol):
    """Where containers are written."""

    def create(self, ns: str, container: Container, /) -> Container: ...
    def update(self, ns: str, container: Container, mask: tuple[str, ...], /) -> Container: ...
    def delete(self, ns: str, id: str, /) -> None: ...


class Containers:
    """Records of what to run. Reads are answered with bytes that were encoded before."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Containers"]

    def __init__(self, store: ContainerStore, index: ContainerIndex, rows: Offload) -> None:
        """Write to `store`, whose calls run in `rows`; read from `index`, which must hear of every change."""
        self._store = store
        self._index = index
        self._rows = rows

    async def Get(self, request: pb.GetContainerRequest, context: Context) -> bytes:
        """Return a container. NotFound."""
        return (await self._index.get(namespace_of(context), request.id)).encoded

    async def List(self, request: pb.ListContainersRequest, context: Context) -> bytes:
        """Return the containers that match, sorted by id. InvalidArgument."""
        entries = await self._index.list(namespace_of(context), tuple(request.filters))
        return b"".join([entry.encoded for entry in entries])

    async def ListStream(self, request: pb.ListContainersRequest, context: Context) -> None:
        """Send the containers that match, one a message, sorted by id. InvalidArgument."""
        for entry in await self._index.list(namespace_of(context), tuple(request.filters)):
            await context.write(entry.encoded)

    async def Create(self, request: pb.CreateContainerRequest, context: Context) -> pb.CreateContainerResponse:
        """Create a container; neither image nor snapshot need exist. AlreadyExists, InvalidArgument."""
        container = await self._rows.run(
            self._store.create,
            namespace_of(context),
            container_from_proto(request.container),
        )
        return pb.CreateContainerResponse(container=container_to_proto(container))

    async def Update(self, request: pb.UpdateContainerRequest, context: Context) -> pb.UpdateContainerResponse:
        """Change what the mask names, or all that may change. NotFound, InvalidArgument."""
        container = await self._rows.run(
            self._store.update,
            namespace_of(context),
            container_from_proto(request.container),
            mask_from_proto(request.update_mask),
        )
        return pb.UpdateContainerResponse(container=container_to_proto(container))

    async def Delete(self, request: pb.DeleteContainerRequest, context: Context) -> Empty:
        """Delete a container's record, whatever its task does. NotFound."""
        await self._rows.run(self._store.delete, namespace_of(context), request.id)
        return Empty()
