"""From root of the container to the user of the spec: limits, capabilities, ids, directory, filter.

The same order for the first process and for every exec. Loading a seccomp filter needs
no_new_privs or CAP_SYS_ADMIN: with the former it comes last, right before exec; without, it must
come before the capabilities go, and lies over the rest of this code too.
"""

import os
from collections.abc import Mapping
from typing import Any

from pyctr_shim.oci import capabilities, rlimits, seccomp, user
from pyctr_shim.oci.errors import OciError
from pyctr_sys.capabilities import bounding_set, capget
from pyctr_sys.process import set_dumpable, set_no_new_privs


def assume(process: Mapping[str, Any], filter_: seccomp.Filter | None) -> None:
    """Become the process's user, with its capabilities and limits, in its working directory.

    Raises OciError naming the field that could not be had.
    """
    bounding_now = bounding_set()
    _, permitted_now, _ = capget()
    sets = capabilities.parse(process.get("capabilities") or {}, bounding_now & permitted_now)
    rlimits.apply(process.get("rlimits") or ())
    if filter_ and not process.get("noNewPrivileges"):
        seccomp.load(filter_)
    capabilities.drop_bounding(sets, bounding_now)
    # Entered twice, as in runc: root may enter what the user may not (root_squash), and the reverse.
    entered = _enter(process["cwd"], only_try=True)
    user.switch(process.get("user") or {})
    set_dumpable(0)  # a change of ids may have reset it
    capabilities.apply(sets)
    if not entered:
        _enter(process["cwd"])
    _check_inside()
    if process.get("noNewPrivileges"):
        set_no_new_privs()


def seal(process: Mapping[str, Any], filter_: seccomp.Filter | None) -> None:
    """Load the filter if `assume` has not; the program follows at once."""
    if filter_ and process.get("noNewPrivileges"):
        seccomp.load(filter_)


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
