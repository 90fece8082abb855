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


def read(path: str, flags: int) -> Filter | None:
    """Return a filter compiled earlier; None for an empty path."""
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return Filter(file.read(), flags, path)
    except OSError as error:
        raise OciError(f"seccomp filter {path}: {error.strerror}", error.errno or 0) from None


def load(filter_: Filter) -> None:
    """Put the filter over this process."""
    kernel.load(filter_.program, filter_.flags)
