"""PullImage: pulls of one image at the same time are one pull, which ends when nobody waits for it or nothing arrives.

Who comes with other credentials does not share: he must show them to the registry himself.
Source: CRI v1; containerd internal/cri/server/images/image_pull.go; kubelet pkg/kubelet/images.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import field
from typing import Final, Protocol, TypeVar

from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    Cancelled,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    UnknownError,
    error_for,
)
from pyctr_wire.oci.image_spec import Manifest
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.core.references import Reference
from pyctrd.core.values import dataclass
from pyctrd.cri.image_auth import only_for
from pyctrd.cri.image_index import MANAGED, MANAGED_LABEL, PINNED, PINNED_LABEL, reference_of
from pyctrd.cri.images import NAMESPACE
from pyctrd.registry.credentials import Credentials, CredentialSource
from pyctrd.runtime.operations import Operation, Operations
from pyctrd.transfer.progress import Listener, Report
from pyctrd.transfer.requests import ImageStore, Registry, Unpack
from pyctrd.transfer.stores import Session
from pyctrd.transfer.tree import Node, choose

_T = TypeVar("_T")

# What kubelets recognise a registry that cannot be reached by: the text's beginning, under code Unknown.
_REGISTRY_UNAVAILABLE: Final = "RegistryUnavailable"

# What people and their tools look for when access is refused, whoever refuses it.
_DENIED: Final = "pull access denied, repository does not exist or may require authorization"

_ARRIVING: Final = frozenset({"waiting", "downloading"})


class Fetch(Protocol):
    """A transfer that leaves the naming to us."""

    def __call__(
        self,
        ns: str,
        source: Registry,
        destination: ImageStore,
        name: Callable[[Session, Descriptor, Node], Awaitable[_T]],
        credentials: CredentialSource | None,
        listener: Listener | None,
        /,
    ) -> Awaitable[_T]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be pulled, for which snapshotter, and whom to say we are: what makes two pulls the same."""

    reference: Reference
    snapshotter: str
    credentials: Credentials | None


@dataclass(slots=True)
class _Shared:
    """A pull under way, and how many wait for its image's id."""

    outcome: "asyncio.Future[str]"
    task: "asyncio.Task[None] | None" = None
    waiters: int = 0


class Pulls:
    """Pulls images for the kubelet."""

    def __init__(
        self,
        fetch: Fetch,
        host: Platform,
        pinned: frozenset[str],
        patience: float,
        operations: Operations,
        group: asyncio.TaskGroup,
    ) -> None:
        """Pull by `fetch` for `host`, this machine's platform, in tasks of `group`, listed among `operations`.

        Images whose references are in `pinned` are never removed by the kubelet's own collection; `patience` is how
        many seconds may pass without a byte.
        """
        self._fetch = fetch
        self._host = host
        self._pinned = frozenset(str(reference_of(one) or one) for one in pinned)
        self._patience = patience
        self._operations = operations
        self._group = group
        self._shared: dict[Request, _Shared] = {}

    async def pull(self, request: Request) -> str:
        """Pull an image, unpack it, and return its id; its names are there when this returns.

        The last one to be cancelled while he waits cancels the pull: what arrived is found by the next one.
        Raises what the registry's answer means, in texts that kubelets know; Cancelled when nothing has arrived
        for too long; what unpacking raises.
        """
        shared = self._shared.get(request)
        if shared is None:
            shared = self._shared[request] = _Shared(asyncio.get_running_loop().create_future())
            shared.task = self._group.create_task(self._carry_out(request, shared), name=f"pull {request.reference}")
        shared.waiters += 1
        try:
            return await asyncio.shield(shared.outcome)
        finally:
            shared.waiters -= 1
            if not shared.waiters and shared.task is not None:
                shared.task.cancel()
                self._forget(request, shared)

    async def _carry_out(self, request: Request, shared: _Shared) -> None:
        """Pull, and tell those who wait; raises nothing, as the daemon's other tasks are in the same group."""
        try:
            image_id = await self._pull(request)
        except asyncio.CancelledError:
            _tell(shared, Unavailable("the daemon is stopping"))
            raise
        except Exception as error:  # whatever it is, it belongs to those who wait
            _tell(shared, error)
        else:
            if not shared.outcome.done():
                shared.outcome.set_result(image_id)
        finally:
            self._forget(request, shared)

    def _forget(self, request: Request, shared: _Shared) -> None:
        if self._shared.get(request) is shared:
            del self._shared[request]

    async def _pull(self, request: Request) -> str:
        reference = request.reference
        source = Registry(str(reference))
        destination = ImageStore(
            str(reference), platforms=(self._host,), manifest_limit=1, unpacks=(Unpack(None, request.snapshotter),)
        )
        credentials = only_for(reference.domain, request.credentials) if request.credentials else None
        with self._operations.listed(NAMESPACE, f"image {reference}", "pull") as operation:
            try:
                async with asyncio.timeout(self._patience) as limit:
                    watch = _Watch(limit, self._patience, operation)
                    return await self._fetch(
                        NAMESPACE, source, destination, self._naming(reference), credentials, watch
                    )
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise Cancelled(
                    f'failed to pull image "{reference}": nothing has arrived for {self._patience:g} seconds; '
                    "the next pull goes on where this one ended"
                ) from error
            except ApiError as error:
                raise _failure(reference, error) from error

    def _naming(self, reference: Reference) -> Callable[[Session, Descriptor, Node], Awaitable[str]]:
        labels = {MANAGED_LABEL: MANAGED}
        if str(reference) in self._pinned:
            labels[PINNED_LABEL] = PINNED

        async def name(session: Session, target: Descriptor, tree: Node) -> str:
            """Store the records of what was fetched, by id, by tag and by digest, and return the id."""
            image_id = self._id_of(tree)
            by_digest = Reference(reference.domain, reference.path, "", target.digest)
            for one in dict.fromkeys((image_id, str(reference), str(by_digest))):
                await _store(session, Image(one, target, labels))
            return image_id

        return name

    def _id_of(self, tree: Node) -> str:
        """Return the id of the image in `tree` that this machine can run. Raises NotFound, InvalidArgument."""
        images = list(tree.images())
        chosen = choose([image.platform for image in images], [self._host], 1)
        if not chosen:
            others = ", ".join(dict.fromkeys(str(image.platform) for image in images))
            raise NotFound(f"no match for platform {self._host} in manifest {tree.descriptor.digest}, for {others}")
        image = images[chosen[0]]
        if image.config is None or not isinstance(image.document, Manifest):
            raise InvalidArgument(f"{image.descriptor.digest} is not the image of a container")
        return image.document.config.digest


