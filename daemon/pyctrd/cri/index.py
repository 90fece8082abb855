"""All pods and their containers, in memory: lists and statuses are answered from here."""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar

from pyctr_wire.errors import NotFound
from pyctrd.cri.records import Pod, PodContainer


class Named(Protocol):
    """A pod or a container."""

    @property
    def id(self) -> str: ...


_T = TypeVar("_T", bound=Named)


class Index:
    """What is complete: objects that are being made are not in here."""

    def __init__(self) -> None:
        """Start empty."""
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, PodContainer] = {}

    def add_pod(self, pod: Pod) -> None:
        """Let a pod be found."""
        self.pods[pod.id] = pod

    def remove_pod(self, pod: Pod) -> None:
        """Let it be found no more."""
        self.pods.pop(pod.id, None)

    def add_container(self, container: PodContainer) -> None:
        """Let a container be found."""
        self.containers[container.id] = container
        container.pod.containers[container.id] = container

    def remove_container(self, container: PodContainer) -> None:
        """Let it be found no more."""
        self.containers.pop(container.id, None)
        container.pod.containers.pop(container.id, None)

    def pod(self, id: str) -> Pod:
        """Return the pod of that id, or with the only id that begins so. NotFound."""
        return _find(self.pods, id, "sandbox")

    def container(self, id: str) -> PodContainer:
        """Return the container of that id, or with the only id that begins so. NotFound."""
        return _find(self.containers, id, "container")

    def pods_like(self, id: str, labels: Mapping[str, str], also: Callable[[Pod], bool]) -> Iterator[Pod]:
        """Yield the pods with that (beginning of an) id, if one is given, all of those labels, and `also`."""
        for pod in self.pods.values():
            if pod.id.startswith(id) and (not labels or _has_all(pod.config.labels, labels)) and also(pod):
                yield pod

    def containers_like(
        self, id: str, pod_id: str, labels: Mapping[str, str], also: Callable[[PodContainer], bool]
    ) -> Iterator[PodContainer]:
        """Yield the containers with those (beginnings of) ids, if given, all of those labels, and `also`."""
        for container in self.containers.values():
            if (
                container.id.startswith(id)
                and container.pod.id.startswith(pod_id)
                and (not labels or _has_all(container.config.labels, labels))
                and also(container)
            ):
                yield container


def _find(objects: Mapping[str, _T], id: str, noun: str) -> _T:
    found = objects.get(id)
    if found is not None:
        return found
    like = [one for key, one in objects.items() if id and key.startswith(id)]
    if len(like) != 1:
        reason = "is the beginning of several ids" if like else "is not there"
        raise NotFound(f'{noun} "{id}" {reason}')
    return like[0]


def _has_all(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
