"""Snapshots: layers of images are unpacked again, all others travel as what they differ from their parents by.

A snapshot that is being filled carries our label until it is complete, or has a key of ours: what an interrupted
run left is removed, and made again. Source: containerd.services.snapshots.v1, diff.v1.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from pyctr_wire.containerd.services.content.v1 import content_pb2
from pyctr_wire.containerd.services.diff.v1 import diff_pb2
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from pyctr_wire.containerd.types import descriptor_pb2
from pyctr_wire.errors import AlreadyExists, DataLoss, NotFound
from pyctr_wire.oci.image_spec import OCI_LAYER
from pyctrd.migration import content
from pyctrd.migration.layers import Layer
from pyctrd.migration.side import LABEL, Side

_SERVICE: Final = "/containerd.services.snapshots.v1.Snapshots/"
_DIFF: Final = "/containerd.services.diff.v1.Diff/"
_PLUGINS: Final = "/containerd.services.introspection.v1.Introspection/Plugins"


class Mark(StrEnum):
    """What our label says of a snapshot in the target."""

    UNFINISHED = "unfinished"
    WHILE_RUNNING = "copied-while-running"


def snapshotters(side: Side) -> list[str]:
    """Return the names of the snapshotters that work."""
    request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    found = side.call(_PLUGINS, request, introspection_pb2.PluginsResponse).plugins
    return sorted(plugin.id for plugin in found if not plugin.init_err.code)


def listed(side: Side, snapshotter: str) -> list[pb.Info]:
    """Return the snapshots of a snapshotter, parents before their children, without what a run of ours needs."""
    request = pb.ListSnapshotsRequest(snapshotter=snapshotter)
    found: dict[str, pb.Info] = {}
    for batch in side.receive(f"{_SERVICE}List", request, pb.ListSnapshotsResponse):
        found |= {info.name: info for info in batch.info if info.labels.get(LABEL) != Mark.UNFINISHED}
    ordered: dict[str, pb.Info] = {}
    for info in found.values():
        line: list[pb.Info] = []
        above: pb.Info | None = info
        while above is not None and above.name not in ordered:
            line.append(above)
            above = found.get(above.parent)
        ordered |= {one.name: one for one in reversed(line)}
    return list(ordered.values())


class Copier:
    """Brings the snapshots of one snapshotter from one namespace to another."""

    def __init__(self, source: Side, target: Side, snapshotter: str, layers: Mapping[str, Layer]) -> None:
        """`layers` are those of the images, by their chain ids."""
        self._source = source
        self._target = target
        self._name = snapshotter
        self._kind = f"snapshots/{snapshotter}"
        self._layers = layers

    def copy(self, info: pb.Info, runs: Callable[[], bool]) -> bool:
        """See that the target has a snapshot, whose parent it has; return whether it was missing.

        `runs` says whether a task writes to it in the source, or has since it was asked first: then it is copied as it
        is now, and once more by a later run. Raises NotFound if it has gone meanwhile, DataLoss if the target made
        something else of it, AlreadyExists if the target has another one of that name.
        """
        self._target.hold(self._kind, info.name)
        there = self.look_up(info.name)
        if there is not None and LABEL not in there.labels:
            if (there.kind, there.parent) != (info.kind, info.parent):
                raise AlreadyExists("the target has another snapshot by this name, which stays")
            return False
        if there is not None:
            mark = there.labels[LABEL]
            if mark != Mark.UNFINISHED and mark != self._as_copied(info.name):
                raise AlreadyExists("the target's own has been written to since it was copied, and stays")
            self._remove(info.name)
        match info.kind:
            case pb.VIEW:
                request = pb.ViewSnapshotRequest(
                    snapshotter=self._name, key=info.name, parent=info.parent, labels=info.labels
                )
                self._target.call(f"{_SERVICE}View", request, pb.ViewSnapshotResponse)
            case pb.ACTIVE:
                self._prepare(info.name, info)
                before = runs()
                self._apply_difference(info, info.name)
                self._finish(info, {LABEL: self._as_copied(info.name)} if before or runs() else {})
            case _:
                self._copy_committed(info)
        return True

    def _as_copied(self, name: str) -> str:
        """Return the mark of a snapshot that was copied while a task wrote to it: with how large it is now."""
        request = pb.UsageRequest(snapshotter=self._name, key=name)
        usage = self._target.call(f"{_SERVICE}Usage", request, pb.UsageResponse)
        return f"{Mark.WHILE_RUNNING} {usage.size} {usage.inodes}"

    def look_up(self, name: str) -> pb.Info | None:
        """Return what the target knows of a snapshot, None if it is not there."""
        try:
            request = pb.StatSnapshotRequest(snapshotter=self._name, key=name)
            return self._target.call(f"{_SERVICE}Stat", request, pb.StatSnapshotResponse).info
        except NotFound:
            return None

    def _copy_committed(self, info: pb.Info) -> None:
        key = f"pyctr-migrate-{info.name}"
        self._remove(key)
        self._prepare(key, info)
        layer = self._layers.get(info.name)
        if (
            layer is not None
            and layer.parent == info.parent
            and content.look_up(self._target, layer.blob.digest) is not None
        ):
            self._apply(key, layer.blob, layer.diff_id)
        else:
            self._apply_difference(info, key)
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=info.name, key=key, labels=info.labels)
        self._target.call(f"{_SERVICE}Commit", request, Empty)

    def _prepare(self, key: str, info: pb.Info) -> None:
        labels = {**info.labels, LABEL: Mark.UNFINISHED}
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=info.parent, labels=labels)
        self._target.call(f"{_SERVICE}Prepare", request, pb.PrepareSnapshotResponse)

    def _finish(self, info: pb.Info, mark: Mapping[str, str]) -> None:
        """Take our label off, or have it say something else."""
        labels = {**info.labels, **mark}
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=pb.Info(name=info.name, labels=labels),
            update_mask=FieldMask(paths=["labels"]),
        )
        self._target.call(f"{_SERVICE}Update", request, pb.UpdateSnapshotResponse)

    def _remove(self, key: str) -> None:
        with suppress(NotFound):
            request = pb.RemoveSnapshotRequest(snapshotter=self._name, key=key)
            self._target.call(f"{_SERVICE}Remove", request, Empty)

    def _apply(self, key: str, blob: descriptor_pb2.Descriptor, diff_id: str) -> None:
        """Unpack a blob that the target has; unpacked it must have the digest `diff_id`."""
        mounts = self._mounts(self._target, key)
        request = diff_pb2.ApplyRequest(diff=blob, mounts=mounts)
        applied = self._target.call(f"{_DIFF}Apply", request, diff_pb2.ApplyResponse).applied
        if applied.digest != diff_id:
            raise DataLoss(f"snapshot {key}: {blob.digest} has the digest {applied.digest} unpacked, not {diff_id}")

    def _apply_difference(self, info: pb.Info, key: str) -> None:
        """Fill the target's snapshot `key` with what the source's snapshot has other than its parent."""
        with self._view(info.parent) as lower, self._seen(info) as upper:
            request = diff_pb2.DiffRequest(
                left=lower, right=upper, media_type=OCI_LAYER, ref=f"pyctr-migrate-{secrets.token_hex(6)}"
            )
            blob = self._source.call(f"{_DIFF}Diff", request, diff_pb2.DiffResponse).diff
        content.copy(self._source, self._target, content_pb2.Info(digest=blob.digest, size=blob.size))
        self._apply(key, blob, blob.digest)
        for side in (self._source, self._target):
            side.release("content", blob.digest)

    @contextmanager
    def _seen(self, info: pb.Info) -> Iterator[list[Any]]:
        """Yield the mounts that show a snapshot of the source."""
        if info.kind == pb.COMMITTED:
            with self._view(info.name) as mounts:
                yield mounts
        else:
            yield self._mounts(self._source, info.name)

    @contextmanager
    def _view(self, parent: str) -> Iterator[list[Any]]:
        """Yield the mounts that show a committed snapshot of the source, or nothing, and tidy up."""
        key = f"pyctr-migrate-{secrets.token_hex(6)}"
        request = pb.ViewSnapshotRequest(
            snapshotter=self._name, key=key, parent=parent, labels={LABEL: Mark.UNFINISHED}
        )
        mounts = self._source.call(f"{_SERVICE}View", request, pb.ViewSnapshotResponse).mounts
        yield list(mounts)
        self._source.call(f"{_SERVICE}Remove", pb.RemoveSnapshotRequest(snapshotter=self._name, key=key), Empty)

    def _mounts(self, side: Side, key: str) -> list[Any]:
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return list(side.call(f"{_SERVICE}Mounts", request, pb.MountsResponse).mounts)
