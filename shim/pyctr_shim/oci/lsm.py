"""Labels: AppArmor's or SELinux's for the program, SELinux's for new file systems."""

import os
from collections.abc import Mapping
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.openat2 import Resolve, openat2

SELINUX_ATTRIBUTE: Final = "security.selinux"
_RESOLVE: Final = int(Resolve.BENEATH | Resolve.NO_SYMLINKS | Resolve.NO_XDEV)
_EXEC_LABEL_FILES: Final = ("attr/apparmor/exec", "attr/exec")  # the second one is of kernels before 5.8
_APPARMOR: Final = "/sys/module/apparmor/parameters/enabled"
_SELINUX: Final = "/sys/fs/selinux/enforce"


def apparmor_enabled() -> bool:
    """Whether the kernel enforces AppArmor profiles."""
    try:
        with open(_APPARMOR) as file:
            return file.read(1) == "Y"
    except FileNotFoundError:
        return False


def selinux_enabled() -> bool:
    """Whether SELinux has a policy to label by, be it enforced or only reported."""
    return os.path.exists(_SELINUX)


def check_mount_label(label: str) -> None:
    """Raise OciError where SELinux is off: a label that was asked for is never left out."""
    if label and not selinux_enabled():
        raise OciError(f"linux.mountLabel: {label!r}: SELinux is not enabled")


def with_context(data: str, label: str) -> str:
    """Return mount options with a label for all files; quoted, as its categories are separated by commas."""
    context = f'context="{label}"'
    return f"{data},{context}" if data else context


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


def exec_label_file() -> str:
    """Return where a process writes that, below its directory in /proc."""
    return next((name for name in _EXEC_LABEL_FILES if os.path.exists(f"/proc/self/{name}")), _EXEC_LABEL_FILES[-1])


def set_exec_label(proc_fd: int, process: Mapping[str, Any]) -> None:
    """Choose the AppArmor profile and the SELinux context for the next exec of this process.

    Written through the runtime's own /proc: a container's could be anything. Runs on the host's root.
    Raises OciError, also where the module is off: a label that was asked for is never left out.
    """
    if text := exec_label(process):
        _write(proc_fd, _EXEC_LABEL_FILES, text, f"process.apparmorProfile: {process['apparmorProfile']!r}")
    if label := process.get("selinuxLabel"):
        if not selinux_enabled():
            raise OciError(f"process.selinuxLabel: {label!r}: SELinux is not enabled")
        _write(proc_fd, _EXEC_LABEL_FILES[-1:], label, f"process.selinuxLabel: {label!r}")


def _write(proc_fd: int, names: tuple[str, ...], text: str, field: str) -> None:
    """Write to the first of our own attributes that there is."""
    pid = os.readlink("self", dir_fd=proc_fd)
    for name in names:
        try:
            fd = openat2(proc_fd, f"{pid}/{name}", os.O_WRONLY, _RESOLVE)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, text.encode())
            return
        except OSError as error:
            raise OciError(f"{field}: {error.strerror}", error.errno or 0) from None
        finally:
            os.close(fd)
    raise OciError(f"{field}: the kernel has no {names[-1]}")
