"""Making a layer: the difference of two directory trees, written as an archive.

Both trees are walked side by side, in the order of their names. What is only on the right, or not the same there, is
written out with the directories that lead to it; what is only on the left becomes a whiteout.
"""

import errno
import os
import stat

from pyctr_sys.openat2 import open_in_root
from pyctrd.diff import tar_stream as tar
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.tar_writer import TarWriter
from pyctrd.diff.whiteouts import PREFIX, shown

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_CHUNK = 256 << 10
_CAPABILITY = "security.capability"
_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}

# An entry of both trees: its name, and what it is on the left and on the right; None: it is not there.
_Pair = tuple[bytes, os.stat_result | None, os.stat_result | None]


class Comparison:
    """Writes what turns one tree into another. Raises OSError and ArchiveError, whose texts name the entry."""

    def __init__(
        self, left_fd: int, right_fd: int, writer: TarWriter, *, epoch: int | None = None, upper_fd: int | None = None
    ) -> None:
        """Compare the directories `left_fd` and `right_fd`; no time will be later than `epoch` (seconds since 1970).

        `upper_fd` is the upper directory if the right tree is an overlay of it over the left one: what it does not
        hold is the same in both. The fds are borrowed.
        """
        self._left_fd, self._right_fd, self._upper_fd = left_fd, right_fd, upper_fd
        self._writer, self._epoch = writer, epoch
        self._written: set[bytes] = {b""}
        # The first name that was written of each file that has several; the unchanged ones, while none was.
        self._links: dict[tuple[int, int], bytes] = {}
        self._unchanged: dict[tuple[int, int], list[bytes]] = {}

    def write(self) -> None:
        """Write the whole archive."""
        # An iterator per directory on the way down: no recursion, since containers make trees of any depth.
        frames = [(b"", iter(self._pairs(b"", on_left=True)))]
        while frames:
            directory, pairs = frames[-1]
            pair = next(pairs, None)
            if pair is None:
                frames.pop()
                continue
            name, left, right = pair
            path = os.path.join(directory, name)
            try:
                if self._visit(path, left, right):
                    on_left = left is not None and stat.S_ISDIR(left.st_mode)
                    frames.append((path, iter(self._pairs(path, on_left=on_left))))
            except ArchiveError as error:
                raise ArchiveError(f"{shown(path)}: {error}") from error
            except OSError as error:
                raise OSError(error.errno, f"{shown(path)}: {error.strerror}") from error
        self._writer.finish()

    def _visit(self, path: bytes, left: os.stat_result | None, right: os.stat_result | None) -> bool:
        """Write what has changed about one entry; return whether to go down into it."""
        if right is None:
            self._write_whiteout(path)
            return False
        if left is None or not self._same(path, left, right):
            self._write_entry(path, right)
        elif _is_linked(right):
            self._keep_together(path, right)
        return stat.S_ISDIR(right.st_mode)

    def _keep_together(self, path: bytes, status: os.stat_result) -> None:
        """Write an unchanged name of a file that has several if another one is written, now or later.

        Where the layer is applied, that one is a file of its own: without this, the two names would part.
        """
        file = status.st_dev, status.st_ino
        if file in self._links:
            self._write_entry(path, status)
        else:
            self._unchanged.setdefault(file, []).append(path)

    def _pairs(self, path: bytes, *, on_left: bool) -> list[_Pair]:
        """Return what may differ in a directory that the right tree has, and the left one if `on_left`."""
        right = _list(self._right_fd, path)
        left = _list(self._left_fd, path) if on_left else {}
        names = left.keys() | right.keys()
        if self._upper_fd is not None and on_left:
            # What both trees have and the upper directory has not comes from the left one.
            try:
                upper = _list(self._upper_fd, path).keys()
            except FileNotFoundError:
                return []
            names = (left.keys() ^ right.keys()) | (names & upper)
        return [(name, left.get(name), right.get(name)) for name in sorted(names)]

    def _same(self, path: bytes, left: os.stat_result, right: os.stat_result) -> bool:
        """Return whether an entry is the same in both trees. Times of directories do not count."""
        for field in ("st_mode", "st_uid", "st_gid", "st_rdev"):
            if getattr(left, field) != getattr(right, field):
                return False
        if stat.S_ISDIR(left.st_mode) or (left.st_dev, left.st_ino) == (right.st_dev, right.st_ino):
            return True
        if left.st_size != right.st_size or left.st_mtime_ns != right.st_mtime_ns:
            return False
        if stat.S_ISLNK(left.st_mode):
            return _read_link(self._left_fd, path) == _read_link(self._right_fd, path)
        if not stat.S_ISREG(left.st_mode):
            return True
        left_fd = open_in_root(self._left_fd, os.fsdecode(path), _FILE)
        try:
            right_fd = open_in_root(self._right_fd, os.fsdecode(path), _FILE)
            try:
                if _capability(left_fd) != _capability(right_fd):
                    return False
                # Archives have whole seconds: two versions made within one can only be told apart by their content.
                return left.st_mtime_ns % 10**9 != 0 or _same_content(left_fd, right_fd)
            finally:
                os.close(right_fd)
        finally:
            os.close(left_fd)

    def _write_parents(self, path: bytes) -> None:
        """Write the directories that lead to `path`, unless they have been written."""
        parents: list[bytes] = []
        parent = path.rpartition(b"/")[0]
        while parent not in self._written:
            parents.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in reversed(parents):
            fd = open_in_root(self._right_fd, os.fsdecode(parent), _DIRECTORY)
            status = os.fstat(fd)
            os.close(fd)
            self._write_header(parent, tar.DIRECTORY, status)

    def _write_whiteout(self, path: bytes) -> None:
        self._write_parents(path)
        parent, _, name = path.rpartition(b"/")
        self._writer.add(os.path.join(parent, PREFIX + name), tar.REGULAR, mtime=self._epoch or 0)

    def _write_entry(self, path: bytes, status: os.stat_result) -> None:
        """Write one entry with its content; sockets, which no archive has, are passed over."""
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return
        if path.rpartition(b"/")[2].startswith(PREFIX):
            raise ArchiveError("in a layer, a name that starts with .wh. would delete another one")
        self._write_parents(path)
        file = status.st_dev, status.st_ino
        if _is_linked(status):
            first = self._links.setdefault(file, path)
            if first != path:
                # Whoever applies it may change the owner, which takes the file's capabilities: a link says them again.
                xattrs = self._xattrs_of(path) if kind == tar.REGULAR else None
                self._write_header(path, tar.HARD_LINK, status, link=first, xattrs=xattrs)
                return
        if kind == tar.REGULAR:
            self._write_file(path)
        elif kind == tar.SYMLINK:
            self._write_header(path, kind, status, link=_read_link(self._right_fd, path))
        else:
            self._write_header(path, kind, status)
        for other in self._unchanged.pop(file, ()):
            self._write_entry(other, status)

    def _xattrs_of(self, path: bytes) -> dict[bytes, bytes] | None:
        fd = open_in_root(self._right_fd, os.fsdecode(path), _FILE)
        try:
            return _xattrs(fd)
        finally:
            os.close(fd)

    def _write_file(self, path: bytes) -> None:
        fd = open_in_root(self._right_fd, os.fsdecode(path), _FILE)
        try:
            status = os.fstat(fd)
            self._write_header(path, tar.REGULAR, status, size=status.st_size, xattrs=_xattrs(fd))
            left = status.st_size
            while left:
                data = os.read(fd, min(left, _CHUNK))
                if not data:
                    raise OSError(errno.EBUSY, "the file became shorter while it was read")
                self._writer.content(data)
                left -= len(data)
            self._writer.pad(status.st_size)
        finally:
            os.close(fd)

    def _write_header(
        self,
        path: bytes,
        kind: int,
        status: os.stat_result,
        *,
        size: int = 0,
        link: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        if kind == tar.DIRECTORY:
            self._written.add(path)
        mtime = status.st_mtime_ns // 10**9
        self._writer.add(
            path,
            kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=size,
            mtime=mtime if self._epoch is None else min(mtime, self._epoch),
            link=link,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)),
            xattrs=xattrs,
        )


