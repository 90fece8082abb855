"""Writing tar archives: ustar headers, preceded by PAX records for what does not fit them.

Source: POSIX.1-2017 pax, "pax Interchange Format".
"""

import struct
from collections.abc import Callable, Mapping

from pyctrd.diff.tar_stream import BLOCK, DIRECTORY

#                        name mode uid gid size mtime checksum type link magic names major minor prefix
_HEADER = struct.Struct("100s 8s   8s  8s  12s  12s   8s       c    100s 8s    64x   8s    8s    155s   12x")
_MAGIC = b"ustar\x0000"
_PAX = b"x"
_SMALL, _LARGE = 8**7, 8**11  # what no longer fits the fields of 8 and of 12 bytes


class TarWriter:
    """Writes one archive, in order."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """Pass the archive to `write`, in pieces of all sizes."""
        self._write = write

    def add(
        self,
        name: bytes,
        kind: int,
        *,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Write the header of an entry whose `size` bytes of content `write` follow, and `pad`.

        `kind` is one of tar_stream's; `mtime` in seconds since 1970.
        """
        if kind == DIRECTORY and not name.endswith(b"/"):
            name += b"/"
        records = {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
        prefix, short_name = _split(name)
        if short_name is None:
            records[b"path"], short_name = name, name[:100]
        if len(link) > 100 or not link.isascii():
            records[b"linkpath"] = link
        for key, value, limit in (
            (b"uid", uid, _SMALL), (b"gid", gid, _SMALL), (b"size", size, _LARGE), (b"mtime", mtime, _LARGE),
        ):  # fmt: skip
            if not 0 <= value < limit:
                records[key] = b"%d" % value
        if records:
            data = b"".join(_record(key, value) for key, value in sorted(records.items()))
            # The name is for people and for readers that know no PAX.
            self._write(_header(b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2][:80], _PAX, 0o644, len(data)))
            self._write(data)
            self.pad(len(data))
        self._write(
            _header(
                short_name, bytes([kind]), mode, size, prefix=prefix, uid=uid, gid=gid, mtime=mtime, link=link,
                device=device,
            )
        )  # fmt: skip

    def content(self, data: bytes) -> None:
        """Write some of an entry's content."""
        self._write(data)

    def pad(self, size: int) -> None:
        """Fill up the last block of `size` bytes of content."""
        if size % BLOCK:
            self._write(bytes(-size % BLOCK))

    def finish(self) -> None:
        """Write the end-of-archive marker."""
        self._write(bytes(2 * BLOCK))


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Return prefix and name as a ustar header holds them; None for a name that it cannot hold."""
    if not name.isascii():
        return b"", None
    if len(name) <= 100:
        return b"", name
    # The name must not be empty, and its part behind the slash must fit.
    slash = name.rfind(b"/", 0, min(len(name) - 1, 156))
    if slash <= 0 or len(name) - slash - 1 > 100:
        return b"", None
    return name[:slash], name[slash + 1 :]


def _record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _octal(value: int, digits: int) -> bytes:
    """Return a number field; what does not fit, and stands in a PAX record, is 0."""
    return b"%0*o" % (digits, value if 0 <= value < 8**digits else 0)


def _header(
    name: bytes,
    kind: bytes,
    mode: int,
    size: int,
    *,
    prefix: bytes = b"",
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """Return a header block."""
    major, minor = device
    fields = [
        name, _octal(mode, 7), _octal(uid, 7), _octal(gid, 7), _octal(size, 11), _octal(mtime, 11), b" " * 8, kind,
        link[:100], _MAGIC, _octal(major, 7), _octal(minor, 7), prefix,
    ]  # fmt: skip
    block = _HEADER.pack(*fields)
    fields[6] = b"%06o\0 " % sum(block)
    return _HEADER.pack(*fields)
