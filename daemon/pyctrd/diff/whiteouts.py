"""Names in layers: where they lead, which of them are whiteouts, and what those become.

Source: OCI image-spec, layer.md, "Whiteouts"; kernel Documentation/filesystems/overlayfs.rst.
"""

from enum import Enum

from pyctrd.diff.errors import ArchiveError

PREFIX = b".wh."
OPAQUE = b".wh..wh..opq"
# Anything else that starts like this is bookkeeping of aufs.
AUFS = b".wh..wh."


class Style(Enum):
    """How lower layers are hidden: as an overlay's upper directory does it, or by removing what is there."""

    OVERLAY = 0
    REMOVE = 1


def clean(name: bytes) -> bytes:
    """Return `name` relative to the layer's root, without `.`, `..` and superfluous slashes; b"" is the root.

    `..` is taken as text and stops at the root, as containerd does; what symlinks do is the kernel's business.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def hidden_by(whiteout: bytes) -> bytes:
    """Return the name that the whiteout called `whiteout` deletes.

    Raises ArchiveError for one that would mean the directory itself or its parent.
    """
    name = whiteout[len(PREFIX) :]
    if name in (b"", b".", b".."):
        raise ArchiveError("a whiteout names no entry of its directory")
    return name


def shown(name: bytes) -> str:
    """Return a name for people: quoted, printable, not longer than a line."""
    return ascii(name[:200].decode(errors="replace"))
