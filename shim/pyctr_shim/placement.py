"""Where a shim lives: a cgroup of its own kind, and a place in the kernel's order of victims.

A limit on the daemon must never hit a shim, so shims have `<the daemon's cgroup>/shims` beside the daemon's own
under systemd, and `/pyctr/shims` in every hierarchy without it. A process moves only itself: moving another one
costs 10 to 20 ms in the kernel, moving a single-threaded self a few hundredths of one.
"""

from pathlib import Path
from typing import Final, NamedTuple

from pyctr_shim import journal

_ROOT: Final = Path("/sys/fs/cgroup")
_CPUSET: Final = ("cpuset.cpus", "cpuset.mems")
_WITHOUT_SYSTEMD: Final = "/pyctr/shims"
_WORST_SCORE: Final = 1000


class Hierarchy(NamedTuple):
    """A mounted cgroup hierarchy, and the cgroup of this process in it."""

    mount_point: Path
    is_v2: bool
    own: str


def leave_the_daemon() -> None:
    """Move this process to where shims live; whatever cannot be done is logged and left."""
    hierarchies = read_hierarchies(
        Path("/proc/self/mountinfo").read_text().splitlines(), Path("/proc/self/cgroup").read_text().splitlines()
    )
    with_systemd = Path("/run/systemd/system").is_dir()
    for hierarchy in hierarchies:
        target = shims_below(hierarchy.own) if with_systemd else _WITHOUT_SYSTEMD
        _enter(hierarchy, target)


def enter(path: str) -> None:
    """Move this process to `path` in every hierarchy: the option `shim_cgroup`. Raises nothing: it is logged."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for hierarchy in read_hierarchies(lines, []):
        _enter(hierarchy, path)


def shims_below(own: str) -> str:
    """Return where shims live, given the cgroup of the daemon or of a shim that the daemon started."""
    for leaf in ("/daemon", "/shims"):
        own = own.removesuffix(leaf)
    return f"{own.rstrip('/')}/shims"


def read_hierarchies(mountinfo: list[str], own_cgroups: list[str]) -> list[Hierarchy]:
    """Return the hierarchies below /sys/fs/cgroup. Source: proc_pid_mountinfo(5), cgroups(7)."""
    own: dict[str, str] = {}
    for line in own_cgroups:
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    found = []
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4])
        kind, _source, options = after.split()[:3]
        if not mount_point.is_relative_to(_ROOT) or kind not in ("cgroup", "cgroup2"):
            continue
        is_v2 = kind == "cgroup2"
        names = [""] if is_v2 else options.split(",")
        path = next((own[name] for name in names if name in own), "/")
        found.append(Hierarchy(mount_point, is_v2, path))
    return found


def become_the_next_victim() -> None:
    """Raise our oom_score_adj to one above the daemon's. Source: proc_pid_oom_score_adj(5)."""
    file = Path("/proc/self/oom_score_adj")
    try:
        file.write_text(str(min(int(file.read_text()) + 1, _WORST_SCORE)))
    except OSError as error:
        journal.log("oom_score_adj not raised", error=str(error))


def _enter(hierarchy: Hierarchy, path: str) -> None:
    directory = hierarchy.mount_point / path.strip("/")
    try:
        _make(hierarchy.mount_point, directory)
        # v1: `tasks` moves the writing thread alone, which is all of us and cheap.
        (directory / ("cgroup.procs" if hierarchy.is_v2 else "tasks")).write_text("0")
    except OSError as error:
        journal.log("cgroup not entered", cgroup=str(directory), error=str(error))


def _make(mount_point: Path, directory: Path) -> None:
    """Make the cgroup; a new cpuset of v1 takes nobody until it has cpus and memory nodes, so inherit them."""
    if directory == mount_point or directory.is_dir():
        return
    _make(mount_point, directory.parent)
    directory.mkdir(exist_ok=True)
    for name in _CPUSET:
        if (directory / name).exists() and not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())
