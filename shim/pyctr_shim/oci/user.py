"""Who the process is: numbers only, as the spec has them. Names were looked up by whoever wrote the spec."""

import errno
import os
import stat
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.capabilities import add_keep
from pyctr_sys.namespaces import groups_are_denied
from pyctr_sys.openat2 import open_regular
from pyctr_sys.steps import Steps

_USERS: Final = "/etc/passwd"
_PASSWD_BYTES: Final = 1 << 20
_NULL_DEVICE: Final = os.makedev(1, 3)


def give_stdio(uid: int, fds: Sequence[int] = (0, 1, 2)) -> None:
    """Make the stdio the user's own, so that /dev/stdout can be opened again; the null device stays as it is."""
    for fd in fds:
        status = os.fstat(fd)
        if status.st_uid == uid or (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError:
            continue  # a read-only file system or a uid that is not mapped here: no worse than in runc


def add_switch(steps: Steps, user: Mapping[str, Any]) -> None:
    """Take on uid, gid, supplementary groups and umask, keeping permitted capabilities until they are set.

    EINVAL for ids that the user namespace does not map. Raises OciError for groups where nobody may have any.
    """
    uid, gid, groups = user.get("uid") or 0, user.get("gid") or 0, user.get("additionalGids") or []
    purpose = f"process.user: {uid}:{gid}"
    if groups and groups_are_denied():
        raise OciError("process.user.additionalGids: this user namespace was made without privileges and has no groups")
    if not groups_are_denied():
        steps.call(purpose, "setgroups", len(groups), steps.buffer("uint32_t[]", groups or 1))
    steps.call(purpose, "setresgid", gid, gid, gid)
    add_keep(steps, 1)
    steps.call(purpose, "setresuid", uid, uid, uid)
    add_keep(steps, 0)
    steps.call("process.user.umask", "umask", 0o022 if user.get("umask") is None else user["umask"])


def become_root(user: Mapping[str, Any]) -> None:
    """Take on root of the user namespace that this process is in, or `user` already where root is nobody there.

    Either has all capabilities in it: those that a change of ids takes away are root's.
    """
    os.setgroups([])
    for change, number in ((os.setresgid, user.get("gid") or 0), (os.setresuid, user.get("uid") or 0)):
        try:
            change(0, 0, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            change(number, number, number)


def environment(process: Mapping[str, Any]) -> dict[str, str]:
    """Return process.env as a mapping, the last of equal names winning. Raises OciError for an entry without `=`."""
    found: dict[str, str] = {}
    for entry in process.get("env") or ():
        name, separator, value = entry.partition("=")
        if not separator or not name:
            raise OciError(f"process.env: {entry!r} is not NAME=VALUE")
        found[name] = value
    return found


def add_home(env: MutableMapping[str, str], uid: int, root_fd: int = -1) -> None:
    """Set HOME from the container's own /etc/passwd where nobody has set it; `/` if that says nothing.

    The container's root is `root_fd`, or where this process is. The file is the container's: read as text, up to
    1 MiB, and only if it is a regular file.
    """
    if not env.get("HOME"):
        env["HOME"] = home_in(_passwd(root_fd), uid)


def home_in(passwd: bytes, uid: int) -> str:
    """Return a user's home according to an /etc/passwd; `/` if that does not name one that a variable can hold."""
    for line in passwd.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 5 and fields[2] == b"%d" % uid:
            return os.fsdecode(fields[5]) if fields[5] and b"\0" not in fields[5] else "/"
    return "/"


def _passwd(root_fd: int) -> bytes:
    try:
        fd = _open_passwd() if root_fd < 0 else open_regular(root_fd, _USERS)
    except OSError:
        return b""
    try:
        return os.read(fd, _PASSWD_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _open_passwd() -> int:
    """Open it inside, where /proc is the container's and devices are kept away by its cgroup."""
    return os.open(_USERS, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