async def _store(session: Session, image: Image) -> None:
    """Create a record, or let it point at the new target; labels that others have given it stay."""
    rows, images = session.stores.rows, session.stores.images
    mask = ("target", *(f"labels.{key}" for key in image.labels))
    while True:  # until nobody removes it, or brings it, in between
        try:
            known = await rows.run(images.get, session.ns, image.name)
            if known.target != image.target or not image.labels.items() <= known.labels.items():
                await rows.run(images.update, session.ns, image, mask)
            return
        except NotFound:
            with suppress(AlreadyExists):
                await rows.run(images.create, session.ns, image, lease=session.lease)
                return


def _tell(shared: _Shared, error: Exception) -> None:
    """Pass an error to those who wait; an exception that nobody fetches would be logged as a bug."""
    if shared.outcome.done():
        return
    if shared.waiters:
        shared.outcome.set_exception(error)
    else:
        shared.outcome.cancel()


def _failure(reference: Reference, error: ApiError) -> ApiError:
    """Return the error of a failed pull: of the same class, but for what kubelets know by its text."""
    text = f'failed to pull image "{reference}": {error}'
    if isinstance(error, Unauthenticated | PermissionDenied) and _DENIED not in text:
        text = f'failed to pull image "{reference}": {_DENIED}: {error}'
    if isinstance(error, Unavailable):
        return UnknownError(f"{_REGISTRY_UNAVAILABLE}: {text}")
    return error_for(error.code, text)


@dataclass(slots=True)
class _Watch:
    """Moves the limit on as long as something arrives, and lifts it while the rest is ours to do: to unpack."""

    limit: asyncio.Timeout
    patience: float
    operation: Operation
    states: dict[str, str] = field(default_factory=dict)

    async def send(self, report: Report) -> None:
        """Take in a report."""
        if report.descriptor is None:
            self.operation.stage = report.event
        else:
            self.states[report.name] = report.event
        states = self.states.values()
        waits = not self.states or not _ARRIVING.isdisjoint(states)
        busy = "extracting" in states
        if not self.limit.expired():  # the last reports are sent after that, too
            now = asyncio.get_running_loop().time()
            self.limit.reschedule(now + self.patience if waits and not busy else None)

    async def close(self) -> None:
        """Nothing is left to do."""
