"""Pods and their containers as the daemon knows them, and what of it is kept in the metadata.

A pod is a row of the sandboxes, one of its containers a row of the containers, both in namespace k8s.io. Beside the
request's own message each row has an extension of ours, JSON, with what has become of it since.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.idmaps import IdMap, Maps
from pyctrd.core.labels import MAX_BYTES
from pyctrd.core.sandboxes import Sandbox
from pyctrd.core.values import dataclass

NAMESPACE: Final = "k8s.io"
KIND_LABEL: Final = "io.cri-containerd.kind"
_OWN_LABELS: Final = "containerd.io/"
SANDBOXER: Final = "pyctr"
CONTAINER_STATE: Final = "pyctr.cri.Container"
_POD_STATE: Final = "pyctr.cri.Pod"
_POD_CONFIG: Final = "runtime.v1.PodSandboxConfig"
_CONTAINER_CONFIG: Final = "runtime.v1.ContainerConfig"
_LOST: Final = 255

State = runtime_pb2.ContainerState


@dataclass(slots=True, eq=False)
class Pod:
    """A pod's sandbox. `addresses` has the primary one first; `created_at` is in nanoseconds since 1970."""

    id: str
    config: image_pb2.PodSandboxConfig
    handler: str
    created_at: int
    ready: bool = True
    addresses: tuple[str, ...] = ()
    has_task: bool = False  # whether a shim of another make runs it
    containers: "dict[str, PodContainer]" = field(default_factory=dict)
    encoded: tuple[bool, bytes] | None = None  # what lists have of it, and whether it was ready then

    @property
    def name(self) -> str:
        """What only one pod may be called at a time."""
        meta = self.config.metadata
        return f"{meta.name}_{meta.namespace}_{meta.uid}_{meta.attempt}"

    @property
    def namespace_options(self) -> image_pb2.NamespaceOption:
        """Which namespaces it has to itself."""
        return self.config.linux.security_context.namespace_options

    @property
    def maps(self) -> Maps | None:
        """Who the users of its user namespace are on this machine, None without one."""
        return maps_of(self.namespace_options)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of namespaces that are pinned for it."""
        options = self.namespace_options
        wanted = {
            "user": self.maps is not None,
            "net": options.network != image_pb2.NODE,
            "uts": options.network != image_pb2.NODE,
            "ipc": options.ipc != image_pb2.NODE,
            "pid": options.pid == image_pb2.POD,
        }
        return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


@dataclass(frozen=True, slots=True)
class ImageNames:
    """An image as a container remembers it: its id, a tag and a digest by which it was known, if there were any."""

    id: str
    tag: str = ""
    digest: str = ""


@dataclass(slots=True, eq=False)
class PodContainer:
    """A container of a pod; times are nanoseconds since 1970, 0 while it has not come to that."""

    id: str
    pod: Pod
    config: runtime_pb2.ContainerConfig
    image: ImageNames
    created_at: int
    user: tuple[int, int, tuple[int, ...]] = (0, 0, (0,))  # uid, gid, supplemental groups
    stop_signal: int = 15
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    busy: str = ""  # "starting" or "removing"
    checkpoint: tuple[str, int] | None = None  # digest and size of the processes that it goes on with
    stop_asked: tuple[int, float] | None = None  # when its stop signal was sent, and the seconds of grace from then on
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # once its end is noted
    noting: asyncio.Lock = field(default_factory=asyncio.Lock)  # so that what was noted last is the latest
    encoded: tuple[int, bytes] | None = None  # what lists have of it, and the state that it was in then

    @property
    def name(self) -> str:
        """What only one container may be called at a time."""
        meta, pod = self.config.metadata, self.pod.config.metadata
        return f"{meta.name}_{pod.name}_{pod.namespace}_{pod.uid}_{meta.attempt}"

    @property
    def state(self) -> "State":
        """Where it is in its life."""
        if self.finished_at:
            return runtime_pb2.CONTAINER_EXITED
        return runtime_pb2.CONTAINER_RUNNING if self.started_at else runtime_pb2.CONTAINER_CREATED

    @property
    def state_name(self) -> str:
        """The same as clients read it in errors."""
        return State.Name(self.state)

    @property
    def log_path(self) -> str:
        """Where its log is, "" for none."""
        directory, name = self.pod.config.log_directory, self.config.log_path
        return f"{directory}/{name}" if directory and name else ""

    @property
    def log_uri(self) -> str:
        """The same for the shim, which follows no link below the pod's directory."""
        directory = self.pod.config.log_directory
        return f"cri://{quote(self.log_path)}?{urlencode({'below': directory})}" if self.log_path else ""

    def lost(self, now: int) -> None:
        """Note that nobody knows how it ended."""
        self.finished_at, self.exit_code, self.reason = now, _LOST, "Unknown"


