"""Pull: from a reference in a registry to an image in the store, unpacked if that was asked for.

The order, and what a crash leaves: blobs under a lease that expires, then labels that keep children with their
parents, then snapshots, then the image. No image is visible before all that it needs is there.
"""

from datetime import UTC, datetime
from typing import Protocol

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.platforms import Platform
from pyctrd.transfer import naming
from pyctrd.transfer.fetch import Fetcher
from pyctrd.transfer.fetch import Repository as BlobSource
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.requests import ImageStore
from pyctrd.transfer.stores import Session
from pyctrd.transfer.together import Together
from pyctrd.transfer.tree import Node, Reader, Selection, misfits, spec_descriptor
from pyctrd.transfer.unpack import ChainLocks, Obtain, unpack_all


class Repository(BlobSource, Protocol):
    """Where an image comes from."""

    async def resolve(self) -> Descriptor: ...


async def pull(
    session: Session,
    repository: Repository,
    destination: ImageStore,
    host: Platform,
    locks: ChainLocks,
    progress: Progress,
) -> None:
    """Pull `repository`'s reference into `destination`; `host` is this machine's platform.

    Safe to cancel and to repeat: what arrived is found again. Raises what the registry's answers mean, InvalidArgument
    for an image that is not well-formed, NotFound if it is not for the platforms that were asked for.
    """
    reference = repository.reference
    progress.say(f"Resolving from OCI Registry ({reference})")
    target = await repository.resolve()
    names = naming.names_of_pulled(destination, target.digest)
    if not names:
        raise InvalidArgument("a pull needs a name for the image")
    await fetch(session, repository, target, names[0], destination, host, locks, progress)
    for image in naming.images(names, target, destination.labels, datetime.now(UTC)):
        await session.store_image(image)
        progress.say("saved", image.name, target)
    progress.say(f"Completed pull from OCI Registry ({reference})")


async def fetch(
    session: Session,
    repository: Repository,
    target: Descriptor,
    name: str,
    destination: ImageStore,
    host: Platform,
    locks: ChainLocks,
    progress: Progress,
) -> Node:
    """Do what a pull does before the image has a name, and return what was fetched; reports call it `name`.

    The session's lease alone keeps it. Raises as `pull` does.
    """
    progress.say(f"Pulling from OCI Registry ({repository.reference})")
    progress.say("fetching image content", name, target)
    fetcher = Fetcher(session, repository, progress)
    selection = Selection(destination.platforms, destination.manifest_limit, destination.all_metadata)
    tree = await Reader(fetcher.document, selection).read(spec_descriptor(target), name)
    for warning in misfits(tree, destination.wanted(host)):
        progress.say(warning)

    await _fetch_and_unpack(session, tree, fetcher, destination, host, locks, progress)
    for node in tree.walk():
        await session.label(node.descriptor.digest, node.gc_labels())
    return tree


async def _fetch_and_unpack(
    session: Session,
    tree: Node,
    fetcher: Fetcher,
    destination: ImageStore,
    host: Platform,
    locks: ChainLocks,
    progress: Progress,
) -> None:
    """Fetch all layers that are wanted; an image's lower layers are unpacked while its upper ones still arrive."""
    async with Together() as tasks:
        for node in tree.images():
            for layer in node.layers():
                tasks.create_task(fetcher.blob(layer, node.ref))

        def obtaining(node: Node) -> Obtain:
            return lambda layer: fetcher.blob(layer, node.ref)

        await unpack_all(session, tree, destination.unpacks, host, locks, progress, obtaining)
