"""The option strings of a mount: flags, attributes, propagation, and what is left for the file system."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pyctr_sys.mount import Attr, MountFlag

_M = MountFlag

# name: (flags set, flags cleared)
_FLAGS: Final[Mapping[str, tuple[int, int]]] = {
    "defaults": (0, 0), "async": (0, _M.SYNCHRONOUS), "sync": (_M.SYNCHRONOUS, 0),
    "ro": (_M.RDONLY, 0), "rw": (0, _M.RDONLY), "suid": (0, _M.NOSUID), "nosuid": (_M.NOSUID, 0),
    "dev": (0, _M.NODEV), "nodev": (_M.NODEV, 0), "exec": (0, _M.NOEXEC), "noexec": (_M.NOEXEC, 0),
    "atime": (0, _M.NOATIME), "noatime": (_M.NOATIME, 0), "diratime": (0, _M.NODIRATIME),
    "nodiratime": (_M.NODIRATIME, 0), "relatime": (_M.RELATIME, 0), "norelatime": (0, _M.RELATIME),
    "strictatime": (_M.STRICTATIME, 0), "nostrictatime": (0, _M.STRICTATIME),
    "symfollow": (0, _M.NOSYMFOLLOW), "nosymfollow": (_M.NOSYMFOLLOW, 0), "dirsync": (_M.DIRSYNC, 0),
    "iversion": (_M.I_VERSION, 0), "noiversion": (0, _M.I_VERSION), "lazytime": (_M.LAZYTIME, 0),
    "nolazytime": (0, _M.LAZYTIME), "mand": (_M.MANDLOCK, 0), "nomand": (0, _M.MANDLOCK),
    "silent": (_M.SILENT, 0), "loud": (0, _M.SILENT), "remount": (_M.REMOUNT, 0),
    "bind": (_M.BIND, 0), "rbind": (_M.BIND | _M.REC, 0),
}  # fmt: skip

_PROPAGATION: Final[Mapping[str, int]] = {
    "private": _M.PRIVATE, "shared": _M.SHARED, "slave": _M.SLAVE, "unbindable": _M.UNBINDABLE,
    "rprivate": _M.PRIVATE | _M.REC, "rshared": _M.SHARED | _M.REC, "rslave": _M.SLAVE | _M.REC,
    "runbindable": _M.UNBINDABLE | _M.REC,
}  # fmt: skip

# The recursive forms of mount_setattr: (attributes set, attributes cleared).
_RECURSIVE: Final[Mapping[str, tuple[int, int]]] = {
    "rro": (Attr.RDONLY, 0), "rrw": (0, Attr.RDONLY), "rnosuid": (Attr.NOSUID, 0), "rsuid": (0, Attr.NOSUID),
    "rnodev": (Attr.NODEV, 0), "rdev": (0, Attr.NODEV), "rnoexec": (Attr.NOEXEC, 0), "rexec": (0, Attr.NOEXEC),
    "rnodiratime": (Attr.NODIRATIME, 0), "rdiratime": (0, Attr.NODIRATIME), "rrelatime": (0, Attr.ATIME),
    "rnorelatime": (Attr.STRICTATIME, 0), "rnoatime": (Attr.NOATIME, 0), "ratime": (0, Attr.NOATIME),
    "rstrictatime": (Attr.STRICTATIME, 0), "rnostrictatime": (0, Attr.STRICTATIME),
    "rnosymfollow": (Attr.NOSYMFOLLOW, 0), "rsymfollow": (0, Attr.NOSYMFOLLOW),
}  # fmt: skip

_ATTRIBUTES: Final = (
    (_M.RDONLY, Attr.RDONLY), (_M.NOSUID, Attr.NOSUID), (_M.NODEV, Attr.NODEV), (_M.NOEXEC, Attr.NOEXEC),
    (_M.NOATIME, Attr.NOATIME), (_M.NODIRATIME, Attr.NODIRATIME), (_M.STRICTATIME, Attr.STRICTATIME),
    (_M.NOSYMFOLLOW, Attr.NOSYMFOLLOW),
)  # fmt: skip

_IDMAPS: Final = ("idmap", "ridmap")
_ATIME: Final = _M.NOATIME | _M.RELATIME | _M.STRICTATIME  # one choice of three, in the kernel's eyes
FEATURES: Final = sorted({*_FLAGS, *_PROPAGATION, *_RECURSIVE, *_IDMAPS, "tmpcopyup"})


@dataclass(frozen=True, slots=True)
class MountOptions:
    """A mount's parsed options."""

    flags: int
    cleared: int  # flags that are not to be there, even if what is bound has them
    propagation: tuple[int, ...]
    recursive_set: int
    recursive_clear: int
    copy_up: bool
    idmap: str  # "idmap" this mount, "ridmap" also those below it, "" none
    data: str

    @property
    def is_bind(self) -> bool:
        """Whether an existing file or directory is shown, not a new file system."""
        return bool(self.flags & _M.BIND)

    @property
    def attributes(self) -> int:
        """The flags of this one mount, as mount_setattr has them."""
        return flags_to_attributes(self.flags)

    @property
    def cleared_attributes(self) -> int:
        """The attributes that this one mount is not to have."""
        chosen = Attr.ATIME if (self.cleared | self.flags) & _ATIME else 0
        return flags_to_attributes(self.cleared & ~_ATIME) | chosen


def flags_to_attributes(flags: int) -> int:
    """Translate mount(2)'s per-mount flags to mount_setattr's attributes."""
    attributes = 0
    for flag, attribute in _ATTRIBUTES:
        if flags & flag:
            attributes |= attribute
    return attributes


def parse(options: Iterable[str]) -> MountOptions:
    """Parse option strings; what is not known here is the file system's own, in its order."""
    return _parse(tuple(options))


@lru_cache(maxsize=32)  # most containers' mounts are those of the one before
def _parse(options: tuple[str, ...]) -> MountOptions:
    flags = cleared = recursive_set = recursive_clear = 0
    idmap = ""
    propagation: list[int] = []
    data: list[str] = []
    copy_up = False
    for option in options:
        if (change := _FLAGS.get(option)) is not None:
            flags = (flags | change[0]) & ~change[1]
            cleared = (cleared | change[1]) & ~change[0]
        elif (kind := _PROPAGATION.get(option)) is not None:
            propagation.append(kind)
        elif (change := _RECURSIVE.get(option)) is not None:
            recursive_set = (recursive_set | change[0]) & ~change[1]
            recursive_clear |= change[1]
        elif option == "tmpcopyup":
            copy_up = True
        elif option in _IDMAPS:
            idmap = option
        elif option:
            data.append(option)
    return MountOptions(
        flags, cleared, tuple(propagation), recursive_set, recursive_clear, copy_up, idmap, ",".join(data)
    )
