"""The CRI's parts put together: loaded with the other late ones, and the first to look at pods after a start."""

import importlib.metadata
import os
from typing import TYPE_CHECKING, Final

from pyctr_wire.errors import ApiError, NotFound, UnknownError
from pyctrd.core.platforms import Platform
from pyctrd.cri.containers import Containers, Images
from pyctrd.cri.creation import Maker, PodImage
from pyctrd.cri.events import Events
from pyctrd.cri.exec import Execs
from pyctrd.cri.index import Index
from pyctrd.cri.records import NAMESPACE, ImageNames, Pod, PodContainer, container_from_row, pod_from_row
from pyctrd.cri.runtime_service import About, RuntimeService
from pyctrd.cri.sandboxes import Sandboxes
from pyctrd.log import Logger
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.sandboxes import Sandboxes as SandboxRows
from pyctrd.offload import Offload
from pyctrd.runtime.image_lookup import Blobs, ImageRows, find_image, read_image
from pyctrd.sandbox import namespaces
from pyctrd.sandbox.files import SandboxFiles
from pyctrd.snapshots.manager import SnapshotManager

if TYPE_CHECKING:
    from pyctrd.composition import Parts

_DEFAULT_RUNTIME: Final = "io.containerd.pyctr.v1"
_HANDLERS: Final = {"": _DEFAULT_RUNTIME, "pyctr": _DEFAULT_RUNTIME, "runc": _DEFAULT_RUNTIME}

_log = Logger("pyctrd.cri")


class NoNetwork:
    """What there is without a network configuration: pods in the host's network."""

    def problem(self) -> str:
        """Say so."""
        return "cni plugin not initialized"

    async def set_up(self, pod: Pod, netns: str) -> tuple[str, ...]:
        """Refuse."""
        raise UnknownError("cni plugin not initialized")

    async def tear_down(self, pod: Pod, netns: str) -> None:
        """There is nothing."""


class PodImages:
    """Images as containers need them, from the store."""

    def __init__(self, images: ImageRows, blobs: Blobs, threads: Offload, host: Platform) -> None:
        """Look in `images` and `blobs` for those of the platform `host`."""
        self._images, self._blobs, self._threads, self._host = images, blobs, threads, host

    async def find(self, reference: str) -> PodImage:
        """Return an image. NotFound."""
        return await self._threads.run(self._find, reference)

    def _find(self, reference: str) -> PodImage:
        image = find_image(self._images, NAMESPACE, reference)
        found = read_image(self._blobs, NAMESPACE, image, self._host)
        return PodImage(ImageNames(image.target.digest, image.name), image.name, found.config, found.chain_id)


class CriParts:
    """Everything of the CRI but its images."""

    def __init__(
        self, parts: "Parts", sandbox_rows: SandboxRows, snapshots: SnapshotManager, leases: Leases, images: Images
    ) -> None:
        """Build it on `parts`, know what is in the rows, and serve."""
        self._parts = parts
        self._rows = sandbox_rows
        root, state = parts.config.root / "pods", parts.config.state / "pods"
        self._files = SandboxFiles(root, state)
        self._index = Index()
        network, events = NoNetwork(), Events()
        self._containers = Containers(
            self._index,
            parts.containers,
            Maker(parts.containers, snapshots, leases, self._files),
            images,
            parts.tasks,
            parts.lifecycle,
            events,
            parts.owners,
            parts.bulk,
            parts.group,
            _HANDLERS,
        )
        sandboxes = Sandboxes(
            self._index,
            sandbox_rows,
            self._files,
            network,
            self._containers,
            events,
            parts.owners,
            parts.bulk,
            _HANDLERS,
        )
        execs = Execs(parts.containers, parts.tasks, parts.lifecycle, parts.rows)
        about = About(importlib.metadata.version("pyctr"), _has_systemd(), dict.fromkeys(_HANDLERS, (True, True)))
        self._recall()
        parts.dispatch.add(RuntimeService(self._index, sandboxes, self._containers, execs, events, network, about))
        parts.group.create_task(self._recover(), name="recovery of pods")

    def _recall(self) -> None:
        """Read pods and containers from their rows."""
        for row in self._rows.list(NAMESPACE):
            pod = pod_from_row(row)
            if pod is not None:
                # After a reboot nothing of it is left.
                pod.ready = pod.ready and namespaces.is_pinned(self._files.namespaces(pod.id), pod.kinds)
                self._index.add_pod(pod)
        for container_row in self._parts.containers.list(NAMESPACE):
            owner = self._index.pods.get(container_row.sandbox_id)
            container = container_from_row(container_row, owner) if owner is not None else None
            if container is not None:
                self._index.add_container(container)

    async def _recover(self) -> None:
        for container in list(self._index.containers.values()):
            await self._recover_one(container)
        known = set(self._index.pods)
        for sandbox_id in set(self._files.list()) - known:
            await self._parts.bulk.run(self._sweep, sandbox_id)

    async def _recover_one(self, container: PodContainer) -> None:
        try:
            await self._containers.recover(container)
        except ApiError as error:
            _log.error("container.not_recovered", container=container.id, error=str(error))

    def _sweep(self, sandbox_id: str) -> None:
        """Remove what a crash has left of a pod without a record."""
        try:
            self._rows.get(NAMESPACE, sandbox_id)
        except NotFound:
            namespaces.unpin(self._files.namespaces(sandbox_id))
            self._files.remove(sandbox_id)


def _has_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")
