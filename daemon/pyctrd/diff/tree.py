"""The directory that a layer is unpacked into: opening, making and hiding below it.

Directories are opened by the kernel with the layer's root as their `/` (openat2), so a symlink, a `..` or somebody
who renames directories meanwhile can lead anywhere but out. They stay open until too many are: the next entry
mostly goes into the same one.

Lower layers are hidden in one of two ways (`Style`). In an overlay's upper directory, whiteouts become what
overlayfs knows: a character device 0:0, and opaque directories, which are handed out (`mark_opaque`) because their
attribute takes a privilege that this process has not. Elsewhere what they hide is removed. Whiteouts never touch
what the same layer brings, in whatever order it comes.

Each directory is read at most once for whiteouts, however many there are (CVE-2026-95838): one is *fresh* if all in
it comes from this layer, by birth or because it was cleared, and then nothing in it needs to be looked at again.
"""

import errno
import os
import stat
from collections.abc import Callable

from pyctr_sys.openat2 import open_in_root
from pyctrd.diff import attributes
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.prune import Fate, prune, remove
from pyctrd.diff.whiteouts import Style, clean, shown

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_CHILD = _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_OPEN = 512
_MAX_SYMLINKS = 40


class Directory:
    """An open directory; closed with its last reference."""

    __slots__ = ("fd", "inode", "plain")

    def __init__(self, fd: int) -> None:
        """Own `fd`."""
        self.fd = fd
        self.refresh()

    def __del__(self) -> None:
        """Close it."""
        os.close(self.fd)

    def refresh(self) -> None:
        """Look at it again after its mode or attributes changed."""
        status = os.fstat(self.fd)
        self.inode = status.st_ino
        # Else owner and mode of a new entry depend on more than the call that makes it.
        self.plain = not status.st_mode & stat.S_ISGID and "system.posix_acl_default" not in os.listxattr(self.fd)


