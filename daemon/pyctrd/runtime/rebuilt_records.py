"""Records of containers that run, made anew from their bundles: for when the database was lost without a copy.

Without its record a container could not be managed, and its snapshot would be collected once the rebuild's lease is
over. What only the record knew stays lost: labels, the image's name, options.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pyctr_wire.errors import ApiError, NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.snapshots import Kind, SnapshotInfo
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle, Bundles
from pyctrd.runtime.creation import SPEC_URL

_log = Logger("pyctrd.runtime")


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...
    def create(self, ns: str, container: Container, /) -> Container: ...


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    def stat(self, ns: str, key: str, /) -> SnapshotInfo: ...


class Snapshotters(Protocol):
    """The snapshotters by name."""

    def named(self, snapshotter: str, /) -> Snapshotter: ...
    def roots(self) -> Mapping[str, Path]: ...


def rebuild_records(bundles: Bundles, containers: ContainerRows, snapshots: Snapshotters) -> None:
    """Give a record to each container that has a bundle and none."""
    whole, _, _ = bundles.list()
    for bundle in whole:
        ns, id = bundle.manifest.namespace, bundle.manifest.id
        try:
            containers.get(ns, id)
        except NotFound:
            try:
                containers.create(ns, _record(bundle, snapshots))
            except (ApiError, OSError) as error:
                _log.error("record.not_rebuilt", namespace=ns, container=id, error=str(error))
            else:
                _log.warning("record.rebuilt", namespace=ns, container=id)


def _record(bundle: Bundle, snapshots: Snapshotters) -> Container:
    manifest = bundle.manifest
    snapshotter = _snapshotter_with(manifest.namespace, manifest.id, snapshots)
    return Container(
        manifest.id,
        runtime_name=manifest.runtime,
        spec=AnyValue(SPEC_URL, (bundle.path / "config.json").read_bytes()),
        snapshotter=snapshotter,
        snapshot_key=manifest.id if snapshotter else "",
    )


def _snapshotter_with(ns: str, key: str, snapshots: Snapshotters) -> str:
    """Return who has a snapshot that may be the container's: all known clients name it as the container; "" if none."""
    for name in snapshots.roots():
        try:
            if snapshots.named(name).stat(ns, key).kind is not Kind.COMMITTED:
                return name
        except NotFound:
            continue
    return ""
