"""The label that the program will run under: AppArmor's. SELinux labels are refused by validate.py."""

import os
from collections.abc import Mapping
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.openat2 import Resolve, openat2

_RESOLVE: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_XDEV)
EXEC_LABEL_FILES: Final = ("attr/apparmor/exec", "attr/exec")
"""Below a process's directory in /proc; the second one is of kernels before 5.8."""
_ENABLED: Final = "/sys/module/apparmor/parameters/enabled"


def apparmor_enabled() -> bool:
    """Whether the kernel enforces AppArmor profiles."""
    try:
        with open(_ENABLED) as file:
            return file.read(1) == "Y"
    except FileNotFoundError:
        return False


def exec_label(process: Mapping[str, Any]) -> str:
    """Return what to write for the AppArmor profile that a process asks for; empty if there is nothing to write.

    Raises OciError where AppArmor is off: a profile that was asked for is never left out.
    """
    profile = process.get("apparmorProfile")
    if not profile or (profile == "unconfined" and not apparmor_enabled()):
        return ""
    if not apparmor_enabled():
        raise OciError(f"process.apparmorProfile: {profile!r}: AppArmor is not enabled")
    return f"exec {profile}"


def set_exec_label(proc_fd: int, process: Mapping[str, Any]) -> None:
    """Choose the AppArmor profile for the next exec of this process.

    Written through the runtime's own /proc: a container's could be anything. Runs on the host's root.
    Raises what `exec_label` does.
    """
    label = exec_label(process)
    if not label:
        return
    pid = os.readlink("self", dir_fd=proc_fd)
    for name in EXEC_LABEL_FILES:
        try:
            fd = openat2(proc_fd, f"{pid}/{name}", os.O_WRONLY, _RESOLVE)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, label.encode())
            return
        except OSError as error:
            profile = process["apparmorProfile"]
            raise OciError(f"process.apparmorProfile: {profile!r}: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(fd)
    raise OciError("process.apparmorProfile: the kernel has no attr/exec")
