"""What root of a user namespace can do on this machine, tried out: a program that `checks` runs, as trying is for good.

It prints a JSON object of what went wrong by what was tried, "" for what works; what comes after a failure is left out.
"""

import json
import os
import sys
from pathlib import Path

from pyctr_sys import user_namespace
from pyctr_sys.mount import mount
from pyctr_sys.namespaces import Clone, unshare
from pyctr_sys.user_namespace import CannotEnter
from pyctrd.rootless import entry
from pyctrd.snapshots.probe import why_not


def main() -> None:
    """Try everything, with files below the directory that is the argument."""
    found: dict[str, str] = {}
    try:
        user_namespace.enter(*entry.maps(os.geteuid(), os.getegid()))
        found["enter"] = ""
        found["overlay"] = why_not(Path(sys.argv[1])) or ""
        found["proc"] = _mount_proc(sys.argv[1])
    except CannotEnter as error:
        found["enter"] = str(error)
    sys.stdout.write(json.dumps(found))


def _mount_proc(directory: str) -> str:
    """Mount a proc of a new PID namespace, as every container has one; it is gone with us."""
    unshare(Clone.NEWPID)
    if (pid := os.fork()) == 0:
        try:
            mount("proc", directory, "proc", 0)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return os.strerror(status) if status else ""


if __name__ == "__main__":
    main()
