"""File systems of block devices, looked into by the daemon itself: through a mount that is nowhere."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from pyctr_sys import loop
from pyctr_sys.mount import new_file_system
from pyctrd.core.idmaps import Maps, mapped_root
from pyctrd.core.mounts import Mount
from pyctrd.snapshots.owners import shift

# Seconds in which the kernel lets go of a file whose last user has ended.
PATIENCE: Final = 10.0
# What mount(8) or the kernel keeps with a mount, not with its file system; ours is nowhere.
_NOT_OPTIONS: Final = frozenset(
    {
        *("loop", "rw", "ro", "defaults", "suid", "nosuid", "dev", "nodev", "exec", "noexec"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "strictatime"),
    }
)


def options_for_copies(fs_type: str) -> tuple[str, ...]:
    """Return what lets a file system be mounted beside its copies: xfs looks whether its UUID is mounted already."""
    return ("nouuid",) if fs_type == "xfs" else ()


@contextmanager
def opened(mount: Mount) -> Iterator[Path]:
    """Yield the root directory of a block device's mount, or of a file's with the option loop. Raises OSError."""
    read_only = "ro" in mount.options
    options: dict[str, str | None] = {"ro": None} if read_only else {}
    for option in mount.options:
        if option not in _NOT_OPTIONS:
            name, has_value, value = option.partition("=")
            options[name] = value if has_value else None
    with ExitStack() as stack:
        source = mount.source
        if "loop" in mount.options:
            if not loop.is_attached(mount.source):
                stack.callback(loop.wait_until_free, mount.source, PATIENCE)  # whoever is next finds it written
            source = stack.enter_context(loop.attached(source, read_only=read_only))
        fd = new_file_system(mount.type, {"source": source, **options})
        stack.callback(os.close, fd)
        yield Path(f"/proc/self/fd/{fd}")


def give_tree(mount: Mount, maps: Maps, *, is_filled: bool) -> None:
    """Change the owners of all files of a mount, which has none but its root unless it `is_filled`. Raises OSError."""
    with opened(mount) as tree:
        if is_filled:
            shift(tree, maps)
        else:
            os.chown(tree, *mapped_root(maps))
