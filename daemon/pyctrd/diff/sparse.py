"""Maps of sparse files: where in a file the data lies that the archive has of it.

Source: GNU tar manual, "Storing Sparse Files".
"""

from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.numbers import decimal, octal

# Most pieces of data in one file (CVE-2025-58183).
MAX_SEGMENTS = 1 << 17

# Offset and size in bytes of each, in order.
Segments = list[tuple[int, int]]


def parse_segments(table: bytes, segments: Segments) -> bool:
    """Append what an old sparse table holds; return whether it was full, so that more may follow."""
    for at in range(0, len(table), 24):
        if not table[at]:
            return False
        segments.append((octal(table[at : at + 12], "offset"), octal(table[at + 12 : at + 24], "size")))
    if len(segments) > MAX_SEGMENTS:
        raise ArchiveError(f"a sparse file of more than {MAX_SEGMENTS} segments")
    return True


def checked(segments: Segments, real_size: int, stored: int) -> Segments:
    """Return `segments` if they lie in order within the file and match what the archive holds of it."""
    end = total = 0
    for offset, size in segments:
        if offset < end or offset + size > real_size:
            raise ArchiveError("the map of a sparse file is out of order or beyond its end")
        end = offset + size
        total += size
    if total != stored:
        raise ArchiveError(f"a sparse file's map has {total} bytes of data, the archive {stored}")
    return segments


def parse_map(numbers: list[bytes]) -> Segments:
    """Return pairs of offset and size. Raises ArchiveError for an odd count, too many, or what is no number."""
    if len(numbers) % 2 or len(numbers) > 2 * MAX_SEGMENTS:
        raise ArchiveError(f"the map of a sparse file has {len(numbers)} numbers")
    values = [decimal(number, "sparse map") for number in numbers]
    return list(zip(values[::2], values[1::2], strict=True))
