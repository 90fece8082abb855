"""A mount that somebody else will make: the result of a snapshotter."""

from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(8), its options in order; `target` is relative to where the caller mounts it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
