"""Which pages a process has touched since it was forked, and touching them ahead: proc(5), madvise(2)."""

import array
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from pyctr_sys.calls import libc

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PRESENT, _FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_POPULATE_READ, _POPULATE_WRITE = 22, 23

# (first address, length in bytes, advice) after one another: small, and shared after a fork.
if TYPE_CHECKING:
    Ranges = array.array[int]  # not subscriptable before 3.12
else:
    Ranges = array.array


def touched(pid: int) -> Ranges:
    """Return the pages that a child of this process does not share with it any more, and the file pages it has used.

    Only where this process has memory too. Raises OSError, also where the kernel does not tell.
    """
    found = array.array("Q")
    ours = list(_mappings(os.getpid()))
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end in _mappings(pid):
            if not any(low <= start and end <= high for low, high in ours):
                continue
            pagemap.seek(start // _PAGE * 8)
            entries = array.array("Q", pagemap.read((end - start) // _PAGE * 8))
            _append_runs(found, start, entries)
    return found


def _mappings(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the address ranges of private mappings, save those that the kernel provides."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            words = line.split()
            if words[1][3] == "p" and not line.rstrip().endswith(("[vvar]", "[vdso]", "[vsyscall]", "[vvar_vclock]")):
                low, _, high = words[0].partition("-")
                yield int(low, 16), int(high, 16)


def _append_runs(found: Ranges, start: int, entries: Ranges) -> None:
    advice, first = 0, 0
    for number, entry in enumerate(entries):
        now = _advice_for(entry)
        if now != advice:
            if advice:
                found.extend((start + first * _PAGE, (number - first) * _PAGE, advice))
            advice, first = now, number
    if advice:
        found.extend((start + first * _PAGE, (len(entries) - first) * _PAGE, advice))


def _advice_for(entry: int) -> int:
    if not entry & _PRESENT:
        return 0
    if entry & _FILE:
        return _POPULATE_READ
    return _POPULATE_WRITE if entry & _EXCLUSIVE else 0


def populate(ranges: Ranges) -> None:
    """Touch pages in this process, in as few calls as there are runs of them.

    What has changed since they were recorded, or a kernel before 5.14, only makes it less useful.
    """
    for number in range(0, len(ranges), 3):
        libc.madvise(ranges[number], ranges[number + 1], ranges[number + 2])
