"""A mount that somebody else will make: the result of a snapshotter."""

from typing import Final

from pyctrd.core.values import dataclass

FUSE_OVERLAY: Final = "fuse3.fuse-overlayfs"  # an overlay that a program makes; the options are overlayfs's


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(8), its options in order; `target` is relative to where the caller mounts it."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
