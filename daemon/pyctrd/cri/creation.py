"""Makes a pod's container: looks at image and machine, then snapshot and record, in that order.

A crash in between leaves a snapshot that a lease holds until the next start lets go of it.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctr_wire import signals
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound
from pyctr_wire.oci.image_spec import ImageConfig, load_json
from pyctrd.cdi import edits, names
from pyctrd.cdi.registry import Registry
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.leases import for_a_call
from pyctrd.core.mounts import Mount
from pyctrd.core.values import dataclass
from pyctrd.cri import host_mounts, hugepages, selinux
from pyctrd.cri.confinement import apparmor_profile
from pyctrd.cri.container_spec import Found, absolute, build_spec, seccomp_file
from pyctrd.cri.convert import enum_name
from pyctrd.cri.image_volumes import ImageVolumes, Wanted, asked_for
from pyctrd.cri.records import (
    NAMESPACE,
    ImageNames,
    Pod,
    PodContainer,
    container_extensions,
    maps_of,
    row_labels,
)
from pyctrd.runtime import run_options
from pyctrd.runtime.apparmor import AppArmor
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.creation import ContainerRows, LeaseRows, Snapshotters, available_capabilities
from pyctrd.runtime.image_user import User, resolve_user
from pyctrd.runtime.layer_view import LayerView, close_all, directories
from pyctrd.sandbox.files import SandboxFiles

SPEC_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
SNAPSHOTTER: Final = "overlayfs"
_SAVED_LABEL: Final = "containerd.io/gc.ref.content.checkpoint"  # keeps the processes that it goes on with
_MAX_PROFILE: Final = 1 << 20  # bytes of a seccomp profile
_CGROUP2: Final = Path("/sys/fs/cgroup/cgroup.controllers")


@dataclass(frozen=True, slots=True)
class PodImage:
    """An image as a container needs it: `chain_id` names the snapshot of its uppermost layer."""

    names: ImageNames
    record: str  # the name of an image record
    config: ImageConfig
    chain_id: str


class Request(NamedTuple):
    """A container to be made in a pod; `target` is the pid whose PID namespace it joins, 0 for none."""

    id: str
    pod: Pod
    config: runtime_pb2.ContainerConfig
    image: PodImage
    runtime: str
    created_at: int
    target: int
    images: Sequence[Wanted] = ()
    checkpoint: tuple[str, int] | None = None  # as PodContainer has it


class Maker:
    """Makes containers and takes them away; synchronous, called in threads."""

    def __init__(
        self,
        rows: ContainerRows,
        snapshots: Snapshotters,
        leases: LeaseRows,
        files: SandboxFiles,
        belongings: Belongings,
        described: Registry,
        image_volumes: ImageVolumes,
        apparmor: AppArmor,
    ) -> None:
        """Use these stores."""
        self._apparmor = apparmor
        self._described = described
        self._rows = rows
        self._snapshots = snapshots
        self._leases = leases
        self._files = files
        self._belongings = belongings
        self._image_volumes = image_volumes

    def make(self, request: Request) -> PodContainer:
        """Return a container with a record and a snapshot. Raises InvalidArgument naming the field, UnknownError."""
        config, pod = request.config, request.pod
        security = config.linux.security_context
        if security.privileged and not pod.config.linux.security_context.privileged:
            raise InvalidArgument("no privileged container allowed in sandbox")
        if ".." in config.log_path.split("/"):
            raise InvalidArgument(f"log_path {config.log_path[:200]!r} leads out of the pod's log directory")
        _check_same_user_namespace(pod, security.namespace_options)
        sources = host_mounts.sources(config.mounts)
        profile = _profile(seccomp_file(security))
        with self._belongings.making(NAMESPACE, request.id):  # its volumes go with it
            return self._make(request, sources, profile)

    def _make(self, request: Request, sources: Mapping[str, str], profile: dict[str, Any] | None) -> PodContainer:
        config, pod = request.config, request.pod
        described = names.wanted((one.name for one in config.CDI_devices), config.annotations)
        lease = self._leases.create(NAMESPACE, for_a_call(f"cri-{request.id}"))
        snapshotter = self._snapshots.named(SNAPSHOTTER)
        try:
            labels = pod.maps.labels() if pod.maps else {}
            mounts = snapshotter.prepare(NAMESPACE, request.id, request.image.chain_id, labels, lease=lease.id)
            images = self._image_volumes.attach(pod, request.id, request.images, lease.id)
            found = self._look_up(request, mounts, sources, images, profile)
            _mark(config, found)
            spec = build_spec(pod, config, request.image.config.process, found)
            if described:
                edits.apply(spec, self._described.edits(described))
            user = found.user
            container = PodContainer(
                id=request.id,
                pod=pod,
                config=config,
                image=request.image.names,
                created_at=request.created_at,
                user=(user.uid, user.gid, user.additional_gids),
                stop_signal=_stop_signal(config, request.image.config),
                checkpoint=request.checkpoint,
            )
            self._rows.create(NAMESPACE, self._row(request, container, spec))
        except BaseException:
            self._release(pod, request.id, [one.number for one in request.images])
            raise
        finally:
            self._leases.delete(NAMESPACE, lease.id)
        return container

    def rootfs(self, container: PodContainer) -> Sequence[Mount]:
        """Return how to mount a container's root file system; with SELinux, all of it as the container's files."""
        label = _labels(container.pod, container.config.linux.security_context).files
        mounts = self._snapshots.named(SNAPSHOTTER).mounts(NAMESPACE, container.id)
        if not label:
            return mounts
        context = f'context="{label}"'
        return [replace(one, options=(*one.options, context)) if one.type == "overlay" else one for one in mounts]

    def remove(self, container: PodContainer, delete_row: Callable[[str, str], None]) -> None:
        """Remove snapshot and record; what is gone already is passed over.

        The record goes last: as long as it is there, a removal that was cut off can be asked for again.
        """
        self._release(container.pod, container.id, [number for number, _ in asked_for(container.config)])
        with suppress(NotFound):
            delete_row(NAMESPACE, container.id)

    def _release(self, pod: Pod, container: str, images: Sequence[int]) -> None:
        self._image_volumes.release(pod.id, container, images)
        with suppress(NotFound):
            self._snapshots.named(SNAPSHOTTER).remove(NAMESPACE, container)

    def _row(self, request: Request, container: PodContainer, spec: dict[str, Any]) -> Container:
        return Container(
            id=container.id,
            labels={
                **row_labels("container", request.config.labels),
                **self._image_volumes.labels(container.id, request.images),
                **({_SAVED_LABEL: request.checkpoint[0]} if request.checkpoint else {}),
            },
            image=request.image.record,
            runtime_name=request.runtime,
            spec=AnyValue(SPEC_URL, json.dumps(spec).encode()),
            snapshotter=SNAPSHOTTER,
            snapshot_key=container.id,
            extensions=container_extensions(container),
            sandbox_id=request.pod.id,
        )

    def _look_up(
        self,
        request: Request,
        mounts: Sequence[Mount],
        sources: Mapping[str, str],
        images: Mapping[int, str],
        profile: dict[str, Any] | None,
    ) -> Found:
        pod, config = request.pod, request.config
        security = config.linux.security_context
        with LayerView(directories(mounts)) as view:
            user = _user(security, request.image.config.process.user, view)
            volumes = self._volumes(request, view)
        devices = [
            *run_options.devices(
                f"{one.host_path}:{one.container_path or one.host_path}:{one.permissions or 'rwm'}"
                for one in config.devices
            )
        ]
        if security.privileged:
            devices = [*run_options.host_devices(), *devices]
        folder = self._files.folder(pod.id)
        files = {f"/etc/{name}": str(folder / name) for name in ("hostname", "hosts", "resolv.conf")}
        files["/dev/shm"] = str(self._files.shm(pod.id)) if "ipc" in pod.kinds else "/dev/shm"  # noqa: S108
        return Found(
            container_id=request.id,
            user=user,
            capabilities=available_capabilities(),
            machine=platform.machine(),
            hostname=(folder / "hostname").read_text().strip(),
            files=files,
            namespaces=self._namespaces(request),
            sources=sources,
            images=images,
            volumes=volumes,
            devices=devices,
            seccomp=profile,
            apparmor=apparmor_profile(security, self._apparmor),
            selinux=_labels(pod, security),
            cgroup_namespaces=_CGROUP2.exists() and not security.privileged,
            hugepage_limits=hugepages.can_be_limited(),
            image_name=request.image.record,
        )

    def _volumes(self, request: Request, view: LayerView) -> dict[str, str]:
        """Make the volumes that the image declares and the request does not mount; return where they are, by target.

        They begin with what the image has there.
        """
        taken = {absolute(mount.container_path) for mount in request.config.mounts}
        volumes = {}
        for declared in request.image.config.process.volumes:
            target = absolute(declared)
            if target in taken or target == "/":
                continue
            layers = view.directory(target)
            try:
                volumes[target] = str(self._belongings.volumes.make(NAMESPACE, request.id, target, layers))
            finally:
                close_all(layers)
        return volumes

    def _namespaces(self, request: Request) -> dict[str, str]:
        pod, options = request.pod, request.config.linux.security_context.namespace_options
        pinned = self._files.namespaces(pod.id)
        result = {"mount": ""}
        for kind, name in (("user", "user"), ("net", "network"), ("ipc", "ipc"), ("uts", "uts")):
            if kind in pod.kinds:
                result[name] = str(pinned / kind)
        if options.pid == image_pb2.CONTAINER:
            result["pid"] = ""
        elif options.pid == image_pb2.TARGET:
            result["pid"] = f"/proc/{request.target}/ns/pid"
        elif options.pid == image_pb2.POD and "pid" in pod.kinds:
            result["pid"] = str(pinned / "pid")
        elif options.pid == image_pb2.POD and pod.namespace_options.pid != image_pb2.NODE:
            result["pid"] = ""  # the pod's containers have one each
        if _CGROUP2.exists() and not request.config.linux.security_context.privileged:
            result["cgroup"] = ""
        return result


def _check_same_user_namespace(pod: Pod, options: image_pb2.NamespaceOption) -> None:
    of_pod, own = pod.maps, maps_of(options)
    if of_pod != own:
        raise InvalidArgument(
            f"user namespace config for sandbox is different from container. Sandbox userns config: {of_pod}"
            f" - Container userns config: {own}"
        )


def _labels(pod: Pod, security: runtime_pb2.LinuxContainerSecurityContext) -> selinux.Labels:
    """Return the container's SELinux labels, which are the pod's unless it has its own; a privileged one has none."""
    own = security if security.HasField("selinux_options") else pod.config.linux.security_context
    selinux.check(own.selinux_options)
    return selinux.Labels() if security.privileged else selinux.labels(pod.id, own.selinux_options)


def _mark(config: runtime_pb2.ContainerConfig, found: Found) -> None:
    """Mark the files that are the container's: ours by where they are here, and mounts for which that is asked."""
    if not found.selinux.files:
        return
    asked = [found.sources[mount.host_path] for mount in config.mounts if mount.selinux_relabel and mount.host_path]
    for path in asked:
        selinux.check_markable(path)
    ours = [path for path in found.files.values() if path != "/dev/shm"]  # noqa: S108 - the host's own
    selinux.mark([*ours, *found.volumes.values(), *asked], found.selinux.files)


