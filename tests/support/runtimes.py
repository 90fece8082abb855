"""The OCI runtimes to test with, as a shim is told of them."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from google.protobuf import any_pb2

from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.pyctr import runtime_pb2

EMBEDDED: Final = "embedded"
ALL: Final = (EMBEDDED, "runc", "crun")

_UNIFIED: Final = Path("/sys/fs/cgroup/unified")

# crun refuses machines with both versions of cgroups where version 2 has a controller, whichever. It is run with only
# version 1 in sight.
_WITHOUT_UNIFIED: Final = """\
#!/bin/sh
exec unshare --mount sh -c 'umount {unified} && exec {program} "$@"' crun "$@"
"""


@cache
def folder() -> str:
    """Return a directory for $PATH with what is to be found there before this machine's own programs."""
    made = tempfile.mkdtemp(prefix="pyctr-bin-", dir="/tmp")
    atexit.register(shutil.rmtree, made)
    crun = shutil.which("crun")
    if crun is not None and (_UNIFIED / "cgroup.controllers").exists():
        wrapper = Path(made, "crun")
        wrapper.write_text(_WITHOUT_UNIFIED.format(unified=_UNIFIED, program=crun))
        wrapper.chmod(0o755)
    return made


def search_path() -> str:
    """Return the $PATH of a daemon that finds runtimes which work here."""
    return f"{folder()}:/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin:/sbin:/bin"


def path_of(name: str) -> str:
    """Return the program of a runtime, or skip the test."""
    found = shutil.which(name, path=search_path())
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {name})")
    return found


def options_of(name: str) -> any_pb2.Any | None:
    """Return a task's options that ask for a runtime, None for the embedded one; skip the test if it is not here."""
    return None if name == EMBEDDED else options(path_of(name))


def options(program: str, seconds: float = 0, root: str = "") -> any_pb2.Any:
    """Return a task's options that ask for the runtime at this path."""
    runc = oci_pb2.Options(binary_name=program, root=root)
    message = runtime_pb2.RuntimeOptions(runc=runc, command_seconds=seconds) if seconds else runc
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
