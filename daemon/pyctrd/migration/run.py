"""`pyctrd migrate`: one namespace after the other, in the order in which things refer to each other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2
from pyctr_wire.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound, UnknownError
from pyctrd.migration import content, records, snapshots
from pyctrd.migration.layers import Layer, by_chain_id
from pyctrd.migration.report import Report
from pyctrd.migration.side import CALL_TIMEOUT, Side
from pyctrd.remote.connection import Remote

# What one object may fail with while all others are copied; anything else ends the run.
_ITS_OWN: Final = (AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound, UnknownError)


def migrate(source: str, target: str, report: Report) -> None:
    """Copy what the daemon at the path `source` has to the one at `target`, as far as it is not there.

    Raises InvalidArgument if they are one, Unavailable if one does not answer; what single objects fail with is
    reported.
    """
    if source == target:
        raise InvalidArgument(f"--from and --to are both {source}: there is nothing to do")
    from_daemon = Remote("source", source, "default", CALL_TIMEOUT)
    to_daemon = Remote("target", target, "default", CALL_TIMEOUT)
    try:
        for name, labels in records.namespaces(from_daemon).items():
            report.begin(name)
            records.copy_namespace(to_daemon, name, labels)
            with Side("source", source, name) as from_side, Side("target", target, name) as to_side:
                _Namespace(from_side, to_side, report).copy()
    finally:
        from_daemon.close()
        to_daemon.close()


class _Namespace:
    """One namespace's copy."""

    def __init__(self, source: Side, target: Side, report: Report) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._name = source.namespace
        every = records.containers(source)
        self._containers = [container for container in every if not records.of_pod(container)]
        self._pods = [container for container in every if records.of_pod(container)]
        self._running = records.running(source)

    def copy(self) -> None:
        """Copy everything, in an order in which nothing refers to what is not there yet."""
        self._copy_content()
        images = records.images(self._source)
        self._copy_images(images)
        layers = by_chain_id(self._source, [image.target for image in images])
        theirs = snapshots.snapshotters(self._target)
        for snapshotter in snapshots.snapshotters(self._source):
            infos = snapshots.listed(self._source, snapshotter)
            if snapshotter in theirs:
                self._copy_snapshots(snapshotter, infos, layers)
            elif infos:
                why = "the target has no snapshotter of that name; what images need is unpacked when it is used"
                self._report.skip(self._name, f"{len(infos)} snapshots of {snapshotter}", why)
        self._copy_containers()
        for lease in self._source.leases():
            with self._reported(f"lease {lease.id}"):
                self._done("leases", missing=self._target.take_over(lease, self._source.resources(lease.id)))
        for container in self._pods:
            self._report.note(self._name, f"container {container.id}: a pod's, which kubelet makes anew; not copied")
        for id in sorted(self._running):
            self._report.note(self._name, f"container {id}: its task is not moved, it runs on in the source")

    def _copy_content(self) -> None:
        infos = list(content.blobs(self._source))
        self._report.stage("content", len(infos))
        for info in infos:
            with self._reported(f"content {info.digest}"):
                self._done("content", missing=content.copy(self._source, self._target, info))

    def _copy_images(self, images: Sequence[images_pb2.Image]) -> None:
        self._report.stage("images", len(images))
        for image in images:
            with self._reported(f"image {image.name}"):
                self._done("images", missing=records.copy_image(self._target, image))

    def _copy_snapshots(
        self, snapshotter: str, infos: Sequence[snapshots_pb2.Info], layers: Mapping[str, Layer]
    ) -> None:
        self._report.stage(f"snapshots of {snapshotter}", len(infos))
        copier = snapshots.Copier(self._source, self._target, snapshotter, layers)
        of_pods = {one.snapshot_key for one in self._pods if one.snapshotter == snapshotter}
        owners = {one.snapshot_key: one.id for one in self._containers if one.snapshotter == snapshotter}
        started = records.running(self._target)
        for info in infos:
            owner = owners.get(info.name, "")
            if info.name not in of_pods:
                with self._reported(f"snapshot {snapshotter} {info.name}"):
                    missing = owner not in started and copier.copy(info, partial(self._runs, owner))
                    self._done("snapshots", missing=missing)

    def _copy_containers(self) -> None:
        self._report.stage("containers", len(self._containers))
        for container in self._containers:
            with self._reported(f"container {container.id}"):
                running = self._runs(container.id)
                missing = records.copy_container(self._target, container, running=running)
                self._done("containers", missing=missing)

    def _runs(self, id: str) -> bool:
        """Say whether the source runs a container's task, or has been seen to: they come while we copy, and go."""
        if id and id not in self._running:
            self._running |= records.running(self._source)
        return id in self._running

    def _done(self, kind: str, *, missing: bool) -> None:
        self._report.done(self._name, kind, missing=missing)

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Report what an object fails with instead of raising it."""
        try:
            yield
        except _ITS_OWN as error:
            self._report.skip(self._name, what, str(error))
