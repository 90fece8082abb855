"""Labels: AppArmor's or SELinux's for the program, SELinux's for new file systems."""

import os
from collections.abc import Iterator, Mapping, Sequence
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


def exec_labels(process: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield what a process writes for the labels that it asks for: a field's name and value, files, the text.

    Of the files, which lie below the process's directory in /proc, it is the first that there is. Raises OciError where
    the module is off: a label that was asked for is never left out.
    """
    profile = process.get("apparmorProfile")
    if profile and (profile != "unconfined" or apparmor_enabled()):
        if not apparmor_enabled():
            raise OciError(f"process.apparmorProfile: {profile!r}: AppArmor is not enabled")
        yield f"process.apparmorProfile: {profile!r}", _EXEC_LABEL_FILES, f"exec {profile}"
    if label := process.get("selinuxLabel"):
        if not selinux_enabled():
            raise OciError(f"process.selinuxLabel: {label!r}: SELinux is not enabled")
        yield f"process.selinuxLabel: {label!r}", _EXEC_LABEL_FILES[-1:], label


def first_of(names: Sequence[str]) -> str:
    """Return the first of these files that processes have; the last one if they have none."""
    return next((name for name in names if os.path.exists(f"/proc/self/{name}")), names[-1])


def set_exec_label(proc_fd: int, process: Mapping[str, Any]) -> None:
    """Choose the AppArmor profile and the SELinux context for the next exec of this process.

    Written through the runtime's own /proc: a container's could be anything. Runs on the host's root.
    Raises OciError as `exec_labels`.
    """
    for field, names, text in exec_labels(process):
        _write(proc_fd, names, text, field)


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
