"""Objects whose references are not counted.

CPython writes to an object to count a reference to it, and in a forked process each page that is written to is copied.
Since 3.12 it leaves an object alone whose count has a certain value, as that of None has. A process that has
all it will ever import, and will only fork and never free any of it, can give that value to everything.
Source: PEP 683.
"""

import gc
import sys
from types import CodeType
from typing import Any, Final

from pyctr_sys.calls import ffi

_VERSIONS: Final = ((3, 12), (3, 13))  # in which the count is an object's first word, and 32 bits of that decide


def immortalize() -> int:
    """Make all objects immortal that can be reached; return how many that were, 0 where it cannot be done.

    For the build of CPython that everybody has: with a GIL, of 64 bits, not made for debugging.
    """
    free_threaded = not getattr(sys, "_is_gil_enabled", lambda: True)()
    if (
        sys.version_info[:2] not in _VERSIONS
        or sys.maxsize < 1 << 32
        or free_threaded
        or hasattr(sys, "gettotalrefcount")
    ):
        return 0
    immortal = _count_of(None)[0]
    seen: set[int] = set()
    waiting: list[object] = gc.get_objects()
    made = 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or item is seen or item is waiting:
            continue
        seen.add(id(item))
        waiting += gc.get_referents(item)
        if isinstance(item, CodeType):  # it tells the collector nothing, as it cannot be part of a cycle
            waiting += (item.co_consts, item.co_names, item.co_name, item.co_qualname, item.co_filename)
            waiting += (item.co_linetable, item.co_exceptiontable)
        count = _count_of(item)
        if count[0] != immortal:
            count[0] = immortal
            made += 1
    return made


def _count_of(item: object) -> Any:
    """Return a C pointer to the object's count of references."""
    return ffi.cast("uint32_t *", id(item))
