"""Namespaces, images and containers' records.

Source: containerd.services.namespaces.v1, images.v1, containers.v1, tasks.v1.
"""

from collections.abc import Mapping
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2
from pyctr_wire.errors import AlreadyExists
from pyctr_wire.labels import RESTART_STATUS
from pyctrd.migration.side import LABEL, Side
from pyctrd.remote.connection import Remote

_NAMESPACES: Final = "/containerd.services.namespaces.v1.Namespaces/"
_IMAGES: Final = "/containerd.services.images.v1.Images/"
_CONTAINERS: Final = "/containerd.services.containers.v1.Containers/"
_TASKS: Final = "/containerd.services.tasks.v1.Tasks/"

# Of a pod's containers: kubelet makes them anew, in whatever runtime it finds.
_POD_LABEL: Final = "io.cri-containerd.kind"
_HELD: Final = "restart-held"


def namespaces(daemon: Remote) -> Mapping[str, Mapping[str, str]]:
    """Return the labels of each namespace."""
    request = namespace_pb2.ListNamespacesRequest()
    found = daemon.call(f"{_NAMESPACES}List", request, namespace_pb2.ListNamespacesResponse).namespaces
    return {namespace.name: dict(namespace.labels) for namespace in found}


def copy_namespace(target: Remote, name: str, labels: Mapping[str, str]) -> None:
    """See that the target has a namespace, and the labels on it that it lacks."""
    namespace = namespace_pb2.Namespace(name=name, labels=labels)
    try:
        request = namespace_pb2.CreateNamespaceRequest(namespace=namespace)
        target.call(f"{_NAMESPACES}Create", request, namespace_pb2.CreateNamespaceResponse)
    except AlreadyExists:
        there = namespaces(target)[name]
        lacking = {key: value for key, value in labels.items() if key not in there}
        if lacking:
            update = namespace_pb2.UpdateNamespaceRequest(
                namespace=namespace_pb2.Namespace(name=name, labels=lacking),
                update_mask=FieldMask(paths=[f"labels.{key}" for key in lacking]),
            )
            target.call(f"{_NAMESPACES}Update", update, namespace_pb2.UpdateNamespaceResponse)


def images(side: Side) -> list[images_pb2.Image]:
    """Return the images."""
    return list(side.call(f"{_IMAGES}List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse).images)


def copy_image(target: Side, image: images_pb2.Image) -> bool:
    """See that the target has an image; return whether it was missing. Raises AlreadyExists if it has another one."""
    try:
        request = images_pb2.CreateImageRequest(image=image)
        target.call(f"{_IMAGES}Create", request, images_pb2.CreateImageResponse)
    except AlreadyExists:
        wanted = images_pb2.GetImageRequest(name=image.name)
        there = target.call(f"{_IMAGES}Get", wanted, images_pb2.GetImageResponse).image
        if there.target.digest != image.target.digest:
            raise AlreadyExists(f"the target has {there.target.digest} by this name, which stays") from None
        return False
    return True


def containers(side: Side) -> list[containers_pb2.Container]:
    """Return the records of containers."""
    request = containers_pb2.ListContainersRequest()
    return list(side.call(f"{_CONTAINERS}List", request, containers_pb2.ListContainersResponse).containers)


def running(side: Side) -> set[str]:
    """Return the ids of the containers that have a task which has not ended."""
    tasks = side.call(f"{_TASKS}List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse).tasks
    return {task.id or task.container_id for task in tasks if task.status != task_pb2.STOPPED}


def of_pod(container: containers_pb2.Container) -> bool:
    """Say whether a container belongs to a pod of Kubernetes."""
    return _POD_LABEL in container.labels


def copy_container(target: Side, container: containers_pb2.Container, *, running: bool) -> bool:
    """See that the target has a container's record; return whether it was missing.

    While its task runs in the source, the target must not start it too: its wish for that is held back, until a run
    finds the task ended. Raises AlreadyExists if the target has another container by this id.
    """
    wish = container.labels.get(RESTART_STATUS, "")
    record = containers_pb2.Container()
    record.CopyFrom(container)
    if running and wish:
        del record.labels[RESTART_STATUS]
        record.labels[LABEL] = _HELD
    try:
        request = containers_pb2.CreateContainerRequest(container=record)
        target.call(f"{_CONTAINERS}Create", request, containers_pb2.CreateContainerResponse)
    except AlreadyExists:
        wanted = containers_pb2.GetContainerRequest(id=container.id)
        there = target.call(f"{_CONTAINERS}Get", wanted, containers_pb2.GetContainerResponse).container
        if not _same(there, container):
            raise AlreadyExists("the target has another container by this id, which stays") from None
        if there.labels.get(LABEL) == _HELD and not running:
            update = containers_pb2.UpdateContainerRequest(container=container, update_mask=FieldMask(paths=["labels"]))
            target.call(f"{_CONTAINERS}Update", update, containers_pb2.UpdateContainerResponse)
        return False
    return True


def _same(one: containers_pb2.Container, other: containers_pb2.Container) -> bool:
    """Say whether two records are of one container: labels may differ."""
    return (one.spec, one.image, one.snapshotter, one.snapshot_key, one.runtime.name) == (
        other.spec,
        other.image,
        other.snapshotter,
        other.snapshot_key,
        other.runtime.name,
    )
