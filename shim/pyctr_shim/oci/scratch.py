"""A place for practice: a directory of our own, and the name of a cgroup.

Who practises may be killed in the middle of it. Names say whose they are, and the next one sweeps what the dead left.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pyctr_shim.oci.cgroups import cgroup_for
from pyctr_shim.oci.cgroups.manager import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys.pidfd import start_ticks

# Nobody guesses the names below these, and only ours are removed. An ordinary user may have no other than the last.
_PARENTS: Final = (os.environ.get("TMPDIR", ""), "/tmp", os.environ.get("XDG_RUNTIME_DIR", ""))  # noqa: S108
_CGROUPS: Final = "/pyctr"
_PREFIX: Final = "pyctr-practice-"


@contextmanager
def practice_directory() -> Iterator[str]:
    """Yield a new directory, mode 0700, that is there as long as the block lasts."""
    # Not by tempfile: it imports random, which then fills its state anew in every forked child.
    pid = os.getpid()
    directory = f"{_parent()}/{_PREFIX}{_pid_namespace()}-{pid}-{start_ticks(pid)}-{os.urandom(8).hex()}"
    os.mkdir(directory, 0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def cgroup_of(directory: str) -> str:
    """Return the path of the cgroup that goes with a practice directory."""
    return f"{_CGROUPS}/{os.path.basename(directory)}"


def sweep() -> None:
    """Remove directories and cgroups of processes that have ended."""
    parent = _parent()
    for name in os.listdir(parent):
        path = f"{parent}/{name}"
        if _is_left(name) and _is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
    hierarchies = mounted()
    left = {
        name
        for mount_point in {*hierarchies.controllers.values(), hierarchies.unified} - {""}
        for name in _list(f"{mount_point}{hierarchies.base}{_CGROUPS}")
        if _is_left(name)
    }
    for name in left:
        cgroup = cgroup_for(hierarchies, hierarchies.below_base(f"{_CGROUPS}/{name}"))
        with suppress(OSError, OciError):  # what is still ending there, the next one finds gone
            cgroup.kill()
            cgroup.remove()


def _parent() -> str:
    """Return a directory that takes ours."""
    return next((path for path in _PARENTS if path and os.access(path, os.W_OK | os.X_OK)), "/tmp")  # noqa: S108


def _is_left(name: str) -> bool:
    """Tell whether what is called so belongs to a process of our pid namespace that has ended."""
    fields = name.removeprefix(_PREFIX).split("-")
    if not name.startswith(_PREFIX) or len(fields) != 4 or fields[0] != _pid_namespace() or not fields[1].isdecimal():
        return False
    try:
        return str(start_ticks(int(fields[1]))) != fields[2]
    except (FileNotFoundError, ProcessLookupError):
        return True


def _is_ours(path: str) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _pid_namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)
