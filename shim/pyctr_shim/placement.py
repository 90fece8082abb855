"""Where a shim lives: a cgroup of its own kind, and a place in the kernel's order of victims.

A limit on the daemon must never hit a shim, so shims have `<the daemon's cgroup>/shims` beside the daemon's own
under systemd or where a cgroup was delegated to a user, and `/pyctr/shims` in every hierarchy else. A process moves
only itself: moving another one costs 10 to 20 ms in the kernel, moving a single-threaded self a few hundredths of one.
"""

from pathlib import Path
from typing import Final

from pyctr_shim import journal
from pyctr_sys.cgroups import Hierarchy, base_of, own_hierarchies
from pyctr_sys.cgroups import enter as enter_cgroup
from pyctr_sys.namespaces import in_user_namespace

_WITHOUT_SYSTEMD: Final = "/pyctr/shims"
_WORST_SCORE: Final = 1000


def leave_the_daemon() -> None:
    """Move this process to where shims live; whatever cannot be done is logged and left."""
    stays_below = Path("/run/systemd/system").is_dir() or in_user_namespace()
    for hierarchy in own_hierarchies():
        _enter(hierarchy, shims_below(hierarchy.own) if stays_below else _WITHOUT_SYSTEMD)


def enter(path: str) -> None:
    """Move this process to `path` in every hierarchy: the option `shim_cgroup`. Raises nothing: it is logged."""
    for hierarchy in own_hierarchies():
        _enter(hierarchy, path)


def shims_below(own: str) -> str:
    """Return where shims live, given the cgroup of the daemon or of a shim that the daemon started."""
    return f"{base_of(own)}/shims"


def become_the_next_victim() -> None:
    """Raise our oom_score_adj to one above the daemon's. Source: proc_pid_oom_score_adj(5)."""
    file = Path("/proc/self/oom_score_adj")
    try:
        file.write_text(str(min(int(file.read_text()) + 1, _WORST_SCORE)))
    except OSError as error:
        journal.log("oom_score_adj not raised", error=str(error))


def _enter(hierarchy: Hierarchy, path: str) -> None:
    try:
        enter_cgroup(hierarchy, path)
    except OSError as error:
        journal.log("cgroup not entered", cgroup=f"{hierarchy.mount_point}{path}", error=str(error))
