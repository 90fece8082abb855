"""The CRI's parts put together: loaded with the other late ones, and the first to look at pods after a start."""

import importlib.metadata
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from google.protobuf.message import DecodeError

from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire.errors import ApiError, NotFound
from pyctrd.cdi.registry import Registry
from pyctrd.content.store import ContentStore
from pyctrd.core.containers import Container
from pyctrd.core.platforms import Platform
from pyctrd.core.sandboxes import Sandbox
from pyctrd.cri import convert
from pyctrd.cri.checkpoints import ContainerCheckpoints
from pyctrd.cri.containers import Containers
from pyctrd.cri.creation import SNAPSHOTTER, Maker, PodImage
from pyctrd.cri.events import Events
from pyctrd.cri.exec import Execs
from pyctrd.cri.features import HandlerFeatures
from pyctrd.cri.filesystem_usage import UsageMeter
from pyctrd.cri.image_index import CriImage
from pyctrd.cri.image_service import ImageService
from pyctrd.cri.image_volumes import ImageVolumes
from pyctrd.cri.images import Images
from pyctrd.cri.index import Index
from pyctrd.cri.pod_network import PodNetworks
from pyctrd.cri.pod_tasks import PodTasks
from pyctrd.cri.pulls import Pulls
from pyctrd.cri.records import NAMESPACE, ImageNames, Pod, PodContainer, container_from_row, pod_from_row
from pyctrd.cri.restore import Restores
from pyctrd.cri.runtime_service import About, RuntimeService
from pyctrd.cri.sandboxes import Sandboxes
from pyctrd.cri.sessions import Ports, Sessions
from pyctrd.cri.stats import Stats
from pyctrd.cri.streaming.server import StreamingServer
from pyctrd.diff.differ import Differ
from pyctrd.log import Logger
from pyctrd.metadata.images import Images as ImageRows
from pyctrd.metadata.leases import Leases
from pyctrd.metadata.sandboxes import Sandboxes as SandboxRows
from pyctrd.network import own
from pyctrd.network.configuration import Configuration
from pyctrd.network.plugins import Plugins
from pyctrd.network.pod_network import PodNetwork
from pyctrd.network.records import Records
from pyctrd.offload import Offload
from pyctrd.runtime.belongings import Belongings
from pyctrd.sandbox import namespaces
from pyctrd.sandbox.files import SandboxFiles
from pyctrd.snapshots.manager import SnapshotManager
from pyctrd.transfer.service import Transfers

if TYPE_CHECKING:
    from pyctrd.composition import Parts

_P = ParamSpec("_P")
_T = TypeVar("_T")

_OURS: Final = "io.containerd.pyctr.v1"
_NETWORK_THREADS: Final = 16

_log = Logger("pyctrd.cri")


class PodImages:
    """Images as containers need them."""

    def __init__(self, images: Images) -> None:
        """Find them among all."""
        self._images = images

    async def find(self, reference: str) -> PodImage:
        """Return an image, whose layers are there. NotFound."""
        image = await self._resolve(reference)
        await self._images.ensure_unpacked(image, SNAPSHOTTER)
        names = ImageNames(image.id, next(iter(image.tags), ""), next(iter(image.digests), ""))
        return PodImage(names, image.names[0], await self._images.config(image), image.chain_id)

    async def saved(self, reference: str) -> str:
        """Return the digest of the archive if an image is a checkpoint, else "". NotFound."""
        return (await self._resolve(reference)).saved

    async def _resolve(self, reference: str) -> CriImage:
        try:
            return await self._images.resolve(reference)
        except NotFound:
            raise NotFound(f'failed to resolve image "{reference}"') from None


class Stores(NamedTuple):
    """What images and pods are kept in."""

    images: ImageRows
    content: ContentStore
    snapshots: SnapshotManager
    leases: Leases
    sandboxes: SandboxRows
    transfers: Transfers
    belongings: Belongings
    described: Registry
    differ: Differ


