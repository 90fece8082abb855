"""Extended header records of PAX archives, and the numbers in them.

Source: POSIX.1-2017 pax, "pax Extended Header"; GNU tar manual, "Storing Sparse Files".
"""

from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.numbers import decimal

XATTR = b"SCHILY.xattr."


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Return the records of an extended header; an empty value means that there is none, as in the standard.

    Sparse format 0.0 repeats two keys for each segment; they become one `GNU.sparse.map` as in format 0.1. Raises
    ArchiveError if a record is malformed.
    """
    records: dict[bytes, bytes] = {}
    segments: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 9)
        length = data[at:space]
        if space < 0 or not length.isdigit():
            raise ArchiveError("an extended header record has no length")
        end = at + int(length)
        if end <= space or data[end - 1 : end] != b"\n":
            raise ArchiveError("an extended header record has a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ArchiveError("an extended header record has no key")
        if key in (b"path", b"linkpath", b"GNU.sparse.name") and b"\0" in value:
            raise ArchiveError("a name has a NUL in it")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            segments.append(value)
        elif value:
            records[key] = value
        else:
            records.pop(key, None)
        at = end
    if segments:
        records[b"GNU.sparse.map"] = b",".join(segments)
    return records


def parse_time(text: bytes) -> int:
    """Return seconds since 1970 with an optional fraction as ns, negative before. Raises ArchiveError."""
    seconds, _, fraction = text.partition(b".")
    negative = seconds.startswith(b"-")
    if fraction and not fraction.isdigit():
        raise ArchiveError(f"{text[:40].decode(errors='replace')!r} is no time")
    time = decimal(seconds[negative:], "time") * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -time if negative else time
