"""The distribution API's writing side: blobs and manifests go to the one endpoint that may be pushed to.

Source: OCI distribution-spec v1.1, "Push".
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final
from urllib.parse import quote, urlsplit

from pyctr_wire.errors import FailedPrecondition, Unavailable
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.values import dataclass
from pyctrd.registry.client import Repository
from pyctrd.registry.hosts import Capability, Endpoint
from pyctrd.registry.transport import Body, Call, redirected

# How often a blob is sent from its start before a push fails.
_MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Uploads:
    """Pushes into `repository` through `endpoint`."""

    repository: Repository
    endpoint: Endpoint

    async def has(self, descriptor: Descriptor, tag: str = "") -> bool:
        """Say whether the registry has this blob or manifest; with `tag`, whether the tag names it already."""
        is_document = image_spec.is_document(descriptor.media_type)
        path = f"manifests/{tag or descriptor.digest}" if is_document else f"blobs/{descriptor.digest}"
        call = self._call("HEAD", path, {"Accept": f"{descriptor.media_type}, */*"})
        async with self.repository.transport.request(self.endpoint, call) as response:
            if response.status == 404:
                return False
            await self.repository.expect(response, self.endpoint, 200)
            return not tag or response.headers.get("Docker-Content-Digest") == descriptor.digest

    async def blob(self, descriptor: Descriptor, body: Body, sources: tuple[str, ...] = ()) -> None:
        """Upload a blob, or have one of the repositories `sources` of the same registry lend it.

        `body` opens the bytes anew for each attempt. Raises as Repository.resolve does, Unavailable after three
        attempts that broke off.
        """
        for source in sources:
            if await self._start(descriptor, source) is None:
                return
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            location = await self._start(descriptor)
            if location is None:
                return
            # Not repeated by itself: what broke off leaves the session in a state that nobody knows.
            call = replace(
                self._call("PUT", "blobs/uploads/", {"Content-Type": "application/octet-stream"}),
                url=f"{location}{'&' if urlsplit(location).query else '?'}digest={quote(descriptor.digest, safe='')}",
                body=body,
                size=descriptor.size,
                attempts=1,
            )
            try:
                async with self.repository.transport.request(self.endpoint, call) as response:
                    await self.repository.expect(response, self.endpoint, 201, 204)
                return
            except Unavailable:
                if attempt == _MAX_ATTEMPTS:
                    raise

    async def manifest(self, descriptor: Descriptor, data: bytes, tag: str = "") -> None:
        """Upload a manifest or index by its digest or under `tag`; what it refers to must be there already."""
        call = self._call("PUT", f"manifests/{tag or descriptor.digest}", {"Content-Type": descriptor.media_type})
        async with self.repository.transport.request(self.endpoint, replace(call, body=data)) as response:
            await self.repository.expect(response, self.endpoint, 200, 201, 202)
            stored = response.headers.get("Docker-Content-Digest", descriptor.digest)
        if stored != descriptor.digest:
            raise FailedPrecondition(f"{self.repository.reference.domain} stored {stored}, not {descriptor.digest}")

    async def _start(self, descriptor: Descriptor, source: str = "") -> str | None:
        """Open an upload session and return its URL; None if the registry found the blob in `source`."""
        path = "blobs/uploads/"
        if source:
            path += f"?mount={quote(descriptor.digest, safe='')}&from={quote(source, safe='')}"
        call = self._call("POST", path)
        if source:
            call = replace(call, scopes=call.scopes | {f"repository:{source}:pull"})
        async with self.repository.transport.request(self.endpoint, call) as response:
            await self.repository.expect(response, self.endpoint, 201, 202)
            if response.status == 201:
                return None
            location = response.headers.get("Location", "")
            if not location:
                raise Unavailable(f"{self.endpoint.url} opened an upload and does not say where")
            return redirected(str(response.url), location)

    def _call(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Call:
        return self.repository.call(self.endpoint, method, path, actions="pull,push", headers=headers)


async def uploads_to(repository: Repository) -> Uploads:
    """Return the way to push into `repository`; raises FailedPrecondition if no endpoint takes pushes."""
    await repository.settle(Capability.PUSH)
    for endpoint, _ in repository.choices(Capability.PUSH):
        return Uploads(repository, endpoint)
    raise FailedPrecondition(f"no endpoint of {repository.reference.domain} may be pushed to")
