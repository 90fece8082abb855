"""Unpacking a layer: archive entries become files below one directory, and nowhere else."""

import errno
import os
import stat
from collections.abc import Container

from pyctrd.diff import attributes
from pyctrd.diff import tar_stream as tar
from pyctrd.diff.errors import ArchiveError, TooLarge
from pyctrd.diff.filling import Filler, finish, write
from pyctrd.diff.tar_stream import Entry, TarReader
from pyctrd.diff.tree import Directory, Tree
from pyctrd.diff.whiteouts import AUFS, OPAQUE, PREFIX, clean, hidden_by, shown

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Larger files, in bytes, are worth no second process.
_SMALL = 64 << 10
_NODE_TYPES = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
DEVICES = frozenset((tar.CHARACTER, tar.BLOCK_DEVICE))
# Errors that another archive would not have met.
_ASKED_FOR = frozenset(
    (
        errno.E2BIG, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG,
        errno.ENOENT, errno.ENOTDIR, errno.ERANGE,
    )
)  # fmt: skip


def apply(
    reader: TarReader, tree: Tree, max_file_size: int, filler: Filler | None = None, left_out: Container[int] = ()
) -> None:
    """Unpack all entries of `reader` into `tree`. Files may be `max_file_size` bytes long, holes included.

    Entries of the kinds `left_out` are passed over. Small ones are filled by `filler`, if there is one. Raises
    ArchiveError and OSError, whose texts name the entry, and TooLarge.
    """
    entries = iter(reader)
    name = b""
    while True:
        try:
            entry = next(entries, None)
        except ArchiveError as error:
            raise ArchiveError(f"{error}, after entry {shown(name)}") from error
        if entry is None:
            break
        name = entry.name
        if entry.kind in left_out:
            continue
        try:
            _place(entry, reader, tree, filler, max_file_size)
        except ArchiveError as error:
            raise ArchiveError(f"entry {shown(name)}: {error}") from error
        except OSError as error:
            raise _named(name, error) from error
    if filler is not None and (failure := filler.wait()) is not None:
        raise _named(*failure)
    tree.finish()


def _named(name: bytes, error: OSError) -> Exception:
    """Return `error` as one of the entry `name`."""
    text = f"entry {shown(name)}: {error.strerror}"
    return ArchiveError(text) if error.errno in _ASKED_FOR else OSError(error.errno, text)


def _place(entry: Entry, reader: TarReader, tree: Tree, filler: Filler | None, max_file_size: int) -> None:
    """Make what `entry` says."""
    name = entry.name.rstrip(b"/")
    parent, _, base = name.rpartition(b"/")
    if base in (b"", b".", b".."):
        parent, _, base = clean(name).rpartition(b"/")
        if not base:
            return  # the root itself: whoever made the directory has decided about it
    if name.startswith(AUFS) and name != OPAQUE:
        return
    directory = tree.enter(parent)
    if base.startswith(PREFIX):
        if base == OPAQUE:
            tree.clear(directory)
        elif not base.startswith(AUFS):
            tree.hide(directory, hidden_by(base), entry.uid, entry.gid)
        return
    kind = entry.kind
    if kind == tar.REGULAR:
        if entry.real_size > max_file_size:
            raise TooLarge(f"entry {shown(entry.name)} is {entry.real_size} bytes long")
        _make_file(entry, reader, tree, filler, directory, base)
    elif kind == tar.DIRECTORY:
        path = clean(entry.name)
        made, new = tree.make_directory(directory, base, path, entry.mode)
        attributes.dress(made.fd, entry, untouched=new and directory.plain)
        made.refresh()
        tree.set_times(path, attributes.times(entry))
    else:
        if kind == tar.HARD_LINK and filler is not None:
            filler.wait()  # owner, mode and times that come with the link are the file's too, and come last
        try:
            _make_by_name(entry, tree, directory, base)
        except FileExistsError:
            tree.make_way(directory, base)
            _make_by_name(entry, tree, directory, base)
        attributes.dress_by_name(base, directory.fd, entry)
    tree.claim(directory, base)


def _make_file(
    entry: Entry, reader: TarReader, tree: Tree, filler: Filler | None, directory: Directory, base: bytes
) -> None:
    """Make a regular file with its content."""
    try:
        fd = os.open(base, _NEW_FILE, entry.mode, dir_fd=directory.fd)
    except FileExistsError:
        tree.make_way(directory, base)
        fd = os.open(base, _NEW_FILE, entry.mode, dir_fd=directory.fd)
    if filler is not None and entry.size <= _SMALL and entry.segments is None:
        filler.add(fd, reader.whole(), entry, untouched=directory.plain)
        return
    try:
        if entry.segments is None:
            for piece in reader.content():
                write(fd, piece)
        else:
            for offset, size in entry.segments:
                os.lseek(fd, offset, os.SEEK_SET)
                for piece in reader.part(size):
                    write(fd, piece)
            os.ftruncate(fd, entry.real_size)
        finish(fd, entry, untouched=directory.plain)
    finally:
        os.close(fd)


def _make_by_name(entry: Entry, tree: Tree, directory: Directory, base: bytes) -> None:
    """Make what is not opened: a symlink, a hard link, a device or a FIFO. Raises FileExistsError."""
    if entry.kind == tar.SYMLINK:
        if not entry.link or b"\0" in entry.link:
            raise ArchiveError("a symlink that leads nowhere")
        os.symlink(entry.link, base, dir_fd=directory.fd)
    elif entry.kind == tar.HARD_LINK:
        parent, _, target = clean(entry.link).rpartition(b"/")
        try:
            source = tree.find(parent)
            os.link(target, base, src_dir_fd=source.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise ArchiveError(f"a hard link to {shown(entry.link)}: {error.strerror}") from error
    else:
        try:
            device = os.makedev(entry.major, entry.minor)
        except OverflowError as error:
            raise ArchiveError(f"device number {entry.major}:{entry.minor} is out of range") from error
        os.mknod(base, _NODE_TYPES[entry.kind] | entry.mode, device, dir_fd=directory.fd)
