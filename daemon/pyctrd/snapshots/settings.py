"""The [snapshotters] tables of the configuration; keys that containerd has, too, are called as there."""

from typing import Annotated, NamedTuple

from pyctrd.core.settings import Least


class Blockfile(NamedTuple):
    """The [snapshotters.blockfile] table."""

    root_path: Annotated[
        str, 'Where the files are, best where copies share blocks (xfs, btrfs); "" is snapshots/blockfile below root.'
    ] = ""
    scratch_file: Annotated[
        str, 'A file with an empty file system, which every snapshot without a parent is a copy of; "" is one we make.'
    ] = ""
    scratch_size: Annotated[
        int,
        "Bytes of the file that we make: the most that a container may have, its image too.",
        Least(1 << 20),
    ] = 10 << 30
    fs_type: Annotated[str, "Its file system: ext4, xfs, or what else can be mounted."] = "ext4"
    mount_options: Annotated[tuple[str, ...], "Options of its mounts, beside loop and rw or ro."] = ()
    recreate_scratch: Annotated[bool, "Take the scratch file anew at every start, not only at the first."] = False


class Snapshotters(NamedTuple):
    """The [snapshotters] table."""

    blockfile: Annotated[Blockfile, "A file with a file system for each snapshot, mounted by a loop device."] = (
        Blockfile()
    )
