"""A container made for practice, to learn which memory pages making one touches.

After a fork, a page is copied when it is first written to, and reference counts are written to all the time: some
800 of the interpreter's pages, 3 to 5 microseconds each. A child forked ahead can have that behind it, if it is
known which ones. So one container is made, up to the moment before its program would be executed, and
looked at from outside.
"""

import json
import os
import shutil
import tempfile
from array import array
from pathlib import Path
from typing import Any, Final

from pyctr_shim.oci import runtime
from pyctr_shim.oci.errors import OciError
from pyctr_sys import pagemap
from pyctr_wire.oci import default_spec

_PROGRAM: Final = "/program"


def touched_pages() -> pagemap.Ranges:
    """Return the pages that a container's init touches between fork and exec; nothing where that cannot be learned.

    Makes a container with an empty root and a cgroup of its own and removes it. Must run in the very process, or an
    ancestor of it without an exec between them, that forks ahead: addresses only mean something there.
    """
    directory = Path(tempfile.mkdtemp(prefix="pyctr-practice-"))
    try:
        return _learn(directory)
    except (OciError, OSError):
        return array("Q")  # then the first container finds out what is wrong, and says so to whoever wants it
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _learn(directory: Path) -> pagemap.Ranges:
    (directory / "config.json").write_text(json.dumps(_spec()))
    root = directory / "rootfs"
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    (root / _PROGRAM.lstrip("/")).touch(0o755)
    with open(os.devnull, "r+b") as null:
        stdio = runtime.Stdio(null.fileno(), null.fileno(), null.fileno())
        mount = runtime.RootfsMount("bind", str(root), "", ("rbind", "rw"))
        container = runtime.create(directory.name, str(directory), stdio, runtime.CreateOptions(rootfs=(mount,)))
    try:
        return pagemap.touched(container.pid)
    finally:
        container.kill(9)
        os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED)
        container.delete()


def _spec() -> dict[str, Any]:
    spec = default_spec.default_spec()
    spec["process"]["args"] = [_PROGRAM]
    spec["linux"]["cgroupsPath"] = f"/pyctr/practice-{os.getpid()}"
    return spec