def row_labels(kind: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a pod's or container's row, by which other clients find it: the request's, and its kind.

    None that the daemon itself would act upon, and none that is too long for a row.
    """
    short = {key: value for key, value in labels.items() if len(f"{key}{value}".encode()) <= MAX_BYTES}
    return {key: value for key, value in short.items() if not key.startswith(_OWN_LABELS)} | {KIND_LABEL: kind}


def maps_of(options: image_pb2.NamespaceOption) -> Maps | None:
    """Return the maps of the user namespace that is asked for, None for the machine's own."""
    wanted = options.userns_options
    if not options.HasField("userns_options") or wanted.mode != image_pb2.POD:
        return None
    uids, gids = (
        tuple(IdMap(one.container_id, one.host_id, one.length) for one in some) for some in (wanted.uids, wanted.gids)
    )
    return Maps(uids, gids)


def pod_to_row(pod: Pod) -> Sandbox:
    """Return a pod's row."""
    state = {
        "version": 1,
        "handler": pod.handler,
        "created_at": pod.created_at,
        "ready": pod.ready,
        "addresses": pod.addresses,
        "task": pod.has_task,
    }
    return Sandbox(
        id=pod.id,
        runtime_name=pod.handler,
        spec=AnyValue(_POD_CONFIG, pod.config.SerializeToString()),
        labels=row_labels("sandbox", pod.config.labels),
        extensions={_POD_STATE: _encode(_POD_STATE, state)},
        sandboxer=SANDBOXER,
    )


def pod_from_row(row: Sandbox) -> Pod | None:
    """Return the pod of a row, None if somebody else made that sandbox."""
    state = _decode(row.extensions.get(_POD_STATE))
    if state is None or row.spec is None:
        return None
    return Pod(
        id=row.id,
        config=image_pb2.PodSandboxConfig.FromString(row.spec.value),
        handler=str(state["handler"]),
        created_at=int(state["created_at"]),
        ready=bool(state["ready"]),
        addresses=tuple(state["addresses"]),
        has_task=bool(state.get("task")),
    )


def container_extensions(container: PodContainer) -> dict[str, AnyValue]:
    """Return what a container's row has beside what every container's has."""
    image = container.image
    state = {
        "version": 1,
        "image": [image.id, image.tag, image.digest],
        "created_at": container.created_at,
        "user": container.user,
        "stop_signal": container.stop_signal,
        "started_at": container.started_at,
        "finished_at": container.finished_at,
        "exit_code": container.exit_code,
        "reason": container.reason,
        "message": container.message,
        "stop_asked": container.stop_asked,
        "checkpoint": container.checkpoint,
    }
    return {
        _CONTAINER_CONFIG: AnyValue(_CONTAINER_CONFIG, container.config.SerializeToString()),
        CONTAINER_STATE: _encode(CONTAINER_STATE, state),
    }


def container_from_row(row: Container, pod: Pod) -> PodContainer | None:
    """Return the container of a row, None if it was not made for a pod."""
    state, config = _decode(row.extensions.get(CONTAINER_STATE)), row.extensions.get(_CONTAINER_CONFIG)
    if state is None or config is None:
        return None
    uid, gid, groups = state["user"]
    stop_asked, checkpoint = state.get("stop_asked"), state.get("checkpoint")
    return PodContainer(
        id=row.id,
        pod=pod,
        config=runtime_pb2.ContainerConfig.FromString(config.value),
        image=ImageNames(*state["image"]),
        created_at=int(state["created_at"]),
        user=(uid, gid, tuple(groups)),
        stop_signal=int(state["stop_signal"]),
        started_at=int(state["started_at"]),
        finished_at=int(state["finished_at"]),
        exit_code=int(state["exit_code"]),
        reason=str(state["reason"]),
        message=str(state["message"]),
        stop_asked=(int(stop_asked[0]), float(stop_asked[1])) if stop_asked else None,
        checkpoint=(str(checkpoint[0]), int(checkpoint[1])) if checkpoint else None,
    )


def nanoseconds(moment: datetime) -> int:
    """Return a time as CRI has it."""
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def now() -> int:
    """Return the time of day as CRI has it."""
    return nanoseconds(datetime.now(UTC))


def _encode(url: str, state: dict[str, Any]) -> AnyValue:
    return AnyValue(url, json.dumps(state).encode())


def _decode(value: AnyValue | None) -> dict[str, Any] | None:
    return None if value is None else json.loads(value.value)
