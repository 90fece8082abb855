"""The distribution API's reading side: one repository of a registry, through its mirrors and itself in turn.

Whatever arrives is held against the size that the descriptor names while it arrives; a manifest's digest is checked
here, a blob's by who stores it. Source: OCI distribution-spec v1.1.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from pyctr_wire.errors import (
    ApiError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import validate_digest
from pyctrd.core.references import Reference
from pyctrd.core.values import dataclass
from pyctrd.registry.errors import Interrupted
from pyctrd.registry.hosts import Capability, Endpoint
from pyctrd.registry.transport import MAX_ATTEMPTS, Call, Transport, paced, read_capped, server_message

_MANIFEST_TYPES: Final = image_spec.MANIFESTS | image_spec.INDEXES | image_spec.SCHEMA1
_ACCEPT: Final = ", ".join((*sorted(image_spec.MANIFESTS | image_spec.INDEXES), "*/*"))
# How often an endpoint is asked while there is another one to ask instead.
_IMPATIENT: Final = 2
_MOST_DIGITS: Final = 19  # of a number of bytes


class _Answer(NamedTuple):
    """A manifest as a registry sends it."""

    url: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository: `reference` names it and its registry, `endpoints` serve it in this order."""

    reference: Reference
    endpoints: Sequence[Endpoint]
    transport: Transport

    async def resolve(self) -> Descriptor:
        """Return what the reference's tag or digest points at.

        Raises what the last endpoint's answer means: NotFound, Unauthenticated, PermissionDenied, Unavailable, …
        """
        wanted = self.reference.object
        if not wanted:
            raise InvalidArgument(f'reference "{self.reference}" has neither tag nor digest')
        digest = validate_digest(self.reference.digest) if self.reference.digest else ""
        failure: ApiError = NotFound(f"{self.reference}: no endpoint of {self.reference.domain} may resolve it")
        for endpoint, attempts in self.choices(Capability.PULL if digest else Capability.RESOLVE):
            try:
                found = await self._head(endpoint, wanted, attempts) or await self._get(endpoint, wanted, attempts)
                if digest and found.digest != digest:
                    raise DataLoss(f"{endpoint.url} answers with {found.digest} for {self.reference}")
                return found
            except ApiError as error:
                failure = error
        raise failure

    async def check_login(self) -> None:
        """Ask the registry itself, no mirror, whether it knows us; nothing is asked of this repository.

        Raises Unauthenticated, PermissionDenied, Unavailable, …, FailedPrecondition if mirrors alone serve it.
        """
        domain = self.reference.domain
        failure: ApiError = FailedPrecondition(f"{domain} is served by other hosts alone: log in to those")
        for endpoint, _ in self.choices(Capability(0)):
            if not endpoint.serves(domain):
                continue
            call = Call("GET", f"{endpoint.url}/", scopes=frozenset(), headers={}, attempts=1)
            try:
                async with self.transport.request(endpoint, call) as response:
                    if response.status == 404:
                        raise NotFound(f"{call.url} is not there: is {domain} a registry?")
                    await self.expect(response, endpoint, 200)
                return
            except Unavailable as error:
                failure = error
        raise failure

    async def manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a manifest or index.

        Raises as `resolve` does, InvalidArgument for one over image_spec.MAX_DOCUMENT, DataLoss for wrong bytes.
        """
        if descriptor.size > image_spec.MAX_DOCUMENT:
            raise InvalidArgument(f"rejecting {descriptor.size} byte manifest for {self.reference}")
        failure: ApiError = NotFound(f"{descriptor.digest}: no endpoint of {self.reference.domain} may serve it")
        for endpoint, attempts in self.choices(Capability.PULL):
            accept = f"{descriptor.media_type}, */*"
            try:
                answer = await self._fetch(endpoint, descriptor.digest, accept, descriptor.size, attempts)
                if image_spec.digest_like(descriptor.digest, answer.data) != descriptor.digest:
                    raise DataLoss(f"{answer.url} answers with bytes of another digest ({len(answer.data)} of them)")
                return answer.data
            except ApiError as error:
                failure = error
        raise failure

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int, skip: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield an iterator over a blob's bytes from `offset` on, never beyond its size.

        `skip` endpoints are left for last: their bytes proved wrong. Raises as `resolve` does; the iterator raises
        Interrupted when the transfer breaks off and DataLoss when the server sends too much.
        """
        failure: ApiError = NotFound(f"{descriptor.digest}: no endpoint of {self.reference.domain} may serve it")
        headers = {"Range": f"bytes={offset}-{descriptor.size - 1}"} if offset else {}
        for endpoint, attempts in self.choices(Capability.PULL, skip):
            call = self.call(endpoint, "GET", f"blobs/{descriptor.digest}", headers=headers, attempts=attempts)
            async with AsyncExitStack() as stack:
                try:
                    response = await stack.enter_async_context(self.transport.request(endpoint, call))
                    await self.expect(response, endpoint, 200, *([206] if offset else []))
                    position = _position(response, offset)
                except ApiError as error:
                    failure = error
                    continue
                yield _parts(response, descriptor, position, offset)
                return
        raise failure

    async def settle(self, capability: Capability) -> None:
        """Find out whether the first endpoint for this speaks TLS, where only asking it can tell: for `choices`."""
        first, _ = next(self.choices(capability), (None, 0))
        if first is None or not first.may_fall_back:
            return
        for endpoint in (first, first.plain()):
            call = Call("GET", f"{endpoint.url}/", scopes=frozenset(), headers={}, attempts=1)
            with suppress(ApiError):  # any answer will do, and if there is none, what is asked for next says why
                async with self.transport.request(endpoint, call):
                    pass
            if self.transport.has_answered(endpoint):
                return

    def choices(self, capability: Capability, skip: int = 0) -> Iterator[tuple[Endpoint, int]]:
        """Return the endpoints that may be asked, and how often: the last one is worth waiting for.

        What has answered over TLS is not asked in the clear: that would show it what it refused, and hide why. What has
        answered in the clear, as it did not over TLS, is asked so from then on.
        """
        able: list[tuple[Endpoint, Endpoint | None]] = []
        for endpoint in self.endpoints:
            if capability not in endpoint.capabilities:
                continue
            plain = endpoint.plain() if endpoint.may_fall_back else None
            if plain is None or not self.transport.has_answered(plain):
                able.append((endpoint, None))
            if plain is not None:
                able.append((plain, endpoint))
        first = skip % len(able) if able else 0
        able = able[first:] + able[:first]
        for number, (endpoint, with_tls) in enumerate(able, 1):
            if with_tls is None or not self.transport.has_answered(with_tls):
                yield endpoint, MAX_ATTEMPTS if number == len(able) else _IMPATIENT

    def call(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        *,
        actions: str = "pull",
        headers: Mapping[str, str] | None = None,
        attempts: int = MAX_ATTEMPTS,
    ) -> Call:
        """Return a request for `path` below this repository at `endpoint`."""
        query = (
            "" if endpoint.serves(self.reference.domain) else f"{'&' if '?' in path else '?'}ns={self.reference.domain}"
        )
        return Call(
            method=method,
            url=f"{endpoint.url}/{self.reference.path}/{path}{query}",
            scopes=frozenset({f"repository:{self.reference.path}:{actions}"}),
            headers=headers or {},
            attempts=attempts,
        )

    async def expect(self, response: aiohttp.ClientResponse, endpoint: Endpoint, *statuses: int) -> None:
        """Raise what the status of `response` means unless it is one of `statuses`.

        Another try would not change a refusal: it is InvalidArgument for a bad request, else FailedPrecondition.
        """
        status = response.status
        if status in statuses:
            return
        if status == 404:
            raise NotFound(f"{self.reference}: {urlsplit(str(response.url)).netloc} does not have it")
        said = await server_message(response, endpoint)
        said = f": server message: {said}" if said else ""
        if status in (401, 403):
            refused = Unauthenticated if status == 401 else PermissionDenied
            action = "pull" if response.method in ("GET", "HEAD") else "push"
            raise refused(f"{action} access denied, repository does not exist or may require authorization{said}")
        url = response.url.with_query(None)  # the query of a redirect may hold its secret
        kind = InvalidArgument if status == 400 else FailedPrecondition if 400 < status < 500 else Unavailable
        raise kind(f"unexpected status from {response.method} request to {url}: {status}{said}")

    async def _head(self, endpoint: Endpoint, wanted: str, attempts: int) -> Descriptor | None:
        """Return what HEAD says the manifest is; None if that is not enough to know it."""
        headers = {"Accept": _ACCEPT}
        call = self.call(endpoint, "HEAD", f"manifests/{wanted}", headers=headers, attempts=attempts)
        async with self.transport.request(endpoint, call) as response:
            if response.status == 404 and _is_digest(wanted):
                return None  # perhaps it is among the blobs
            if 400 <= response.status < 500 and response.status not in (401, 403, 404):
                return None  # perhaps only to HEAD; if not, the answer to GET says why
            await self.expect(response, endpoint, 200)
            media_type = response.content_type
            digest = response.headers.get("Docker-Content-Digest", "")
            if not digest or not response.content_length or media_type not in _MANIFEST_TYPES:
                return None
            image_spec.check_size(response.content_length, call.url)
            return Descriptor(media_type, validate_digest(digest), response.content_length)

    async def _get(self, endpoint: Endpoint, wanted: str, attempts: int) -> Descriptor:
        """Fetch the manifest to find out what it is: for servers whose HEAD does not tell."""
        answer = await self._fetch(endpoint, wanted, _ACCEPT, image_spec.MAX_DOCUMENT, attempts)
        claimed = answer.media_type
        try:
            document = image_spec.parse_document(answer.data, claimed if claimed in _MANIFEST_TYPES else "")
        except InvalidArgument as error:
            raise InvalidArgument(
                f"{answer.url} answers with {claimed or 'something'}, not a manifest: {error}"
            ) from error
        digest = image_spec.digest_like(self.reference.digest, answer.data)
        return Descriptor(document.media_type, digest, len(answer.data))

    async def _fetch(self, endpoint: Endpoint, wanted: str, accept: str, most: int, attempts: int) -> _Answer:
        """Fetch a manifest of at most `most` bytes; one that a digest names may be among the blobs alone."""
        failure = NotFound(str(self.reference))
        for kind in ("manifests", "blobs") if _is_digest(wanted) else ("manifests",):
            call = self.call(endpoint, "GET", f"{kind}/{wanted}", headers={"Accept": accept}, attempts=attempts)
            async with self.transport.request(endpoint, call) as response:
                try:
                    await self.expect(response, endpoint, 200)
                    return _Answer(call.url, response.content_type, await read_capped(response, most))
                except NotFound as error:
                    failure = error
        raise failure


def _is_digest(wanted: str) -> bool:
    return ":" in wanted  # which no tag has


def _position(response: aiohttp.ClientResponse, offset: int) -> int:
    """Return where in the blob the body begins; a server may ignore the range that we asked for."""
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    if unit.lower() != "bytes" or not start.isdecimal() or len(start) > _MOST_DIGITS or int(start) > offset:
        raise Unavailable(f"{response.url.with_query(None)} sends another range than the one asked for")
    return int(start)


async def _parts(
    response: aiohttp.ClientResponse, descriptor: Descriptor, position: int, offset: int
) -> AsyncIterator[bytes]:
    """Yield the bytes from `offset` up to the descriptor's size; the body begins at `position`."""
    try:
        async for part in paced(response):
            start, position = position, position + len(part)
            if position > descriptor.size:
                raise DataLoss(f"{descriptor.digest}: the server sends more than its {descriptor.size} bytes")
            if position > offset:
                yield part[max(offset - start, 0) :]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Interrupted(f"{descriptor.digest}: broke off after {position} bytes: {error or 'too slow'}") from error
    if position < descriptor.size:
        raise Interrupted(f"{descriptor.digest}: ended after {position} of {descriptor.size} bytes")
