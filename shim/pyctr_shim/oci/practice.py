"""Practice: execs planned and containers made, so that CPython has fitted the code to its operands before it counts."""

import json
import os
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from pyctr_shim.oci import exec as joining
from pyctr_shim.oci import runtime
from pyctr_shim.oci.cgroups import cgroup_for, mounted
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.scratch import cgroup_of, practice_directory
from pyctr_sys import elf
from pyctr_sys.namespaces import Clone
from pyctr_sys.pidfd import wait
from pyctr_wire.oci import default_spec

_ROUNDS: Final = 8
_PROGRAM: Final = "program"
_EXIT: Final = bytes.fromhex("31ffb83c0000000f05")  # xor edi, edi; mov eax, 60; syscall


def plan_execs() -> None:
    """Plan an exec a few times, into our own namespaces, without doing it."""
    pid = os.getpid()
    with open(os.devnull, "r+b", buffering=0) as null:
        pidfd = os.pidfd_open(pid)
        request = joining.Request(
            id="practice",
            init_pid=pid,
            init_pidfd=pidfd,
            namespaces=Clone.NEWNS | Clone.NEWNET,
            cgroup=cgroup_for(mounted(), "/"),
            seccomp="",
            seccomp_flags=0,
            linux={},
            process=json.dumps({**default_spec.default_process(), "args": ["/bin/true"]}).encode(),
            stdio=(null.fileno(), null.fileno(), null.fileno()),
            preserve_fds=0,
            no_new_keyring=False,
            console_size=None,
            in_cgroup=False,
        )
        with suppress(OciError, OSError):  # whoever wants to exec is told what is wrong
            for _ in range(_ROUNDS):
                with closing(joining.Joiner(request)) as joiner:
                    joiner.straight()
        os.close(pidfd)


def make_containers() -> None:
    """Make a container a few times, each with an empty root and a cgroup of its own, and remove it."""
    with practice_directory() as directory, open(os.devnull, "r+b", buffering=0) as null:
        mount = write_bundle(Path(directory))
        stdio = runtime.Stdio(null.fileno(), null.fileno(), null.fileno())
        with suppress(OciError, OSError):  # what is wrong, the first container tells whoever wants it
            for _ in range(_ROUNDS):
                options = runtime.CreateOptions(rootfs=(mount,))
                container = runtime.create(os.path.basename(directory), directory, stdio, options)
                container.start()
                container.kill(signal.SIGKILL)
                wait(container.pidfd)
                container.delete()


def write_bundle(directory: Path) -> runtime.RootfsMount:
    """Write a bundle into a practice directory, and return how to mount its root, which has but a program that ends."""
    spec = default_spec.default_spec()
    spec["process"]["args"] = [f"/{_PROGRAM}"]
    spec["linux"]["cgroupsPath"] = cgroup_of(str(directory))
    (directory / "config.json").write_text(json.dumps(spec))
    root = directory / "root"
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    (root / _PROGRAM).write_bytes(elf.program(_EXIT))
    (root / _PROGRAM).chmod(0o755)
    (directory / "rootfs").mkdir()
    return runtime.RootfsMount("bind", str(root), "", ("rbind", "rw"))
