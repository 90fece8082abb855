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


class Devmapper(NamedTuple):
    """The [snapshotters.devmapper] table."""

    pool_name: Annotated[str, 'The thin pool, as `dmsetup ls` has it; "" is none, and no such snapshotter.'] = ""
    root_path: Annotated[str, 'Where it is noted whose devices they are; "" is snapshots/devmapper below root.'] = ""
    base_image_size: Annotated[
        str, "Size of a device, unless it is on top of another; the most that a container may have."
    ] = "10GB"
    async_remove: Annotated[bool, "Remove devices with the next collection, not at once."] = False
    discard_blocks: Annotated[bool, "Tell the pool's disk of blocks that are free when a device is removed."] = False
    fs_type: Annotated[str, "The file system of devices: ext4 or xfs."] = "ext4"
    fs_options: Annotated[str, "Further arguments of mkfs."] = ""
    min_free_space: Annotated[
        str, "How much of the pool's data and metadata must be free; if less is, no device is made."
    ] = "10%"


class Snapshotters(NamedTuple):
    """The [snapshotters] table."""

    blockfile: Annotated[Blockfile, "A file with a file system for each snapshot, mounted by a loop device."] = (
        Blockfile()
    )
    devmapper: Annotated[Devmapper, "A device of a thin pool for each snapshot; needs a pool_name."] = Devmapper()