class Tree:
    """What is below the root of a layer that is being unpacked; not used again after an error."""

    def __init__(self, root_fd: int, lower_fd: int | None, style: Style, mark_opaque: Callable[[int], None]) -> None:
        """Work below `root_fd`; `lower_fd` shows the layers below, if there are any (both borrowed).

        `mark_opaque` is given borrowed fds.
        """
        self._root_fd, self._lower_fd, self._style, self._mark_opaque = root_fd, lower_fd, style, mark_opaque
        root = Directory(os.open(".", _CHILD, dir_fd=root_fd))
        self._root_inode = root.inode
        # By path, as the archive spells it and cleaned.
        self._open: dict[bytes, Directory] = {b"": root}
        # Times of directories by cleaned path, set last: every new entry changes them.
        self._times: dict[bytes, tuple[int, int]] = {}
        # Inode numbers of directories in which all is this layer's; in the others, its entries by
        # (inode number of the directory, name). Inode numbers that are freed can only come back fresh.
        self._fresh: set[int] = set()
        self._ours: set[tuple[int, bytes]] = set()
        self._opaque: set[int] = set()
        with os.scandir(root.fd) as entries:
            if next(entries, None) is None:
                self._fresh.add(root.inode)

    def enter(self, path: bytes) -> Directory:
        """Return the directory `path`, made with its parents where missing.

        Raises ArchiveError if something on the way is no directory.
        """
        return self._open.get(path) or self._enter(path)

    def find(self, path: bytes) -> Directory:
        """Return the directory `path`. Raises FileNotFoundError or NotADirectoryError."""
        return self._open.get(path) or self._remember(path, self._resolve(clean(path)))

    def make_directory(self, parent: Directory, name: bytes, path: bytes, mode: int) -> tuple[Directory, bool]:
        """Return the directory `name` in `parent` and whether it is new, replacing what is no directory."""
        was_hidden = False
        try:
            os.mkdir(name, mode, dir_fd=parent.fd)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return self._remember(path, Directory(os.open(name, _CHILD, dir_fd=parent.fd))), False
            was_hidden = _is_whiteout(status)
            self.make_way(parent, name)
            os.mkdir(name, mode, dir_fd=parent.fd)
        made = self._remember(path, Directory(os.open(name, _CHILD, dir_fd=parent.fd)))
        self._fresh.add(made.inode)
        self.claim(parent, name)
        if was_hidden:
            # The layer deleted what was here before it made the directory: without this, the two would merge.
            self.clear(made)
        return made, True

    def make_way(self, parent: Directory, name: bytes) -> None:
        """Remove `name` in `parent` for an entry that replaces it."""
        mode = os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            self._open.clear()  # paths may have led through it
        remove(name, parent.fd)

    def claim(self, parent: Directory, name: bytes) -> None:
        """Note that `name` in `parent` comes from this layer."""
        if parent.inode not in self._fresh:
            self._ours.add((parent.inode, name))

    def hide(self, parent: Directory, name: bytes, uid: int, gid: int) -> None:
        """Hide what lower layers have as `name` in `parent`; the whiteout belongs to `uid` and `gid`."""
        try:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if parent.inode in self._fresh or (parent.inode, name) in self._ours:
                if stat.S_ISDIR(status.st_mode):
                    self.clear(Directory(os.open(name, _CHILD, dir_fd=parent.fd)))
                return
            self.make_way(parent, name)
        if self._style is Style.OVERLAY:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent.fd)
            os.chown(name, uid, gid, dir_fd=parent.fd, follow_symlinks=False)
            self.claim(parent, name)

    def clear(self, directory: Directory) -> None:
        """Hide all that lower layers have in `directory`."""
        if directory.inode in self._opaque:
            return
        self._opaque.add(directory.inode)
        if directory.inode not in self._fresh:
            descended = [directory.inode]
            prune(directory.fd, lambda parent, name, inode: self._judge(parent, name, inode, descended))
            self._fresh.update(descended)
        if self._style is Style.REMOVE:
            return
        if directory.inode != self._root_inode:
            self._mark_opaque(directory.fd)
        elif self._lower_fd is not None:
            # overlayfs does not look for the mark on the root of a layer.
            for name in os.listdir(self._lower_fd):
                self.hide(directory, os.fsencode(name), 0, 0)

    def set_times(self, path: bytes, times: tuple[int, int]) -> None:
        """Let the directory `path` have these times (access, modification; ns) in the end."""
        self._times[path] = times

    def finish(self) -> None:
        """Set the times of directories."""
        self._open.clear()
        for path, times in self._times.items():
            try:
                fd = open_in_root(self._root_fd, os.fsdecode(path), _DIRECTORY | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    continue  # a later entry replaced it
                raise
            os.utime(fd, ns=times)
            os.close(fd)

    def _enter(self, path: bytes) -> Directory:
        """Open or make the directory `path`, which is not open under this spelling."""
        cleaned = clean(path)
        directory = self._open.get(cleaned)
        if directory is None:
            try:
                directory = self._resolve(cleaned)
            except (FileNotFoundError, NotADirectoryError):
                directory = self._make_path(cleaned)
        return self._remember(path, directory)

    def _resolve(self, path: bytes) -> Directory:
        return Directory(open_in_root(self._root_fd, os.fsdecode(path) or "/", _DIRECTORY))

    def _remember(self, path: bytes, directory: Directory) -> Directory:
        if len(self._open) >= _MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[path] = directory
        return directory

    def _make_path(self, path: bytes) -> Directory:
        """Walk down `path`, making what is missing, also where a dangling symlink leads."""
        names = path.split(b"/")[::-1]
        directory, done = self._resolve(b""), b""
        symlinks = _MAX_SYMLINKS
        while names:
            name = names.pop()
            here = os.path.join(done, name)
            try:
                status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                status = None
            if status is None or _is_whiteout(status):
                directory = self._make_parent(directory, name, here)
            elif stat.S_ISDIR(status.st_mode):
                directory = Directory(os.open(name, _CHILD, dir_fd=directory.fd))
            elif stat.S_ISLNK(status.st_mode) and symlinks:
                symlinks -= 1
                target = clean(os.path.join(b"/", done, os.readlink(name, dir_fd=directory.fd)))
                names += target.split(b"/")[::-1] if target else []
                directory, here = self._resolve(b""), b""
            else:
                raise ArchiveError(f"its parent {shown(here)} is no directory")
            done = here
        return directory

    def _make_parent(self, parent: Directory, name: bytes, path: bytes) -> Directory:
        """Make a directory that the layer has no entry for; it takes after the one below."""
        made, _ = self.make_directory(parent, name, path, 0o755)
        if self._lower_fd is None:
            return made
        try:
            lower_fd = open_in_root(self._lower_fd, os.fsdecode(path), _DIRECTORY)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return made
            raise
        try:
            self._times.setdefault(path, attributes.copy(lower_fd, made.fd))
        finally:
            os.close(lower_fd)
        made.refresh()
        return made

    def _judge(self, parent: int, name: bytes, inode: int, descended: list[int]) -> Fate:
        """Decide about an entry of a directory that is being cleared; note those that are gone through."""
        if (parent, name) not in self._ours:
            return Fate.REMOVE
        if inode in self._fresh:
            return Fate.KEEP
        descended.append(inode)
        return Fate.DESCEND


def _is_whiteout(status: os.stat_result) -> bool:
    """Return whether overlayfs takes this for a whiteout."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
