"""Containers in their wire form, so that asking for them again costs neither a row nor an encoding.

Every `ps` and every kubelet asks for all containers, and specs are large. What was encoded stays until
its container changes, which `changed` hears of after each commit and before the call that made the
change returns: nobody reads older than what he wrote.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb
from pyctr_wire.errors import NotFound
from pyctrd.core.containers import Container, fields, without_larger_parts
from pyctrd.core.filters import compile_filters
from pyctrd.core.labels import Labels
from pyctrd.offload import Offload
from pyctrd.rpc.convert.containers import container_to_proto


class ContainerRows(Protocol):
    """Where containers are read from."""

    def get(self, ns: str, id: str, /) -> Container: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Container]: ...


class Entry(NamedTuple):
    """A container without its larger parts, and its encoding: a whole GetContainerResponse.

    A ListContainersResponse is a row of these, end to end, and a ListContainerMessage is one: the
    container has field number 1 in all three.
    """

    container: Container
    encoded: bytes

    @property
    def id(self) -> str:
        """The container's id."""
        return self.container.id

    @property
    def labels(self) -> Labels:
        """The container's labels."""
        return self.container.labels


class _Namespace:
    """What is known of one namespace's containers."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.complete = False  # whether `entries` has all containers but those in `stale`
        # Containers that changed since they were read, each with an object that tells its changes apart.
        self.stale: dict[str, object] = {}
        self.version = object()  # another one after each change
        self.refresh = asyncio.Lock()


class ContainerIndex:
    """Reads containers through memory. Used on the event loop, but for `changed`."""

    def __init__(self, store: ContainerRows, rows: Offload) -> None:
        """Read from `store`, whose calls run in `rows`."""
        self._store = store
        self._rows = rows
        self._namespaces: defaultdict[str, _Namespace] = defaultdict(_Namespace)

    def changed(self, namespace: str, container: str) -> None:
        """Forget a container: it was created, updated or deleted. Called from any thread."""
        known = self._namespaces[namespace]
        known.stale[container] = known.version = object()

    async def get(self, namespace: str, container: str) -> Entry:
        """Return a container. Raises NotFound."""
        known = self._namespaces[namespace]
        if container not in known.stale and (entry := known.entries.get(container)) is not None:
            return entry
        version = known.version
        entry = self._rows.at_once(self._read, namespace, container)
        # A refresh under way may have read an older one, and would not know that this one is newer.
        if known.version is version and not known.refresh.locked():
            known.entries[container] = entry
            known.stale.pop(container, None)
        return entry

    async def list(self, namespace: str, filters: Sequence[str]) -> Sequence[Entry]:
        """Return the containers that match, sorted by id. Raises InvalidArgument for a malformed filter."""
        matches = compile_filters(filters)
        known = self._namespaces[namespace]
        if known.stale or not known.complete:
            async with known.refresh:
                await self._refresh(namespace, known)
        entries = [entry for _, entry in sorted(known.entries.items())]
        return [entry for entry in entries if matches(fields(entry.container))] if filters else entries

    async def _refresh(self, namespace: str, known: _Namespace) -> None:
        """Read what is missing or stale; what changes meanwhile stays stale."""
        stale = dict(known.stale)
        if not known.complete:
            known.entries = await self._rows.run(self._read_all, namespace)
            known.complete = True
        else:
            fresh = await self._rows.run(self._read_some, namespace, stale)
            for container in stale:
                known.entries.pop(container, None)
            known.entries.update(fresh)
        for container, change in stale.items():
            if known.stale.get(container) is change:
                del known.stale[container]

    def _read(self, namespace: str, container: str) -> Entry:
        return _entry(self._store.get(namespace, container))

    def _read_some(self, namespace: str, containers: Iterable[str]) -> dict[str, Entry]:
        entries = {}
        for container in containers:
            with contextlib.suppress(NotFound):
                entries[container] = self._read(namespace, container)
        return entries

    def _read_all(self, namespace: str) -> dict[str, Entry]:
        return {container.id: _entry(container) for container in self._store.list(namespace, ())}


def _entry(container: Container) -> Entry:
    encoded = pb.GetContainerResponse(container=container_to_proto(container)).SerializeToString()
    return Entry(without_larger_parts(container), encoded)
