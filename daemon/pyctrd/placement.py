"""Where the daemon lives: a cgroup of its own, so that no limit on it ever hits a shim, which lives beside it.

    <the unit's cgroup>/daemon, <the unit's cgroup>/shims     under systemd, or where a cgroup was delegated to a user
    /pyctr/daemon, /pyctr/shims                               without it, in every hierarchy

Version 2 wants processes only in leaves; so the unit's own cgroup must have none.

Without systemd most other processes are in no cgroup, where each has the share of the processors that all of ours
would have together, the daemon, its zygote and every shim. So /pyctr has more: on a busy machine all that containers
wait for would otherwise take several times as long. Under systemd it is CPUWeight= that says so.
"""

from pathlib import Path
from typing import Final

from pyctr_sys import cgroups
from pyctr_sys.namespaces import in_user_namespace
from pyctrd.log import Logger

_NAME: Final = "daemon"
_OURS: Final = "/pyctr"
_WITHOUT_SYSTEMD: Final = f"{_OURS}/{_NAME}"
_WEIGHT: Final = 8  # processes' worth of the processors

_log = Logger("pyctrd")


def enter_own_cgroup() -> None:
    """Move this process, which must have one thread; whatever cannot be done is logged and left."""
    stays_below = Path("/run/systemd/system").is_dir() or in_user_namespace()
    for hierarchy in cgroups.own_hierarchies():
        path = daemon_below(hierarchy.own) if stays_below else _WITHOUT_SYSTEMD
        try:
            cgroups.enter(hierarchy, path)
            if not stays_below:
                cgroups.weigh(hierarchy, _OURS, _WEIGHT)
        except OSError as error:
            _log.warning("cgroup.not_entered", cgroup=f"{hierarchy.mount_point}{path}", error=str(error))


def daemon_below(own: str) -> str:
    """Return where the daemon lives, given where it was started: by systemd, or by the daemon that it replaces."""
    return f"{own.removesuffix(f'/{_NAME}').rstrip('/')}/{_NAME}"