def _is_linked(status: os.stat_result) -> bool:
    """Return whether something has several names."""
    return status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)


def _list(root_fd: int, path: bytes) -> dict[bytes, os.stat_result]:
    """Return what is in the directory `path` below `root_fd` (borrowed)."""
    fd = open_in_root(root_fd, os.fsdecode(path) or "/", _DIRECTORY)
    try:
        return {os.fsencode(name): os.stat(name, dir_fd=fd, follow_symlinks=False) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def _read_link(root_fd: int, path: bytes) -> bytes:
    fd = open_in_root(root_fd, os.fsdecode(path), os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _capability(fd: int) -> bytes:
    """Return the file capabilities of `fd` (borrowed) as their attribute has them; b"" for none."""
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            return b""
        raise


def _xattrs(fd: int) -> dict[bytes, bytes] | None:
    """Return the attributes of the file `fd` (borrowed) that a layer keeps: its capabilities."""
    capability = _capability(fd)
    return {_CAPABILITY.encode(): capability} if capability else None


def _same_content(left_fd: int, right_fd: int) -> bool:
    """Return whether two files (borrowed fds, at their start) have the same bytes."""
    while True:
        left = os.read(left_fd, _CHUNK)
        if left != os.read(right_fd, _CHUNK):
            return False
        if not left:
            return True
