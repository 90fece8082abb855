"""What happened to an object, told after its transaction has committed.

Task events are not here: shims send them ready-made. Source: containerd api/events, services/images/v1.
"""

from dataclasses import field
from typing import ClassVar, TypeAlias

from pyctrd.core.anys import AnyValue
from pyctrd.core.labels import Labels
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class ContainerCreate:
    """A container was stored."""

    topic: ClassVar[str] = "/containers/create"
    id: str
    image: str
    runtime_name: str
    runtime_options: AnyValue | None = None


@dataclass(frozen=True, slots=True)
class ContainerUpdate:
    """A container's record changed."""

    topic: ClassVar[str] = "/containers/update"
    id: str
    image: str
    labels: Labels = field(default_factory=dict)
    snapshot_key: str = ""


@dataclass(frozen=True, slots=True)
class ContainerDelete:
    """A container's record is gone."""

    topic: ClassVar[str] = "/containers/delete"
    id: str


@dataclass(frozen=True, slots=True)
class ImageCreate:
    """A name was given."""

    topic: ClassVar[str] = "/images/create"
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageUpdate:
    """An image points elsewhere or has other labels."""

    topic: ClassVar[str] = "/images/update"
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageDelete:
    """A name is gone, deleted or expired."""

    topic: ClassVar[str] = "/images/delete"
    name: str


@dataclass(frozen=True, slots=True)
class ContentCreate:
    """A blob of `size` bytes came to be in the namespace."""

    topic: ClassVar[str] = "/content/create"
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ContentDelete:
    """A client deleted a blob."""

    topic: ClassVar[str] = "/content/delete"
    digest: str


@dataclass(frozen=True, slots=True)
class SnapshotPrepare:
    """An active snapshot was made."""

    topic: ClassVar[str] = "/snapshot/prepare"
    key: str
    parent: str
    snapshotter: str


@dataclass(frozen=True, slots=True)
class SnapshotCommit:
    """The active snapshot `key` became the committed one `name`."""

    topic: ClassVar[str] = "/snapshot/commit"
    key: str
    name: str
    snapshotter: str


@dataclass(frozen=True, slots=True)
class SnapshotRemove:
    """A snapshot is gone, removed or collected."""

    topic: ClassVar[str] = "/snapshot/remove"
    key: str
    snapshotter: str


@dataclass(frozen=True, slots=True)
class NamespaceCreate:
    """A namespace was created by name."""

    topic: ClassVar[str] = "/namespaces/create"
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NamespaceUpdate:
    """A namespace has other labels."""

    topic: ClassVar[str] = "/namespaces/update"
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NamespaceDelete:
    """A namespace is gone."""

    topic: ClassVar[str] = "/namespaces/delete"
    name: str


Event: TypeAlias = (
    ContainerCreate
    | ContainerUpdate
    | ContainerDelete
    | ImageCreate
    | ImageUpdate
    | ImageDelete
    | ContentCreate
    | ContentDelete
    | SnapshotPrepare
    | SnapshotCommit
    | SnapshotRemove
    | NamespaceCreate
    | NamespaceUpdate
    | NamespaceDelete
)
