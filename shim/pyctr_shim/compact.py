"""Put the code that every shim runs side by side in memory.

CPython counts references inside the objects, so running a function writes to the pages that its code lies on, and
after a fork each page that is written to becomes the shim's own. Code objects lie where their modules were loaded,
one hot one among ten cold ones. Made anew, one after the other in the order of their first call, they fill a sixth
of the pages.
"""

import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

_ROUNDS: Final = 2  # the first round's copies fill the holes that freed objects have left, the second's lie together

_retired: list[CodeType] = []
"""What has been replaced: were it freed, a shim's new objects would be scattered over the holes."""


def pack_code(practise: Callable[[], None]) -> None:
    """Find out which functions `practise` calls and make their code anew, side by side."""
    for _ in range(_ROUNDS):
        called = _code_called_by(practise)
        functions = [
            found for found in gc.get_objects() if isinstance(found, FunctionType) and found.__code__ in called
        ]
        for function in sorted(functions, key=lambda function: called[function.__code__]):
            _retired.append(function.__code__)
            function.__code__ = _copy(function.__code__)


def _code_called_by(practise: Callable[[], None]) -> dict[CodeType, int]:
    """Return the code objects that run, each with the place of its first call."""
    called: dict[CodeType, int] = {}

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call":
            called.setdefault(frame.f_code, len(called))

    sys.setprofile(note)
    try:
        practise()
    finally:
        sys.setprofile(None)
    return called


def _copy(code: CodeType) -> CodeType:
    """Return the same code in a new place, that of its inner functions included."""
    return code.replace(
        co_consts=tuple(_copy(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    )
