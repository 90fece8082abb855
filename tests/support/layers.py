"""Layers made with the standard library's tarfile, and by hand where that refuses to."""

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def entry(name: str, data: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return an archive member: a file with `data`, or what `fields` (TarInfo's attributes) make it."""
    info = tarfile.TarInfo(name)
    info.mtime = 1_000_000_000
    if data is None and "type" not in fields:
        fields["type"] = tarfile.DIRTYPE
    info.mode = 0o755 if fields.get("type") == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    info.size = len(data or b"")
    return info, data or b""


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a directory."""
    return entry(name, **fields)


def symlink(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a symlink."""
    return entry(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a hard link."""
    return entry(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def archive(
    entries: Iterable[tuple[tarfile.TarInfo, bytes]],
    format: int = tarfile.PAX_FORMAT,
    pax_headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return the archive of `entries`, written by tarfile."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, pax_headers=pax_headers) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def header(
    name: bytes = b"f",
    flag: bytes = b"0",
    size: bytes = b"00000000000\0",
    change: Callable[[bytearray], None] = lambda _: None,
) -> bytes:
    """Return a header block whose fields are bytes that no writer would write, with a right checksum."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = size
    block[136:148] = b"00000000001\0"
    block[156:157] = flag
    block[257:265] = b"ustar\x0000"
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(records: bytes, flag: bytes = b"x") -> bytes:
    """Return an extended header with these records, padded."""
    size = b"%011o\0" % len(records)
    return header(b"pax", flag, size) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest + len(str(rest))))
    return b"%d %s=%s\n" % (length, key, value)


END = bytes(1024)
