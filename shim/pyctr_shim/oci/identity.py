"""From root of the container to the user of the spec: limits, capabilities, ids, directory, filter.

The same order for the first process and for every exec. Loading a seccomp filter needs
no_new_privs or CAP_SYS_ADMIN, and whatever comes after it must pass it. So it comes last, and
without no_new_privs the permitted set is kept until then: only capset and execve follow the filter.
"""

import os
from collections.abc import Mapping
from typing import Any

from pyctr_shim.oci import capabilities, listener, rlimits, seccomp, user
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.handshake import Channel
from pyctr_shim.oci.seccomp import Filter
from pyctr_sys.capabilities import SYS_ADMIN, add_capset
from pyctr_sys.process import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS
from pyctr_sys.steps import StepFailed, Steps


class Identity:
    """How a process becomes its user, worked out: by itself, or by its parent before the fork."""

    def __init__(
        self, process: Mapping[str, Any], filter_: Filter | None, bounding_now: int, permitted_now: int
    ) -> None:
        """Plan for a process with these capability sets. Raises OciError naming a capability that no kernel has."""
        sets = capabilities.parse(process.get("capabilities") or {}, bounding_now & permitted_now)
        no_new_privileges = bool(process.get("noNewPrivileges"))
        keeps_permitted = filter_ is not None and not no_new_privileges
        self.notes = sets.notes
        self._notifies = filter_ is not None and filter_.notifies
        self._limits = process.get("rlimits") or ()
        self._directory: str = process["cwd"]
        self._before, self._switch, self._after, self._seal = Steps(), Steps(), Steps(), Steps()
        capabilities.add_bounding(self._before, sets, bounding_now)
        user.add_switch(self._switch, process.get("user") or {})
        self._switch.call("prctl", "prctl", PR_SET_DUMPABLE, 0)  # a change of ids may have reset it
        capabilities.add_others(self._switch, sets, permitted_now if keeps_permitted else sets.permitted)
        if no_new_privileges:
            self._after.call("process.noNewPrivileges", "prctl", PR_SET_NO_NEW_PRIVS, 1)
        if filter_ is not None:
            if keeps_permitted:
                add_capset(self._seal, sets.effective | 1 << SYS_ADMIN, permitted_now, sets.inheritable)
            seccomp.add_load(self._seal, filter_)
            if keeps_permitted:
                add_capset(self._seal, sets.effective, sets.permitted, sets.inheritable)

    def assume(self) -> None:
        """Become the process's user, with its capabilities and limits, in its working directory.

        Raises OciError naming the field that could not be had.
        """
        rlimits.apply(self._limits)
        _run(self._before)
        # Tried twice, as in runc: root may enter what the user may not, and the reverse (root_squash).
        entered = _enter(self._directory, only_try=True)
        _run(self._switch)
        if not entered:
            _enter(self._directory)
        _check_inside()
        _run(self._after)

    def add_assume(self, steps: Steps, directory_fd: int) -> None:
        """Make `assume` steps, in a directory that has been opened."""
        rlimits.add_to(steps, self._limits)
        steps.add(self._before)
        steps.call("process.cwd", "fchdir", directory_fd)
        steps.add(self._switch)
        steps.add(self._after)

    def add_seal(self, steps: Steps, socket_fd: int = -1) -> None:
        """Make `seal` steps; if the filter has a listener, they wait for a message that it has been taken."""
        steps.add(self._seal)
        if self._notifies:
            listener.add_wait(steps, socket_fd)

    def seal(self, channel: Channel) -> None:
        """Load the filter and give up what was kept for that; the program follows at once.

        If the filter has a listener, the other end of the channel takes it.
        """
        steps = Steps()
        self.add_seal(steps, channel.fileno())
        if self._notifies:
            listener.announce(channel)  # nothing is opened between this and the filter
        _run(steps)


def _run(steps: Steps) -> None:
    try:
        steps.run()
    except StepFailed as error:
        raise OciError(error.strerror or "", error.errno or 0) from None


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
