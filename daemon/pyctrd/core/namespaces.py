"""A namespace: one tenant of the API, not to be taken for a kernel namespace."""

from dataclasses import dataclass, field

from pyctrd.core.labels import Labels


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and the defaults that its labels set."""

    name: str
    labels: Labels = field(default_factory=dict)
