"""Makes containers as `docker run` means them: from an image and options to a record and a snapshot.

The order, and what a crash leaves behind:

    lease                    the next start lets go of it
    snapshot                 held by the lease alone: goes with it
    volumes, network files   swept at the next start
    record                   from here on the container is there, and the snapshot is its own
    volumes kept             unless it is run with --rm
    lease deleted
"""

import json
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire import labels as wire_labels
from pyctr_wire import signals
from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES
from pyctr_wire.oci.image_spec import ImageConfig
from pyctrd.cdi import edits, names
from pyctrd.cdi.registry import Registry
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.identifiers import validate_identifier
from pyctrd.core.idmaps import Maps
from pyctrd.core.labels import Labels
from pyctrd.core.leases import Lease, for_a_call
from pyctrd.core.mounts import Mount
from pyctrd.core.platforms import Platform, normalize
from pyctrd.core.restarts import labels_for
from pyctrd.core.values import dataclass
from pyctrd.remapping import maps_for
from pyctrd.runtime import image_lookup, network_files, run_options, run_spec
from pyctrd.runtime.apparmor import DEFAULT, AppArmor
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.exec_spec import ExecOptions, build_process
from pyctrd.runtime.image_lookup import Blobs, FoundImage, ImageRows
from pyctrd.runtime.image_user import User, resolve_user
from pyctrd.runtime.layer_view import LayerView, close_all, shown
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.named_volumes import check_name
from pyctrd.runtime.run_options import RunOptions

SPEC_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
DEFAULT_RUNTIME: Final = "io.containerd.pyctr.v1"
# Programs that are linked statically and made to be process 1, by what installs them.
_INITS: Final = ("catatonit", "tini-static", "docker-init")
_NO_NETWORK: Final = "the container has no network; say --network host, or --network none to not be told"
_CGROUP2_CONTROLLERS: Final = Path("/sys/fs/cgroup/cgroup.controllers")


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...
    def create(self, ns: str, container: Container, /) -> Container: ...
    def update(self, ns: str, container: Container, mask: Sequence[str], /) -> Container: ...


class LeaseRows(Protocol):
    """The leases of a namespace."""

    def create(self, ns: str, lease: Lease, /) -> Lease: ...
    def delete(self, ns: str, lease: str, /) -> None: ...


class Snapshotter(Protocol):
    """Snapshots of one kind."""

    def prepare(self, ns: str, key: str, parent: str, labels: Labels, lease: str = "") -> Sequence[Mount]: ...
    def mounts(self, ns: str, key: str) -> Sequence[Mount]: ...
    def remove(self, ns: str, key: str) -> None: ...


class Snapshotters(Protocol):
    """The snapshotters by name."""

    @property
    def default(self) -> str:
        """The name of the one that is meant by who names none."""

    def named(self, snapshotter: str) -> Snapshotter: ...


class NotUnpacked(FailedPrecondition):
    """The image is here, its layers are not snapshots of the wanted snapshotter yet."""

    def __init__(self, image: str, snapshotter: str) -> None:
        """Keep the image's full name, and the snapshotter's."""
        super().__init__(f"image {image} is not unpacked for the snapshotter {snapshotter}")
        self.image = image
        self.snapshotter = snapshotter


@dataclass(frozen=True, slots=True)
class Request:
    """A container to be made; what is empty is a default. Its name has been found free."""

    namespace: str
    image: str
    options: RunOptions
    id: str = ""
    name: str = ""
    snapshotter: str = ""
    runtime_name: str = ""
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """A container that was made."""

    id: str
    rootfs: Sequence[Mount]
    log_uri: str
    snapshotter: str
    warnings: Sequence[str]


