"""Where another runtime has put a container: read from its first process, as no option tells it for sure.

The shim counts, measures and at last ends the processes in there by itself. A cgroup that is the shim's own, or one
above it, is nobody's container: there a runtime that made none has left its process.
"""

import os
from collections.abc import Mapping
from typing import Final

from pyctr_shim.oci.cgroups import Cgroup, Hierarchies, cgroup_for, mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys.cgroups import cgroups_of

_NOWHERE: Final = ""
_UNIFIED: Final = "unified:"
_PLACED: Final = ("memory", "pids", "freezer", "devices", "cpu")  # version 1's that tell where a container is


def find(pid: int) -> str:
    """Return where a process was put, for `cgroup_of`; "" if that is where the shim is. Raises ProcessLookupError.

    On a machine with both versions it may be in a cgroup of either: a runtime that takes the machine for one of
    version 2 uses that hierarchy alone, without any of the controllers.
    """
    try:
        theirs = cgroups_of(pid)
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    return choose(mounted(), theirs, cgroups_of(os.getpid()))


def choose(hierarchies: Hierarchies, theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Return the cgroup that is theirs alone, "" if there is none."""
    if not hierarchies.is_v2:
        for controller in _PLACED:
            path = theirs.get(controller, "")
            if controller in hierarchies.controllers and _is_apart(path, ours.get(controller, "")):
                return path
    path = theirs.get("", "")
    if hierarchies.unified and _is_apart(path, ours.get("", "")):
        return path if hierarchies.is_v2 else _UNIFIED + path
    return _NOWHERE


def _is_apart(theirs: str, ours: str) -> bool:
    """Whether a cgroup has nothing of ours in it: not our own, nor one that contains it."""
    return bool(theirs) and not f"{ours.rstrip('/')}/".startswith(f"{theirs.rstrip('/')}/")


def cgroup_of(place: str) -> "Cgroup | NoCgroup":
    """Return the cgroup that `find` has named."""
    if place == _NOWHERE:
        return NoCgroup()
    hierarchies = mounted()
    if place.startswith(_UNIFIED):
        return cgroup_for(Hierarchies({}, hierarchies.unified), place.removeprefix(_UNIFIED))
    return cgroup_for(hierarchies, place)


def remove(place: str) -> None:
    """Remove a container's cgroup, from both versions' hierarchies where there are both. Raises OSError: EBUSY."""
    cgroup_of(place).remove()
    hierarchies = mounted()
    if place.startswith("/") and not hierarchies.is_v2 and hierarchies.unified:
        cgroup_for(Hierarchies({}, hierarchies.unified), place).remove()


class NoCgroup:
    """What is left where a runtime has put a container into no cgroup of its own: nobody is found or counted."""

    path = ""

    def pids(self) -> list[int]:
        """Raise OciError: nobody has counted them."""
        raise _none()

    def metrics(self) -> tuple[str, bytes]:
        """Raise OciError: nothing is measured."""
        raise _none()

    def oom_kills(self) -> int:
        """None that we know of."""
        return 0

    def oom_watch(self) -> tuple[int, int] | None:
        """Nothing to watch."""
        return None

    def is_paused(self) -> bool:
        """Not by us."""
        return False

    def resume(self) -> None:
        """Nothing to thaw."""

    def kill(self) -> None:
        """Find nobody."""

    def remove(self) -> None:
        """Find nothing."""


def _none() -> OciError:
    return OciError("the runtime has put the container into no cgroup of its own")
