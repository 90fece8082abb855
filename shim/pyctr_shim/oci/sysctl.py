"""Kernel parameters of the container's namespaces, written through a verified /proc."""

import os
from collections.abc import Mapping
from typing import Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.openat2 import Resolve, openat2

_RESOLVE: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_XDEV)


def path_of(name: str) -> str:
    """Return the path below /proc/sys. As in sysctl(8), the first separator decides which one separates."""
    dot, slash = name.find("."), name.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        return name
    return name.translate(str.maketrans("./", "/."))


def apply(proc_fd: int, values: Mapping[str, str]) -> None:
    """Write parameters; `proc_fd` is the runtime's own /proc, whose entries act on the caller's namespaces."""
    for name, value in values.items():
        try:
            fd = openat2(proc_fd, f"sys/{path_of(name)}", os.O_WRONLY, _RESOLVE)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise OciError(f"linux.sysctl: {name}={value}: {error.strerror}", error.errno or 0) from None
