"""Transfers: from any source to any destination that makes sense together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from pyctr_wire.errors import InvalidArgument, Unimplemented
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.core.references import Reference, parse_reference
from pyctrd.registry.credentials import CredentialSource
from pyctrd.streams.byte_stream import ByteSender, receive_bytes
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer import naming
from pyctrd.transfer.exporter import export
from pyctrd.transfer.importer import import_archive, present
from pyctrd.transfer.progress import Listener, Progress, reported
from pyctrd.transfer.pull import fetch, pull
from pyctrd.transfer.push import push
from pyctrd.transfer.requests import Endpoint, ExportStream, ImageStore, ImportStream, Registry, Unpack
from pyctrd.transfer.stores import Session, Stores, session
from pyctrd.transfer.tree import Node, Reader, Selection, spec_descriptor
from pyctrd.transfer.unpack import ChainLocks, unpack_all

if TYPE_CHECKING:
    from pyctrd.registry.client import Repository

# Imports at the same time: each keeps a thread, for as long as its client takes to send the archive.
_IMPORTS: Final = 4

_T = TypeVar("_T")


class Registries(Protocol):
    """The way to registries."""

    def open(
        self,
        reference: Reference,
        *,
        credentials: CredentialSource | None = None,
        client: CredentialSource | None = None,
        headers: Mapping[str, str] | None = None,
        host_dir: str = "",
        default_scheme: str = "",
    ) -> "AbstractAsyncContextManager[Repository]": ...


class Transfers:
    """Carries out transfers for all clients of the daemon."""

    def __init__(self, stores: Stores, streams: StreamManager, registries: Registries, host: Platform) -> None:
        """`host` is this machine's platform."""
        self._stores = stores
        self._streams = streams
        self._registries = registries
        self._host = host
        self._locks = ChainLocks()
        self._imports = asyncio.Semaphore(_IMPORTS)

    async def transfer(
        self,
        ns: str,
        lease: str,
        source: Endpoint,
        destination: Endpoint,
        client: CredentialSource | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Move what `source` is to `destination`; when this returns it is there.

        Runs under `lease`, "" makes one for the time being. `client` is asked for credentials, `listener` hears
        how it goes. Raises Unimplemented for a pair that makes no sense, and what the transfer itself raises.
        """
        async with session(self._stores, ns, lease) as opened, reported(listener) as progress:
            match source, destination:
                case Registry(), ImageStore():
                    await self._pull(opened, source, destination, client, progress)
                case ImageStore(), Registry():
                    await self._push(opened, source, destination, client, progress)
                case ImportStream(), ImageStore():
                    await self._import(opened, source, destination, progress)
                case ImageStore(), ExportStream():
                    await self._export(opened, source, destination, progress)
                case ImageStore(), ImageStore():
                    await self._tag(opened, source, destination)
                case ImportStream(), ExportStream():
                    await self._echo(ns, source, destination)
                case _:
                    kinds = type(source).__name__, type(destination).__name__
                    raise Unimplemented(f"method Transfer not implemented for {kinds[0]} to {kinds[1]}")

    async def fetch(
        self,
        ns: str,
        source: Registry,
        destination: ImageStore,
        name: Callable[[Session, Descriptor, Node], Awaitable[_T]],
        credentials: CredentialSource | None = None,
        listener: Listener | None = None,
    ) -> _T:
        """Pull an image, and let `name` store it under the names that it is to have; return what that returns.

        Until it has a name, only the session keeps what was fetched. `credentials` came with the request. Raises as a
        pull does, and as `name` does.
        """
        async with session(self._stores, ns, "") as opened, reported(listener) as progress:
            progress.say(f"Resolving from OCI Registry ({source.reference})")
            async with self._open(source, credentials=credentials) as repository:
                target = await repository.resolve()
                tree = await fetch(
                    opened, repository, target, destination.name, destination, self._host, self._locks, progress
                )
            return await name(opened, target, tree)

    async def unpack(self, ns: str, name: str, wanted: Unpack) -> None:
        """Unpack an image that is in the store already. Raises NotFound if it or a blob of it is not."""
        selection = Selection((wanted.platform or self._host,), 1, tolerant=True)
        async with session(self._stores, ns, "") as opened, reported(None) as progress:
            image = await self._image(opened, name)
            reader = Reader(lambda descriptor, _: opened.document(descriptor), selection)
            tree = await reader.read(spec_descriptor(image.target), image.name)
            await unpack_all(opened, tree, [wanted], self._host, self._locks, progress, lambda _: present(opened))

    def _open(
        self,
        registry: Registry,
        *,
        credentials: CredentialSource | None = None,
        client: CredentialSource | None = None,
    ) -> "AbstractAsyncContextManager[Repository]":
        return self._registries.open(
            parse_reference(registry.reference),
            credentials=credentials,
            client=client,
            headers=registry.headers,
            host_dir=registry.host_dir,
            default_scheme=registry.default_scheme,
        )

    async def _pull(
        self,
        opened: Session,
        source: Registry,
        destination: ImageStore,
        client: CredentialSource | None,
        progress: Progress,
    ) -> None:
        async with self._open(source, client=client) as repository:
            await pull(opened, repository, destination, self._host, self._locks, progress)

    async def _push(
        self,
        opened: Session,
        source: ImageStore,
        destination: Registry,
        client: CredentialSource | None,
        progress: Progress,
    ) -> None:
        image = await self._image(opened, source.name)
        async with self._open(destination, client=client) as repository:
            from pyctrd.registry.uploads import uploads_to  # not before a registry is open: aiohttp comes with it

            await push(opened, source, image, await uploads_to(repository), repository.reference, progress)

    async def _import(self, opened: Session, source: ImportStream, destination: ImageStore, progress: Progress) -> None:
        async with self._imports:
            chunks = receive_bytes(self._streams.get(opened.ns, source.stream))
            await import_archive(opened, chunks, source, destination, self._host, self._locks, progress)

    async def _export(self, opened: Session, source: ImageStore, destination: ExportStream, progress: Progress) -> None:
        sender = ByteSender(self._streams.get(opened.ns, destination.stream))
        names = [source.name] if source.name else []
        names += [extra.name for extra in source.extra_references if not extra.is_prefix]
        images = [await self._image(opened, name) for name in dict.fromkeys(names)]
        if not images:
            raise InvalidArgument("an export needs the name of an image")
        await export(opened, images, destination, self._host, sender.write, progress)
        await sender.finish_archive()

    async def _tag(self, opened: Session, source: ImageStore, destination: ImageStore) -> None:
        image = await self._image(opened, source.name)
        names = naming.names_of_pulled(destination, image.target.digest)
        if not names:
            raise InvalidArgument("a tag needs a name")
        for name in names:
            await opened.store_image(Image(name, image.target, {**image.labels, **destination.labels}))

    async def _echo(self, ns: str, source: ImportStream, destination: ExportStream) -> None:
        sender = ByteSender(self._streams.get(ns, destination.stream))
        async for chunk in receive_bytes(self._streams.get(ns, source.stream)):
            await sender.write(chunk)
        await sender.finish()

    async def _image(self, opened: Session, name: str) -> Image:
        return await self._stores.rows.run(self._stores.images.get, opened.ns, name)
