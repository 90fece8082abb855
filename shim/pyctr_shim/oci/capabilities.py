"""The five capability sets of a container's process."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys import capabilities as kernel
from pyctr_sys.steps import Steps

_NUMBERS: Final = {name: number for number, name in enumerate(kernel.NAMES)}
_SETS: Final = ("bounding", "effective", "permitted", "inheritable", "ambient")


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """Bit masks, already cut to what this process may hand on."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    lacking: int  # asked for, and not to be had

    @property
    def notes(self) -> list[str]:
        """What to tell whoever asked for capabilities that are not to be had."""
        if not self.lacking:
            return []
        lacking = ", ".join(names(self.lacking))
        return [f"process.capabilities: {lacking} not granted: the runtime does not have them"]


def names(mask: int) -> list[str]:
    """Return the names of the capabilities in a mask."""
    return [kernel.NAMES[number] if number < len(kernel.NAMES) else f"number {number}" for number in _numbers(mask)]


def parse(capabilities: Mapping[str, Any], available: int) -> CapabilitySets:
    """Turn names into masks; without any the process gets none.

    A known capability that the runtime lacks itself (`available`) is left out, as in runc, and noted: the
    process could not have it. Raises OciError for a name that no kernel has.
    """
    asked = {name: _mask(name, tuple(capabilities.get(name) or ())) for name in _SETS}
    lacking = 0
    for mask in asked.values():
        lacking |= mask & ~available
    return CapabilitySets(**{name: mask & available for name, mask in asked.items()}, lacking=lacking)


@lru_cache(maxsize=16)  # most processes' sets are those of the one before
def _mask(name: str, names: tuple[str, ...]) -> int:
    mask = 0
    for capability in names:
        number = _NUMBERS.get(capability)
        if number is None:
            raise OciError(f"process.capabilities.{name}: unknown capability {capability!r}")
        mask |= 1 << number
    return mask


def own() -> tuple[int, int]:
    """Return the bounding and the permitted set of this process, as bit masks."""
    return kernel.bounding_set(), kernel.capget()[1]


@cache
def inherited() -> tuple[int, int]:
    """Return `own`, asked once, for a process and those that it forks; not for who has joined a user namespace."""
    return own()


def add_bounding(steps: Steps, sets: CapabilitySets, bounding_now: int) -> None:
    """Shrink the bounding set; needs CAP_SETPCAP, so it comes before the change of user."""
    steps.add(_drops(bounding_now & ~sets.bounding))


@lru_cache(maxsize=4)
def _drops(mask: int) -> Steps:
    """Return the steps that drop a mask, to be copied from: there are some twenty."""
    steps = Steps()
    kernel.add_drop(steps, _numbers(mask))
    return steps


def add_others(steps: Steps, sets: CapabilitySets, permitted: int) -> None:
    """Set the other four, `permitted` as given: it may be kept larger until a filter is loaded.

    Comes after the change of user, with PR_SET_KEEPCAPS before it.
    """
    kernel.add_capset(steps, sets.effective, permitted, sets.inheritable)
    # What is not inheritable and permitted cannot be ambient; runc lets that pass too.
    kernel.add_ambient(steps, _numbers(sets.ambient & sets.permitted & sets.inheritable))


def _numbers(mask: int) -> list[int]:
    return [number for number in range(mask.bit_length()) if mask >> number & 1]
