"""The runtime's own kernel tests once more, where cgroups are of version 2 and every capability is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.root]

CLONE = Path(__file__).parents[2]


# Those in which the kernel or its cgroups matter; the others only take long on an emulated processor.
@pytest.mark.parametrize(
    "suite",
    [
        "ahead", "attacks_on_mounts", "attacks_on_processes", "attacks_on_the_interpreter", "cgroups", "containers",
        "exec_ways", "id_maps", "identity", "lasting", "listener", "mounts", "namespaces", "net_devices",
        "systemd_scopes", "restore_rules",
    ],
)  # fmt: skip
def test_suite(suite: str) -> None:
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
        [*command, f"tests/kernel/oci/test_{suite}.py"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=CLONE,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-8000:]