class Creator:
    """Makes containers; synchronous, called in threads."""

    def __init__(
        self,
        containers: ContainerRows,
        images: ImageRows,
        blobs: Blobs,
        snapshots: Snapshotters,
        leases: LeaseRows,
        logs: LogFolders,
        belongings: Belongings,
        described: Registry,
        apparmor: AppArmor,
        remap: Maps | None = None,
    ) -> None:
        """Use these stores; containers that do not say otherwise have the users of `remap`."""
        self._remap = remap
        self._described = described
        self._apparmor = apparmor
        self._containers = containers
        self._images = images
        self._blobs = blobs
        self._snapshots = snapshots
        self._leases = leases
        self._logs = logs
        self._belongings = belongings
        self._host = normalize(Platform("linux", platform.machine()))

    def create(self, request: Request) -> Created:
        """Make a container.

        Raises NotFound if the image is not here, NotUnpacked, InvalidArgument naming an option,
        AlreadyExists if the id is taken, ResourceExhausted if the disk is too full for its volumes.
        """
        container_id = request.id or secrets.token_hex(32)
        validate_identifier("container.ID", container_id)  # it becomes the name of a folder
        with self._belongings.making(request.namespace, container_id):
            if request.options.network:
                return self._create(request, container_id)
            # An ordinary user cannot connect a network of the container's own to anything.
            network, warnings = ("host", []) if in_user_namespace() else ("none", [_NO_NETWORK])
            request = replace(request, options=replace(request.options, network=network))
            created = self._create(request, container_id)
            return replace(created, warnings=[*created.warnings, *warnings])

    def _create(self, request: Request, container_id: str) -> Created:
        ns, options = request.namespace, request.options
        maps, name = self._maps(options), request.snapshotter or self._snapshots.default
        image = image_lookup.find_image(self._images, ns, request.image)
        found = image_lookup.read_image(self._blobs, ns, image, request.platform or self._host)
        labels = _labels(request, found.config)
        driver, log_uri, log_path = self._logs.choose(ns, container_id, options.log_driver, dict(options.log_options))
        lease = self._leases.create(ns, for_a_call(f"pyctr-run-{container_id}"))
        try:
            mounts = self._prepare(request, name, container_id, found, lease.id, maps)
            spec, warnings, volumes = self._spec(request, container_id, found, mounts, maps)
            keep = volumes and not options.auto_remove
            if keep:
                self._belongings.volumes.sync(ns, container_id)
            if not options.auto_remove:
                self._belongings.network_files.sync(ns, container_id)
            self._containers.create(
                ns,
                Container(
                    id=container_id,
                    labels=labels
                    | {
                        wire_labels.LOG_DRIVER: driver,
                        wire_labels.LOG_URI: log_uri,
                        wire_labels.LOG_PATH: log_path,
                    },
                    image=image.name,
                    runtime_name=request.runtime_name or DEFAULT_RUNTIME,
                    spec=AnyValue(SPEC_URL, json.dumps(spec).encode()),
                    snapshotter=name,
                    snapshot_key=container_id,
                ),
            )
        except BaseException:
            with suppress(NotFound):
                self._snapshots.named(name).remove(ns, container_id)
            raise
        finally:
            self._leases.delete(ns, lease.id)
        if keep:
            try:
                self._belongings.volumes.keep(ns, container_id, volumes)
            except OSError as error:  # the container is there: no reason to take it away again
                warnings.append(f"the volumes will go with the container: they cannot be marked to stay: {error}")
        return Created(container_id, mounts, log_uri, name, warnings)

    def _prepare(
        self,
        request: Request,
        snapshotter: str,
        container_id: str,
        found: FoundImage,
        lease: str,
        maps: Maps | None,
    ) -> Sequence[Mount]:
        try:
            return self._snapshots.named(snapshotter).prepare(
                request.namespace, container_id, found.chain_id, maps.labels() if maps else {}, lease=lease
            )
        except NotFound:
            raise NotUnpacked(found.image.name, snapshotter) from None

    def _spec(
        self, request: Request, container_id: str, found: FoundImage, mounts: Sequence[Mount], maps: Maps | None
    ) -> tuple[dict[str, Any], list[str], dict[str, str]]:
        """Return the spec, what the user should be told, and the targets of volumes that are its own, by name."""
        options, process = request.options, found.config.process
        if DEFAULT in run_spec.security_options(options, "apparmor"):
            self._apparmor.check(DEFAULT)
        with shown(mounts) as layers, LayerView(layers) as files:
            user = resolve_user(options.user or process.user, options.additional_groups, files)
            own, named = self._make_volumes(request, container_id, process.volumes, files)
        extra = (run_spec.MAPPED,) if maps else ()
        options = replace(options, mounts=run_options.with_volumes(options.mounts, own | named, extra))
        described = [name for text in options.devices if (name := names.find(text)) is not None]
        devices = tuple(run_options.devices(text for text in options.devices if names.find(text) is None))
        if options.privileged:
            devices = (*run_options.host_devices(), *devices)
        looked_up = run_spec.Found(
            namespace=request.namespace,
            container_id=container_id,
            user=user,
            capabilities=available_capabilities(),
            machine=platform.machine(),
            host_name=socket.gethostname(),
            cgroup_namespaces=_CGROUP2_CONTROLLERS.exists(),
            apparmor=self._apparmor.default(DEFAULT),
            init_program=_find_init() if options.init else "",
            devices=devices,
            network_files=network_files.of_this_machine(options.network),
            maps=maps,
        )
        texts = network_files.contents(run_spec.hostname(options, looked_up), options.network)
        made = self._belongings.network_files.make(request.namespace, container_id, texts)
        looked_up = replace(looked_up, network_files={**made, **looked_up.network_files})
        spec, warnings = run_spec.build_spec(process, options, looked_up)
        if described:
            edits.apply(spec, self._described.edits(described))
        return spec, warnings, {path.name: target for target, path in own.items()}

    def _maps(self, options: RunOptions) -> Maps | None:
        """Return who the container's users are. Raises InvalidArgument naming the option, FailedPrecondition."""
        maps = maps_for(options.userns) if options.userns else self._remap
        if maps is not None and in_user_namespace():
            raise FailedPrecondition("--userns: this daemon is an ordinary user's, all of its containers share his ids")
        return maps

    def _make_volumes(
        self, request: Request, container_id: str, declared: Sequence[str], files: LayerView
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """Make what volumes the image declares or the user wants; return its own, and those with names, by target."""
        ns, stores = request.namespace, self._belongings
        own, named = {}, {}
        wanted = run_options.wanted_volumes(declared, request.options.mounts)
        for volume in wanted:  # a name that cannot be is told before what else is wrong, and before any is made
            if volume.name:
                check_name(volume.name)
        for target, name, filled in wanted:
            layers = files.directory(target) if filled else []
            try:
                if name:
                    named[target] = stores.named_volumes.use(ns, container_id, name, layers)
                else:
                    own[target] = stores.volumes.make(ns, container_id, target, layers)
            finally:
                close_all(layers)
        return own, named

    def exec_process(self, namespace: str, container_id: str, options: ExecOptions) -> bytes:
        """Return the JSON of an exec's process. Raises NotFound, InvalidArgument naming an option."""
        container = self._containers.get(namespace, container_id)
        spec = json.loads(container.spec.value) if container.spec is not None else {}
        user: User | None = None
        if options.user:
            mounts = self._snapshots.named(container.snapshotter).mounts(namespace, container.snapshot_key)
            with shown(mounts) as layers, LayerView(layers) as files:
                user = resolve_user(options.user, (), files)
        return json.dumps(build_process(spec, options, user, available_capabilities())).encode()

    def label(self, namespace: str, container_id: str, labels: Labels) -> None:
        """Set labels of a container; "" takes one away. Raises NotFound."""
        changed = Container(id=container_id, labels=labels)
        self._containers.update(namespace, changed, [f"labels.{name}" for name in labels])


def _labels(request: Request, config: ImageConfig) -> dict[str, str]:
    """Return the container's labels: the image's, but none that steer us or others, then the user's.

    Raises InvalidArgument for labels that are ours to write and for a stop signal that is none; an image's is ignored.
    """
    options = request.options
    for name in options.labels:
        if name.startswith(wire_labels.OURS):
            raise InvalidArgument(f"label {name!r}: those that begin with {wire_labels.OURS} are pyctr's own")
    if options.stop_signal and signals.parse(options.stop_signal) is None:
        raise InvalidArgument(f"stop signal {options.stop_signal!r} is not a signal")
    result = {
        name: value
        for name, value in config.process.labels.items()
        if not name.startswith(wire_labels.CONTROL_PREFIXES)
    }
    result |= options.labels
    its_own = config.process.stop_signal
    stop_signal = options.stop_signal or (its_own if signals.parse(its_own) is not None else "")
    ours = {
        wire_labels.NAME: request.name,
        wire_labels.STOP_SIGNAL: stop_signal,
        wire_labels.AUTO_REMOVE: "true" if options.auto_remove else "",
        wire_labels.INTERACTIVE: "true" if options.interactive else "",
    }
    if options.restart_policy:
        ours |= labels_for(options.restart_policy, running=False)
        if options.auto_remove and ours[wire_labels.RESTART_STATUS]:
            raise InvalidArgument("--restart and --rm: a container cannot both be removed and started again at its end")
    return result | {name: value for name, value in ours.items() if value}


def available_capabilities() -> frozenset[str]:
    """Return the capabilities that this daemon can give: its own bounding set. Source: proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for number, name in enumerate(ALL_CAPABILITIES) if bits >> number & 1)
    return frozenset(ALL_CAPABILITIES)


def _find_init() -> str:
    for name in _INITS:
        path = shutil.which(name)
        if path is not None:
            return os.path.realpath(path)
    raise FailedPrecondition("--init needs a static init on this machine: apt-get install catatonit")
