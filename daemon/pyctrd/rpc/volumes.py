"""The calls of pyctr.v1.Engine about volumes."""

from typing import Protocol

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.pyctr import engine_pb2 as pb
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.labels import Labels
from pyctrd.offload import Offload
from pyctrd.rpc.convert.well_known import time_to_proto
from pyctrd.runtime.named_volumes import NamedVolume
from pyctrd.runtime.volumes import Volume


class OwnVolumes(Protocol):
    """Volumes that were made for one container each."""

    def list(self, ns: str, /) -> list[Volume]: ...
    def remove(self, ns: str, name: str, /) -> None: ...
    def remove_of(self, ns: str, container: str, /) -> None: ...


class NamedVolumes(Protocol):
    """Volumes for all containers of a namespace."""

    def create(self, ns: str, name: str, labels: Labels, /) -> str: ...
    def list(self, ns: str, /) -> list[NamedVolume]: ...
    def has(self, ns: str, name: str, /) -> bool: ...
    def remove(self, ns: str, name: str, /) -> None: ...


class Volumes:
    """All volumes."""

    def __init__(self, own: OwnVolumes, named: NamedVolumes, bulk: Offload) -> None:
        """The stores walk directories, in `bulk`."""
        self._own = own
        self._named = named
        self._bulk = bulk

    async def create(self, ns: str, request: pb.CreateVolumeRequest) -> pb.CreateVolumeResponse:
        """Make a volume with a name. Raises InvalidArgument."""
        name = await self._bulk.run(self._named.create, ns, request.name, dict(request.labels))
        return pb.CreateVolumeResponse(name=name)

    async def list(self, ns: str) -> pb.VolumesResponse:
        """Return the volumes of a namespace."""
        own = await self._bulk.run(self._own.list, ns)
        named = await self._bulk.run(self._named.list, ns)
        return pb.VolumesResponse(volumes=[*map(_own, own), *map(_named, named)])

    async def remove(self, ns: str, request: pb.RemoveVolumesRequest) -> pb.RemoveVolumesResponse:
        """Remove one volume, or those made for one container. Raises NotFound, FailedPrecondition while it is used."""
        if request.name and request.container:
            raise InvalidArgument("name a volume or a container, not both")
        if not request.name:
            validate_identifier("container.ID", request.container)  # it is the name of a folder
            await self._bulk.run(self._own.remove_of, ns, request.container)
        elif await self._bulk.run(self._named.has, ns, request.name):
            await self._bulk.run(self._named.remove, ns, request.name)
        else:
            await self._bulk.run(self._own.remove, ns, request.name)
        return pb.RemoveVolumesResponse()


def _own(one: Volume) -> pb.VolumesResponse.Volume:
    return pb.VolumesResponse.Volume(
        name=one.name, container=one.container, target=one.target, path=str(one.path), used=one.used
    )


def _named(one: NamedVolume) -> pb.VolumesResponse.Volume:
    return pb.VolumesResponse.Volume(
        name=one.name,
        path=str(one.path),
        used=bool(one.containers),
        users=one.containers,
        labels=one.labels,
        created_at=time_to_proto(one.created_at),
    )
