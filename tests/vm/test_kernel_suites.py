"""Kernel tests once more, where cgroups are of version 2 and every capability is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import peers

pytestmark = [pytest.mark.vm, pytest.mark.root]

CLONE = Path(__file__).parents[2]


# Those in which the kernel or its cgroups matter; the others only take long on an emulated processor.
@pytest.mark.parametrize(
    "suite",
    [
        "attacks_on_mounts", "attacks_on_processes", "attacks_on_the_interpreter", "cgroups", "containers",
        "create_ways", "exec_ways", "id_maps", "identity", "lasting", "listener", "mounts", "namespaces", "net_devices",
        "systemd_scopes", "restore_rules",
    ],
)  # fmt: skip
def test_suite(suite: str) -> None:
    run(f"tests/kernel/oci/test_{suite}.py")


def test_devices_of_a_thin_pool() -> None:
    """Snapshots that need the device mapper, by the contract of all snapshotters."""
    run("tests/contract/test_snapshotters.py", "-k", "devmapper")


def test_checkpoints() -> None:
    """By a CRIU that knows this kernel, where systemd has all mounts shared."""
    if peers.look_for("criu", "4") is None:
        pytest.skip("Debian's CRIU 3.17 does not keep no_new_privs: tests/newer-criu brings one that does")
    run("tests/kernel/oci/test_checkpoint.py")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_another_runtime(runtime: str) -> None:
    """In a shim, with cgroups as both like them best: no limit is lost."""
    run("tests/kernel/shim/test_runtimes.py", "-k", runtime)


def run(*arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "--timeout=300",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}

    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=CLONE, check=False
    )

    sys.stdout.write(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-8000:]
