"""A namespace: one tenant of the API, not to be taken for a kernel namespace."""

from dataclasses import field

from pyctrd.core.labels import Labels
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and the defaults that its labels set."""

    name: str
    labels: Labels = field(default_factory=dict)
