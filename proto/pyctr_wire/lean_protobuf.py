"""Leave out the part of protobuf that nobody needs: its implementation in Python.

google.protobuf imports it, and the text format with it, also where the one in C does all the work. That would be one
part in twenty of the daemon's start, and half a megabyte of the zygote, whose every page is a burden to its forks.
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

_NAME: Final = "google.protobuf.internal.python_message"


class _Deferred(ModuleType):
    """A module that is loaded when something in it is asked for, as it is where there is no implementation in C."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer() -> None:
    """Defer it, unless protobuf has been loaded already."""
    sys.modules.setdefault(_NAME, _Deferred(_NAME))
