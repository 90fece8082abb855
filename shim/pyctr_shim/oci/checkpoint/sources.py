"""What a restored container has mounted that does not come with it, laid out for CRIU to take.

CRIU mounts by name. So the names that it is given lie where nobody else can write: on a tmpfs in a mount namespace
of the restoring process's own. What is attached there was opened by fd, below the container's root by openat2, and
has its final attributes before it is attached, so that a read-only mount is never writable in between:

    <stage>/root       the container's root
    <stage>/mounts/N   one mount of the spec each, or one that is mounted below it
    <stage>/cgroup     the container's view of its cgroups
    <stage>/images     files that CRIU is to read instead of a checkpoint's
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from pyctr_shim.oci import mounts
from pyctr_shim.oci.checkpoint import mount_table
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.mounts import PlannedMount
from pyctr_sys.mount import AT_FDCWD, MNT_DETACH, OPEN_TREE_CLONE, MountFlag, mount, move_mount, open_tree, umount2
from pyctr_sys.openat2 import (
    O_PATH,
    Resolve,
    is_directory,
    make_directories,
    make_file,
    openat2,
)

_BELOW: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_MAGICLINKS)


@dataclass(frozen=True, slots=True)
class Source:
    """A mount point in the container, and where on the stage lies what belongs there.

    An optional one may be missing in a checkpoint: it has come to the host's since.
    """

    where: str
    path: str
    is_optional: bool = False


class Stage:
    """The stage, in this process's own mount namespace; a context manager.

    Its directory is unmounted with all that is on it, and only then removed: as an empty directory or not at all.
    """

    def __init__(self) -> None:
        """Set it up on a new directory."""
        directory = self.directory = tempfile.mkdtemp(prefix="pyctr-restore-")
        mount("tmpfs", directory, "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=700")
        self.root = f"{directory}/root"
        self.cgroup = f"{directory}/cgroup"
        self._mounts, self._images = f"{directory}/mounts", f"{directory}/images"
        for made in (self.root, self._mounts, self._images):
            os.mkdir(made, 0o700)
        self._count = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down; what CRIU has bound from it stays where it is bound."""
        umount2(self.directory, MNT_DETACH)
        os.rmdir(self.directory)

    def attach_root(self, root_fd: int) -> None:
        """Attach the container's root (borrowed)."""
        target_fd = os.open(self.root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        move_mount(root_fd, target_fd)
        os.close(target_fd)

    def bind(self, root_fd: int, planned: Sequence[PlannedMount], default_propagation: int) -> list[Source]:
        """Attach what the spec binds, each mount apart from those below it, and make mount points that are missing.

        Raises OciError naming the mount.
        """
        found: list[Source] = []
        for index, item in enumerate(planned):
            try:
                where = self._mount_point(root_fd, planned[:index], item)
                if item.tree_fd < 0:
                    continue
                mounts.set_attributes(item, default_propagation)
                found += self._attach(item.tree_fd, where)
            except OSError as error:
                raise OciError(f"mounts: {item.destination}: {describe(error)}", error.errno or 0) from None
        return found

    def show_cgroups(self, destination: str, mount_view: Callable[[], None]) -> list[Source]:
        """Have the container's view of its cgroups mounted on the stage; it is for `destination` and what is below."""
        mount_view()
        return [
            Source(where=destination + item.where.removeprefix(self.cgroup), path=item.where)
            for item in mount_table.of("self")
            if mount_table.is_below(item.where, self.cgroup) and item.kind.startswith("cgroup")
        ]

    def cover(self, path: str, data: bytes) -> None:
        """Have whoever is in this mount namespace read `data` from the regular file at `path`."""
        ours = f"{self._images}/{os.path.basename(path)}"
        with open(ours, "xb") as file:
            file.write(data)
        target_fd = os.open(path, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        tree_fd = open_tree(AT_FDCWD, ours, OPEN_TREE_CLONE)
        try:
            move_mount(tree_fd, target_fd)
        finally:
            os.close(tree_fd)
            os.close(target_fd)

    def _mount_point(self, root_fd: int, before: Sequence[PlannedMount], item: PlannedMount) -> str:
        """Return where a mount is once symlinks of the root have been followed; make it there.

        What is below another mount comes with that, or is there: its name is taken as it is.
        """
        if any(mount_table.is_below(item.destination, other.destination) for other in before):
            return item.destination
        if item.tree_fd >= 0 and not is_directory(item.tree_fd):
            fd = make_file(root_fd, item.destination)
        else:
            fd = make_directories(root_fd, item.destination)
        try:
            # The root is attached, so the kernel's name of what has been opened begins with where.
            return os.readlink(f"/proc/self/fd/{fd}").removeprefix(self.root) or "/"
        finally:
            os.close(fd)

    def _attach(self, tree_fd: int, where: str) -> Iterator[Source]:
        """Attach a detached tree (given), then each mount in it once more by itself: CRIU does not bind recursively."""
        path = self._place(tree_fd)
        yield Source(where, path)
        below = [item.where.removeprefix(path) for item in mount_table.of("self") if item.where.startswith(f"{path}/")]
        for name in dict.fromkeys(below):
            fd = openat2(tree_fd, name.lstrip("/"), O_PATH, _BELOW)
            single_fd = open_tree(fd, "", OPEN_TREE_CLONE)
            os.close(fd)
            yield Source(where.rstrip("/") + name, self._place(single_fd), is_optional=True)
            os.close(single_fd)
        os.close(tree_fd)

    def _place(self, tree_fd: int) -> str:
        """Attach a detached tree (borrowed) under a name of its own, which is returned."""
        path = f"{self._mounts}/{self._count}"
        self._count += 1
        if is_directory(tree_fd):
            os.mkdir(path, 0o700)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        target_fd = os.open(path, O_PATH | os.O_CLOEXEC)
        move_mount(tree_fd, target_fd)
        os.close(target_fd)
        return path
