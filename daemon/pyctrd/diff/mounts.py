"""What a snapshotter's mounts say: an overlay's directories, mount flags.

Source: mount(8); kernel Documentation/filesystems/overlayfs.rst.
"""

from pyctr_sys.mount import MountFlag
from pyctr_sys.namespaces import in_user_namespace
from pyctrd.diff.messages import PlainMount

_FUSE_OVERLAY = "fuse3.fuse-overlayfs"  # as in core.mounts, which a worker does not load
_FLAGS = {
    "ro": MountFlag.RDONLY, "nosuid": MountFlag.NOSUID, "nodev": MountFlag.NODEV, "noexec": MountFlag.NOEXEC,
    "sync": MountFlag.SYNCHRONOUS, "dirsync": MountFlag.DIRSYNC, "noatime": MountFlag.NOATIME,
    "nodiratime": MountFlag.NODIRATIME, "relatime": MountFlag.RELATIME, "strictatime": MountFlag.STRICTATIME,
}  # fmt: skip
_DEFAULTS = frozenset(("rw", "suid", "dev", "exec", "async", "atime", "diratime", "defaults", "bind", "rbind"))


# Lets a renamed directory's content stay where it was: an upper directory then does not hold all that it changes.
_REDIRECT_DEFAULT = "/sys/module/overlay/parameters/redirect_dir"


class Overlay:
    """An overlay's directories, the nearest lower one first; `upper` is "" if it is read-only."""

    def __init__(self, upper: str, lowers: tuple[str, ...], options: frozenset[str] = frozenset()) -> None:
        """Keep them, and all options."""
        self.upper, self.lowers = upper, lowers
        self._options = options

    @property
    def userxattr(self) -> bool:
        """Whether marks are in the `user.` namespace, as in a rootless overlay."""
        return "userxattr" in self._options

    @property
    def redirects(self) -> bool:
        """Whether directories may be redirected."""
        for option in self._options:
            if option.startswith("redirect_dir="):
                return option != "redirect_dir=off"
        try:
            with open(_REDIRECT_DEFAULT) as file:
                return file.read().startswith("Y")
        except FileNotFoundError:
            return True  # no telling

    def as_lowers(self) -> "Overlay":
        """Return the same view without a directory to write to; that one may be in use elsewhere."""
        return Overlay("", (self.upper, *self.lowers) if self.upper else self.lowers, self._options)


def is_served(mounts: list[PlainMount]) -> bool:
    """Return whether a program stacks the directories of `mounts`, with marks of its own in what it writes."""
    return len(mounts) == 1 and mounts[0][0] == _FUSE_OVERLAY


def overlay_of(mounts: list[PlainMount]) -> Overlay | None:
    """Return the directories if `mounts` are one overlay, else None."""
    if len(mounts) != 1 or mounts[0][0] not in ("overlay", _FUSE_OVERLAY):
        return None
    options = mounts[0][3]
    if mounts[0][0] == _FUSE_OVERLAY and in_user_namespace():
        options = (*options, "userxattr")  # the marks that root of a user namespace may set, which the program reads
    values = dict(option.partition("=")[::2] for option in options)
    return Overlay(values.get("upperdir", ""), split_lowers(values.get("lowerdir", "")), frozenset(options))


def layers_of(mounts: list[PlainMount]) -> tuple[str, ...] | None:
    """Return the directories that `mounts` stack, the nearest first; None if that is not what they are."""
    overlay = overlay_of(mounts)
    if overlay is not None:
        return overlay.as_lowers().lowers
    if len(mounts) == 1 and {"bind", "rbind"} & {mounts[0][0], *mounts[0][3]}:
        return (mounts[0][1],)
    return None


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
