"""Pods and containers as CRI's messages."""

import signal
from collections.abc import Mapping
from typing import Any, Final, Protocol

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctrd.cri.records import Pod, PodContainer

_RESTS: Final = {"SIGCLD", "SIGIOT", "SIGPOLL"}  # other names of signals


class EnumType(Protocol):
    """An enumeration's type."""

    def Name(self, number: Any, /) -> str: ...


def enum_name(kind: EnumType, number: int) -> str:
    """Return the name of an enumeration's value, or the number itself: clients send any."""
    try:
        return kind.Name(number)
    except ValueError:
        return str(number)


def pod_state(pod: Pod) -> "runtime_pb2.PodSandboxState":
    """Return whether a pod is ready."""
    return runtime_pb2.SANDBOX_READY if pod.ready else runtime_pb2.SANDBOX_NOTREADY


def pod_status(pod: Pod) -> runtime_pb2.PodSandboxStatus:
    """Return everything about a pod."""
    config = pod.config
    addresses = pod.addresses if pod.ready else ()
    return runtime_pb2.PodSandboxStatus(
        id=pod.id,
        metadata=config.metadata,
        state=pod_state(pod),
        created_at=pod.created_at,
        network=runtime_pb2.PodSandboxNetworkStatus(
            ip=addresses[0] if addresses else "",
            additional_ips=[runtime_pb2.PodIP(ip=address) for address in addresses[1:]],
        ),
        linux=runtime_pb2.LinuxPodSandboxStatus(namespaces=runtime_pb2.Namespace(options=pod.namespace_options)),
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=pod.handler,
    )


def pod_item(pod: Pod) -> bytes:
    """Return a pod as lists have it: an encoded ListPodSandboxResponse with this one; whole lists are a row of these.

    StreamPodSandboxesResponse has the same field, and of a pod only its state changes.
    """
    if pod.encoded is None or pod.encoded[0] != pod.ready:
        pod.encoded = pod.ready, runtime_pb2.ListPodSandboxResponse(items=[_pod_item(pod)]).SerializeToString()
    return pod.encoded[1]


def _pod_item(pod: Pod) -> runtime_pb2.PodSandbox:
    config = pod.config
    return runtime_pb2.PodSandbox(
        id=pod.id,
        metadata=config.metadata,
        state=pod_state(pod),
        created_at=pod.created_at,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=pod.handler,
    )


def container_item(container: PodContainer) -> bytes:
    """Return a container as lists have it: an encoded ListContainersResponse, or StreamContainersResponse, with it."""
    state = container.state
    if container.encoded is None or container.encoded[0] != state:
        response = runtime_pb2.ListContainersResponse(containers=[_container_item(container)])
        container.encoded = state, response.SerializeToString()
    return container.encoded[1]


def _container_item(container: PodContainer) -> runtime_pb2.Container:
    config = container.config
    return runtime_pb2.Container(
        id=container.id,
        pod_sandbox_id=container.pod.id,
        metadata=config.metadata,
        image=config.image,
        image_ref=container.image.id,
        image_id=container.image.id,
        state=container.state,
        created_at=container.created_at,
        labels=config.labels,
        annotations=config.annotations,
    )


def container_statuses(pod: Pod) -> list[runtime_pb2.ContainerStatus]:
    """Return everything about a pod's containers, the youngest first: of those of one name, kubelets take the first."""
    youngest_first = sorted(pod.containers.values(), key=lambda one: one.created_at, reverse=True)
    return [container_status(one) for one in youngest_first]


def container_status(container: PodContainer) -> runtime_pb2.ContainerStatus:
    """Return everything about a container."""
    config, image = container.config, container.image
    uid, gid, groups = container.user
    wanted = config.image
    return runtime_pb2.ContainerStatus(
        id=container.id,
        metadata=config.metadata,
        state=container.state,
        created_at=container.created_at,
        started_at=container.started_at,
        finished_at=container.finished_at,
        exit_code=container.exit_code,
        image=image_pb2.ImageSpec(
            image=image.tag or image.id,
            user_specified_image=wanted.user_specified_image,
            annotations=wanted.annotations,
        ),
        image_ref=image.digest or image.id,
        image_id=image.id,
        reason=container.reason or _reason(container),
        message=container.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=container.log_path,
        resources=runtime_pb2.ContainerResources(linux=config.linux.resources),
        user=runtime_pb2.ContainerUser(
            linux=runtime_pb2.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups)
        ),
        stop_signal=_signal(container.stop_signal),
    )


def _reason(container: PodContainer) -> str:
    if not container.finished_at:
        return ""
    return "Error" if container.exit_code else "Completed"


def _signal(number: int) -> "runtime_pb2.Signal":
    name = f"SIGNAL_{_signal_names().get(number, 'SIGTERM')}"
    return getattr(runtime_pb2, name, runtime_pb2.SIGNAL_SIGTERM)


def _signal_names() -> Mapping[int, str]:
    """Return the name that CRI has for each signal."""
    names = {int(one): one.name for one in signal.Signals if one.name not in _RESTS}
    low, high = int(signal.SIGRTMIN), int(signal.SIGRTMAX)
    for number in range(low + 1, high):
        middle = number - low <= 15
        names[number] = f"SIGRTMINPLUS{number - low}" if middle else f"SIGRTMAXMINUS{high - number}"
    return names
