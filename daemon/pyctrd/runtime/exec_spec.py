"""The OCI process of an exec: the container's own, with what the user asked for. No I/O."""

import copy
from typing import Any

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES, capability_sets
from pyctrd.core.values import dataclass
from pyctrd.runtime.image_user import User
from pyctrd.runtime.run_options import is_environment_entry, merged_environment
from pyctrd.runtime.run_spec import set_console_size, user_document, working_directory


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """Options of an exec; what is empty is as in the container."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    terminal: bool = False
    console_size: tuple[int, int] = (0, 0)  # columns, rows
    privileged: bool = False


def build_process(
    container: dict[str, Any], options: ExecOptions, user: User | None, available: frozenset[str]
) -> dict[str, Any]:
    """Return the process; `user` is who `options.user` turned out to be, None for the container's own.

    Raises InvalidArgument naming the option.
    """
    if not options.args:
        raise InvalidArgument("exec needs a command")
    for entry in options.env:
        if not is_environment_entry(entry):
            raise InvalidArgument(f"environment entry {entry!r} is not NAME=VALUE")
    process: dict[str, Any] = copy.deepcopy(container.get("process", {}))
    for name in ("consoleSize", "terminal", "scheduler", "ioPriority"):
        process.pop(name, None)
    process["args"] = list(options.args)
    process["cwd"] = working_directory(options.working_dir or process.get("cwd", ""))
    environment = merged_environment(process.get("env", ()), ["TERM=xterm"] if options.terminal else ())
    if user is not None:
        process["user"] = user_document(user)
        environment = merged_environment(environment, [f"HOME={user.home}"])
        sets = process.get("capabilities", {})
        bounding = sets.get("bounding", [])
        sets["effective"] = sets["permitted"] = list(bounding) if user.uid == 0 else []
    process["env"] = merged_environment(environment, options.env)
    if options.terminal:
        process["terminal"] = True
        set_console_size(process, options.console_size)
    if options.privileged:
        process["capabilities"] = capability_sets(tuple(name for name in ALL_CAPABILITIES if name in available))
    return process
