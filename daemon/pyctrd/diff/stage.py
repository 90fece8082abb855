"""The only file system that a worker sees: an empty one, with what it works on mounted below.

    /target   where a layer is unpacked          /left /right   what is compared, read-only
    /lower    the layers below it, read-only     /upper        what the right adds, if that is known

Made in a mount namespace of the worker's own: a tmpfs is mounted over `/`, what is needed is mounted into it (host
paths still lead to the host's files, since a lookup starts below what is mounted on the root), and then it becomes
the root and the host's files are gone. Nothing is left to unmount when the worker ends.
"""

import errno
import os
from types import TracebackType

from pyctr_sys import loop
from pyctr_sys.mount import (
    AT_FDCWD,
    MNT_DETACH,
    OPEN_TREE_CLONE,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    move_mount,
    new_file_system,
    open_tree,
    pivot_root,
    umount2,
)
from pyctr_sys.namespaces import Clone, unshare
from pyctr_sys.openat2 import open_in_root
from pyctrd.diff.messages import PlainMount
from pyctrd.diff.mounts import Overlay, flags_and_data, is_served, layers_of, overlay_of
from pyctrd.diff.whiteouts import Style

_O_PATH = os.O_PATH | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Stage:
    """A context in which things are mounted; at its end they are all that there is.

    Raises OSError from all of its methods. After an error the process is good for nothing but a message.
    """

    def __enter__(self) -> "Stage":
        """Leave the daemon's mount namespace and put an empty file system over the root."""
        unshare(Clone.NEWNS)
        mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
        self._root_fd = new_file_system("tmpfs", {"size": "64k", "mode": "0700"})
        host_fd = os.open("/", _O_PATH)
        move_mount(self._root_fd, host_fd)
        os.close(host_fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the host's files."""
        os.fchdir(self._root_fd)
        # The old root ends up on top of the new one, from where it is taken away.
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
        os.chdir("/")
        os.close(self._root_fd)

    def target(self, mounts: list[PlainMount]) -> tuple[int, Style]:
        """Mount what a layer is to be unpacked into; return its fd and how layers below are to be hidden there.

        One overlay with an upper directory: that directory itself. Else what `mounts` show together.
        """
        overlay = overlay_of(mounts)
        if overlay is not None and overlay.upper:
            return self._bind(overlay.upper, "target"), Style.OVERLAY
        return self._show(mounts, "target", 0), Style.REMOVE

    def lower(self, mounts: list[PlainMount]) -> int | None:
        """Mount the layers below the one that `mounts` add to, read-only, and return the fd; None if it is unknown."""
        overlay = overlay_of(mounts)
        if overlay is None or not overlay.upper or not overlay.lowers:
            return None
        return self._lowers(overlay, "lower")

    def show(self, mounts: list[PlainMount], name: str) -> int:
        """Mount what `mounts` show together, read-only, as `/name`, and return its fd."""
        overlay = overlay_of(mounts)
        if overlay is None:
            return self._show(mounts, name, MountFlag.RDONLY)
        if is_served(mounts):
            raise OSError(
                errno.EOPNOTSUPP, "only its program knows what fuse-overlayfs has written; use overlayfs", name
            )
        # A mounted overlay may have this upper directory; as a lower one it can be shared.
        return self._lowers(overlay.as_lowers(), name)

    def added(self, left: list[PlainMount], right: list[PlainMount]) -> int | None:
        """Return an fd of the upper directory if `right` is an overlay of one over what `left` shows, else None."""
        overlay = overlay_of(right)
        if overlay is None or not overlay.upper or overlay.redirects or overlay.lowers != layers_of(left):
            return None
        return self._bind(overlay.upper, "upper", Attr.RDONLY)

    def _lowers(self, overlay: Overlay, name: str) -> int:
        """Mount an overlay's lower directories."""
        if len(overlay.lowers) == 1:
            return self._bind(overlay.lowers[0], name, Attr.RDONLY)
        self._overlay(overlay, self._point(name))
        return os.open(name, _DIRECTORY, dir_fd=self._root_fd)

    def _show(self, mounts: list[PlainMount], name: str, extra: int) -> int:
        """Mount each of `mounts`, at its target below `/name`: no symlink of an earlier one leads out of that."""
        self._point(name)
        for kind, source, target, options in mounts:
            point_fd = self._open_below(name, target)
            flags, data = flags_and_data(options)
            if {"bind", "rbind"} & {kind, *options}:
                tree_fd = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
                if (flags | extra) & MountFlag.RDONLY:
                    mount_setattr(tree_fd, attr_set=Attr.RDONLY)
                move_mount(tree_fd, point_fd)
                os.close(tree_fd)
            else:
                make = loop.mount_file if "loop" in data else mount
                make(source, f"/proc/self/fd/{point_fd}", kind, flags, ",".join(data) or None)
                if extra & MountFlag.RDONLY:
                    # Somebody may write to the same file system meanwhile: not it, only this view is read-only.
                    view_fd = self._open_below(name, target)
                    mount_setattr(view_fd, attr_set=Attr.RDONLY)
                    os.close(view_fd)
            os.close(point_fd)
        return os.open(name, _DIRECTORY, dir_fd=self._root_fd)

    def _open_below(self, name: str, target: str) -> int:
        """Return an O_PATH fd of `target` below `/name`, as it is mounted now."""
        shown_fd = os.open(name, _O_PATH, dir_fd=self._root_fd)
        try:
            return open_in_root(shown_fd, target or "/")
        finally:
            os.close(shown_fd)

    def _bind(self, source: str, name: str, attributes: int = 0) -> int:
        """Mount the directory `source` as `/name` and return its fd."""
        self._point(name)
        tree_fd = open_tree(AT_FDCWD, source, OPEN_TREE_CLONE)
        if attributes:
            mount_setattr(tree_fd, attr_set=attributes)
        point_fd = os.open(name, _O_PATH, dir_fd=self._root_fd)
        move_mount(tree_fd, point_fd)
        os.close(point_fd)
        os.close(tree_fd)
        return os.open(name, _DIRECTORY, dir_fd=self._root_fd)

    def _overlay(self, overlay: Overlay, point: str) -> None:
        """Mount lower directories as a read-only overlay; by fds, so that their names cannot outgrow a page."""
        fds = [os.open(path, _O_PATH | os.O_DIRECTORY) for path in overlay.lowers]
        os.chdir("/proc/self/fd")
        data = "lowerdir=" + ":".join(map(str, fds)) + (",userxattr" if overlay.userxattr else "")
        mount("overlay", point, "overlay", MountFlag.RDONLY, data)
        for fd in fds:
            os.close(fd)

    def _point(self, name: str) -> str:
        """Make the directory `/name` and return a path that leads to it now."""
        os.mkdir(name, 0o700, dir_fd=self._root_fd)
        return f"/proc/self/fd/{self._root_fd}/{name}"