class CriParts:
    """Everything of the CRI."""

    def __init__(self, parts: "Parts", stores: Stores, collect: Callable[[], Awaitable[Any]], host: Platform) -> None:
        """Build it on `parts`, and know what is in the rows; `collect` is a garbage collection."""
        self._parts = parts
        self._stores = stores
        self._collect = collect
        self._host = host
        self._files = SandboxFiles(parts.config.root / "pods", parts.config.state / "pods")
        self._index = Index()
        # Plugins that hang, and ports that do not answer, take nobody else's threads.
        self._network_threads = Offload(_NETWORK_THREADS, "network")
        parts.closing.callback(self._network_threads.close)
        self._images = self._build_images()
        self._build_pods()
        self._recall()
        parts.group.create_task(self._recover(), name="recovery of pods")
        self.servicers = (self._image_service(), self._runtime_service())

    def _build_images(self) -> Images:
        parts, stores = self._parts, self._stores
        images = Images(
            stores.images,
            stores.content,
            stores.snapshots,
            stores.transfers.unpack,
            self._collect,
            parts.rows,
            self._host,
        )
        parts.image_changed = images.changed
        parts.group.create_task(images.run(), name="images of others")
        return images

    def _build_pods(self) -> None:
        parts, stores = self._parts, self._stores
        self._network, self._events = self._build_network(), Events()
        # Ours unless the configuration says otherwise: nobody asks for runc as such.
        handlers = {"": _OURS, "runc": _OURS, **{name: name for name in parts.config.runtimes}}
        programs = {name: self._asked(runtime) for name, runtime in handlers.items()}
        self._features = HandlerFeatures(programs, stores.snapshots.roots()[SNAPSHOTTER], parts.bulk)
        snapshots = stores.snapshots
        self._image_volumes = ImageVolumes(snapshots.named(SNAPSHOTTER), SNAPSHOTTER, self._files)
        self._pod_tasks = PodTasks(
            parts.tasks, parts.lifecycle, parts.runtimes.resolve, self._files, handlers, parts.bulk, parts.group
        )
        self._containers = Containers(
            self._index,
            parts.containers,
            Maker(
                parts.containers,
                snapshots,
                stores.leases,
                self._files,
                stores.belongings,
                stores.described,
                self._image_volumes,
                parts.apparmor,
            ),
            PodImages(self._images),
            parts.tasks,
            parts.lifecycle,
            parts.runtimes.resolve,
            self._events,
            parts.owners,
            parts.bulk,
            parts.group,
            handlers,
            self._restores(),
        )
        self._sandboxes = Sandboxes(
            self._index,
            stores.sandboxes,
            self._files,
            self._network,
            self._containers,
            self._events,
            parts.owners,
            parts.bulk,
            handlers,
            self._pod_tasks,
            parts.group,
        )

    def _restores(self) -> Restores | None:
        parts, stores = self._parts, self._stores
        if not parts.config.checkpoint.enabled:
            return None
        return Restores(stores.content, stores.differ, stores.leases, parts.checkpoints, parts.bulk)

    def _asked(self, runtime: str) -> tuple[str, ...]:
        """Return the command by which a runtime tells what it can do, nothing for our own."""
        try:
            resolved = self._parts.runtimes.resolve(runtime)
        except ApiError as error:
            _log.warning("handler.not_there", runtime=runtime, error=str(error))
            return (runtime,)  # which cannot be asked
        if resolved.shim:
            return resolved.shim, "-info"
        return (resolved.program, "features") if resolved.program else ()

    def _build_network(self) -> PodNetworks:
        parts, settings = self._parts, self._parts.config.cri.cni
        network = PodNetwork(
            Configuration(settings.conf_dir),
            Plugins(tuple(map(Path, settings.bin_dirs)), settings.timeout, own.PLUGINS, settings.in_process),
            Records(parts.config.root / "network_records"),
            settings.preference,
            self._network_threads,
        )
        return PodNetworks(network, self._files)

    def _image_service(self) -> ImageService:
        parts, stores, settings = self._parts, self._stores, self._parts.config.cri
        pulls = Pulls(
            stores.transfers.fetch,
            self._host,
            frozenset(settings.pinned_images),
            settings.image_pull_progress_timeout,
            parts.operations,
            parts.group,
        )
        root = stores.snapshots.roots()[SNAPSHOTTER]
        usage = UsageMeter(stores.snapshots.named(SNAPSHOTTER), root, NAMESPACE, parts.bulk)
        return ImageService(self._images, pulls, usage, SNAPSHOTTER)

    def _runtime_service(self) -> RuntimeService:
        parts = self._parts
        execs = Execs(parts.containers, parts.tasks, parts.lifecycle, parts.rows)
        streaming = StreamingServer(
            parts.config.cri.streaming,
            Sessions(self._index, execs, parts.group),
            Ports(self._index, self._files, self._network_threads),
            parts.bulk,
        )
        parts.group.create_task(streaming.run(), name="streams of pods")
        stats = Stats(
            self._index,
            parts.tasks,
            self._stores.snapshots.named(SNAPSHOTTER),
            self._stores.snapshots.roots()[SNAPSHOTTER],
            self._files,
            parts.bulk,
        )
        parts.group.create_task(stats.run(), name="figures of pods")
        about = About(importlib.metadata.version("pyctr"), _has_systemd(), self._features)
        checkpoints = ContainerCheckpoints(
            parts.checkpoints,
            self._stores.differ,
            self._stores.snapshots,
            self._stores.leases,
            self._stores.content,
            parts.containers.get,
            parts.bulk,
        )
        return RuntimeService(
            self._index,
            self._sandboxes,
            self._containers,
            execs,
            self._events,
            self._network,
            streaming,
            stats,
            about,
            checkpoints if parts.config.checkpoint.enabled else None,
        )

    def _recall(self) -> None:
        """Read pods and containers from their rows."""
        for row in self._stores.sandboxes.list(NAMESPACE):
            pod = _read("pod", row.id, _pod, row)
            if pod is not None:
                # After a reboot nothing of it is left.
                pod.ready = pod.ready and namespaces.is_pinned(self._files.namespaces(pod.id), pod.kinds)
                self._index.add_pod(pod)
        for container_row in self._parts.containers.list(NAMESPACE):
            owner = self._index.pods.get(container_row.sandbox_id)
            if owner is None:
                continue
            container = _read("container", container_row.id, _container, container_row, owner)
            if container is not None:
                self._index.add_container(container)

    async def _recover(self) -> None:
        for container in list(self._index.containers.values()):
            await self._recover_one(container)
        for pod in list(self._index.pods.values()):  # whose stop waits for ends that are watched by now
            await self._recover_pod(pod)
        for sandbox_id in set(self._files.list()) - set(self._index.pods):
            await self._parts.bulk.run(self._sweep, sandbox_id)
        for pod in list(self._index.pods.values()):
            await self._parts.bulk.run(self._image_volumes.release_strays, pod.id, set(pod.containers))
        if not in_user_namespace():  # whose root has made no network of this machine's
            await self._network.collect(list(self._index.pods.values()))

    async def _recover_pod(self, pod: Pod) -> None:
        """Watch a pod that another shim runs; one whose shim has ended meanwhile is stopped, as it would have been."""
        try:
            if pod.has_task and pod.ready and not self._pod_tasks.running(pod):
                await self._sandboxes.stop(pod)
            self._sandboxes.watch(pod)
        except (ApiError, OSError) as error:
            _log.error("pod.not_recovered", sandbox=pod.id, error=str(error))

    async def _recover_one(self, container: PodContainer) -> None:
        try:
            await self._containers.recover(container)
        except ApiError as error:
            _log.error("container.not_recovered", container=container.id, error=str(error))

    def _sweep(self, sandbox_id: str) -> None:
        """Remove what a crash has left of a pod without a record."""
        try:
            self._stores.sandboxes.get(NAMESPACE, sandbox_id)
        except NotFound:
            try:
                namespaces.unpin(self._files.namespaces(sandbox_id))
                self._files.remove(sandbox_id)
            except OSError as error:  # somebody's file, say, where pods have directories
                _log.error("pod.not_swept", sandbox=sandbox_id, error=str(error))


def _pod(row: Sandbox) -> Pod | None:
    pod = pod_from_row(row)
    if pod is not None:
        convert.pod_status(pod)  # what no message can hold would fail every list
    return pod


def _container(row: Container, pod: Pod) -> PodContainer | None:
    container = container_from_row(row, pod)
    if container is not None:
        convert.container_status(container)
    return container


def _read(what: str, id: str, read: Callable[_P, _T | None], /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
    """Return what a row holds, None also for what nobody can read: clients may write to rows, and disks may lie."""
    try:
        return read(*args, **kwargs)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, DecodeError) as error:
        _log.error(f"{what}.not_read", id=id, error=repr(error))
        return None


def _has_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")
