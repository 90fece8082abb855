"""What a snapshotter's mounts say: an overlay's directories, mount flags.

Source: mount(8); kernel Documentation/filesystems/overlayfs.rst.
"""

from pyctr_sys.mount import MountFlag
from pyctrd.diff.messages import PlainMount

_FLAGS = {
    "ro": MountFlag.RDONLY, "nosuid": MountFlag.NOSUID, "nodev": MountFlag.NODEV, "noexec": MountFlag.NOEXEC,
    "sync": MountFlag.SYNCHRONOUS, "dirsync": MountFlag.DIRSYNC, "noatime": MountFlag.NOATIME,
    "nodiratime": MountFlag.NODIRATIME, "relatime": MountFlag.RELATIME, "strictatime": MountFlag.STRICTATIME,
}  # fmt: skip
_DEFAULTS = frozenset(("rw", "suid", "dev", "exec", "async", "atime", "diratime", "defaults", "bind", "rbind"))


class Overlay:
    """An overlay's directories, the nearest lower one first; `upper` is "" if it is read-only."""

    def __init__(self, upper: str, lowers: tuple[str, ...], *, userxattr: bool) -> None:
        """Keep them; `userxattr`: marks are in the `user.` namespace, as in a rootless overlay."""
        self.upper, self.lowers, self.userxattr = upper, lowers, userxattr


def overlay_of(mounts: list[PlainMount]) -> Overlay | None:
    """Return the directories if `mounts` are one overlay, else None."""
    if len(mounts) != 1 or mounts[0][0] != "overlay":
        return None
    values = dict(option.partition("=")[::2] for option in mounts[0][3])
    return Overlay(
        values.get("upperdir", ""), split_lowers(values.get("lowerdir", "")), userxattr="userxattr" in values
    )


def split_lowers(text: str) -> tuple[str, ...]:
    r"""Split a `lowerdir=` value at its colons; `\:` is one that belongs to a name."""
    if not text:
        return ()
    return tuple(part.replace("\0", ":") for part in text.replace("\\:", "\0").split(":"))


def flags_and_data(options: tuple[str, ...]) -> tuple[int, list[str]]:
    """Return mount flags and the options that are the file system's own."""
    flags, data = 0, []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _DEFAULTS:
            data.append(option)
    return int(flags), data
