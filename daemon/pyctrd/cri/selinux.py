"""SELinux labels of pods' containers: what their processes run as, and what their files are marked with.

A pod has two categories of its own, which its id decides, so that its containers share files and others cannot touch
them. Where SELinux is off nothing is labelled, as containerd has it: kubelets send labels to all nodes.
Source: selinux(8), selabel lxc_contexts; BEHAVIOUR of containerd's CRI.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_sys.descent import descend
from pyctr_wire.cri import image_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument

_ENABLED: Final = Path("/sys/fs/selinux/enforce")
_POLICIES: Final = Path("/etc/selinux")
_ATTRIBUTE: Final = "security.selinux"
_CATEGORIES: Final = 1024
_LEVEL: Final = re.compile(r"s[0-9](-s[0-9])?(:c[0-9]{1,4}(\.c[0-9]{1,4})?(,c[0-9]{1,4}(\.c[0-9]{1,4})?)*)?")
# Of the machine's own directories nothing below the first ones is ever marked, and of the others what lies below only.
_NEVER_BELOW: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr")
_NEVER: Final = frozenset(
    {"/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/var", "/var/cache", "/var/lib", "/var/log"}
    | {"/tmp", "/var/tmp"}  # noqa: S108
)


class Labels(NamedTuple):
    """Of processes and of files; "" for none."""

    process: str = ""
    files: str = ""


class _Context(NamedTuple):
    """A label's parts. Source: selinux(8)."""

    user: str
    role: str
    type: str
    level: str

    @classmethod
    def parse(cls, text: str) -> "_Context":
        user, role, kind, level = (*text.split(":", 3), "", "", "", "")[:4]
        return cls(user, role, kind, level)

    def __str__(self) -> str:
        return ":".join(part for part in self if part)


def check(options: image_pb2.SELinuxOption) -> None:
    """Raise InvalidArgument for a level that is none, whether SELinux is on or off."""
    if options.level and not _LEVEL.fullmatch(options.level):
        raise InvalidArgument(f"the format of 'level' \"{options.level[:80]}\" is not correct")


def is_enabled() -> bool:
    """Whether the kernel has SELinux on, be it enforced or only reported."""
    return _ENABLED.exists()


def labels(pod_id: str, options: image_pb2.SELinuxOption) -> Labels:
    """Return what a container of a pod gets; where SELinux is off or its policy knows no containers, nothing.

    The level is of both labels, as is the user; role and type are the processes' alone. Raises InvalidArgument.
    """
    check(options)
    defaults = _defaults() if is_enabled() else {}
    if not {"process", "file"} <= defaults.keys():
        return Labels()
    process, files = _Context.parse(defaults["process"]), _Context.parse(defaults["file"])
    level = options.level or ":".join((process.level or "s0", ",".join(f"c{one}" for one in categories(pod_id))))
    process = _Context(options.user or process.user, options.role or process.role, options.type or process.type, level)
    return Labels(str(process), str(files._replace(user=options.user or files.user, level=level)))


def categories(pod_id: str) -> tuple[int, int]:
    """Return the two categories of a pod, the lower one first."""
    pairs = _CATEGORIES * (_CATEGORIES - 1) // 2
    number = int.from_bytes(hashlib.sha256(pod_id.encode()).digest()[:8], "big") % pairs
    low = 0
    while number >= _CATEGORIES - 1 - low:
        number -= _CATEGORIES - 1 - low
        low += 1
    return low, low + 1 + number


def mark(paths: Iterable[str], label: str) -> None:
    """Mark files, and directories with all that is below. FailedPrecondition names the path.

    No link is followed, also if a container that is at work there puts one in the place of a directory.
    """
    for path in paths:
        _set(path, label, path)
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            continue
        try:
            for fd, names in descend(path):
                for name in names:
                    _set(f"/proc/self/fd/{fd}/{name}", label, path)
        except OSError as error:
            raise _refusal(path, error) from error


def check_markable(path: str) -> None:
    """Raise InvalidArgument for what belongs to the machine itself, whoever asks to have it marked."""
    real = os.path.realpath(path)
    if real in _NEVER or any(real == one or real.startswith(f"{one}/") for one in _NEVER_BELOW):
        raise InvalidArgument(f"selinux_relabel: {path} belongs to this machine: it is not marked for a container")


def _set(path: str, label: str, below: str) -> None:
    try:
        os.setxattr(path, _ATTRIBUTE, label.encode(), follow_symlinks=False)
    except FileNotFoundError:  # gone meanwhile
        return
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # a file system that has no labels of its own
            raise _refusal(below, error) from error


def _refusal(path: str, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(f"selinux_relabel: {path} cannot be marked: {error.strerror}")


def _defaults() -> dict[str, str]:
    """Return the labels that the policy has for containers, by what they are for."""
    try:
        kind = _settings(_POLICIES / "config").get("SELINUXTYPE", "targeted")
        return _settings(_POLICIES / kind / "contexts" / "lxc_contexts")
    except OSError:
        return {}


def _settings(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not key.lstrip().startswith("#"):
            found[key.strip()] = value.strip().strip('"')
    return found
