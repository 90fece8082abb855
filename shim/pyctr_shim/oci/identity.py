"""From root of the container to the user of the spec: limits, capabilities, ids, directory, filter.

The same order for the first process and for every exec. Loading a seccomp filter needs
no_new_privs or CAP_SYS_ADMIN, and whatever comes after it must pass it. So it comes last, and
without no_new_privs the permitted set is kept until then: only capset and execve follow the filter.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyctr_shim.oci import capabilities, rlimits, seccomp, user
from pyctr_shim.oci.capabilities import CapabilitySets
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.seccomp import Filter
from pyctr_sys.capabilities import SYS_ADMIN, bounding_set, capget, capset
from pyctr_sys.process import set_dumpable, set_no_new_privs


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that has become its user, and what is left to do right before it executes its program."""

    sets: CapabilitySets
    filter: Filter | None
    keeps_permitted: bool

    def seal(self) -> None:
        """Load the filter and give up what was kept for that; the program follows at once."""
        if self.filter is None:
            return
        if self.keeps_permitted:
            _, permitted, inheritable = capget()
            capset(self.sets.effective | 1 << SYS_ADMIN, permitted, inheritable)
        seccomp.load(self.filter)
        if self.keeps_permitted:
            capset(self.sets.effective, self.sets.permitted, self.sets.inheritable)


def assume(process: Mapping[str, Any], filter_: Filter | None) -> Identity:
    """Become the process's user, with its capabilities and limits, in its working directory.

    Raises OciError naming the field that could not be had.
    """
    bounding_now = bounding_set()
    _, permitted_now, _ = capget()
    sets = capabilities.parse(process.get("capabilities") or {}, bounding_now & permitted_now)
    no_new_privileges = bool(process.get("noNewPrivileges"))
    keeps_permitted = filter_ is not None and not no_new_privileges
    rlimits.apply(process.get("rlimits") or ())
    capabilities.drop_bounding(sets, bounding_now)
    # Tried twice, as in runc: root may enter what the user may not, and the reverse (root_squash).
    entered = _enter(process["cwd"], only_try=True)
    user.switch(process.get("user") or {})
    set_dumpable(0)  # a change of ids may have reset it
    capabilities.apply(sets, permitted_now if keeps_permitted else sets.permitted)
    if not entered:
        _enter(process["cwd"])
    _check_inside()
    if no_new_privileges:
        set_no_new_privs()
    return Identity(sets, filter_, keeps_permitted)


def _enter(directory: str, *, only_try: bool = False) -> bool:
    try:
        os.chdir(directory)
    except OSError as error:
        if only_try and isinstance(error, PermissionError):
            return False
        text = (error.strerror or "").lower()
        raise OciError(f'process.cwd: chdir to cwd ("{directory}"): {text}', error.errno or 0) from None
    return True


def _check_inside() -> None:
    """Refuse a working directory outside the root, as a leaked fd of the host would give.

    getcwd(2) then fails or its answer is not absolute.
    """
    try:
        inside = os.getcwd().startswith("/")
    except FileNotFoundError:
        inside = False
    if not inside:
        raise OciError("process.cwd: the current working directory is outside of the container's root")
