"""The system call filter of a spec, as a BPF program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyctr_shim.oci.errors import OciError
from pyctr_sys import seccomp as kernel


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled profile, the file that it is cached in, and the flags to load it with."""

    program: bytes
    flags: int
    path: str


def prepare(profile: Mapping[str, Any] | None, cache: str) -> Filter | None:
    """Return the compiled profile, None if the spec has none."""
    if profile:
        raise OciError("linux.seccomp: is not supported")
    return None


def load(filter_: Filter) -> None:
    """Put the filter over this process."""
    kernel.load(filter_.program, filter_.flags)