def _user(security: runtime_pb2.LinuxContainerSecurityContext, image_user: str, view: LayerView) -> User:
    """Return who the container runs as. Raises InvalidArgument."""
    has_user = bool(security.run_as_username) or security.HasField("run_as_user")
    group = security.run_as_group.value if security.HasField("run_as_group") else None
    if group is not None and not has_user:
        raise InvalidArgument(f'user group "{group}" is specified without user')
    text = security.run_as_username or (str(security.run_as_user.value) if has_user else image_user)
    user = resolve_user(text, (), view)
    gid = user.gid if group is None else group
    more = list(security.supplemental_groups)
    own = [] if security.supplemental_groups_policy == image_pb2.Strict else list(user.additional_gids[1:])
    numbers = (gid, *more)
    if any(not 0 <= number < 1 << 31 for number in numbers):
        raise InvalidArgument("security_context: a group is outside of 0 to 2147483647")
    return User(user.uid, gid, tuple(dict.fromkeys((gid, *own, *more))), user.home)


def _stop_signal(config: runtime_pb2.ContainerConfig, image: ImageConfig) -> int:
    wanted = enum_name(runtime_pb2.Signal, config.stop_signal).removeprefix("SIGNAL_")
    if config.stop_signal == runtime_pb2.SIGNAL_RUNTIME_DEFAULT:
        return signals.parse(image.process.stop_signal) or 15
    number = signals.parse(wanted.replace("PLUS", "+").replace("MINUS", "-"))
    if number is None:
        raise InvalidArgument(f"stop_signal {wanted} is not a signal of this machine")
    return number


def _profile(path: str) -> dict[str, Any] | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_PROFILE + 1)
    except OSError as error:
        raise FailedPrecondition(f'seccomp profile "{path}": {error.strerror}') from error
    if len(data) > _MAX_PROFILE:
        raise FailedPrecondition(f'seccomp profile "{path}" is larger than {_MAX_PROFILE} bytes')
    document = load_json(data, "the seccomp profile")
    if not isinstance(document, dict) or "defaultAction" not in document:
        raise InvalidArgument(f'seccomp profile "{path}" has no defaultAction')
    return document
