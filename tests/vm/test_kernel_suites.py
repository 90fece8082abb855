"""Kernel tests once more, where cgroups are of version 2 and every capability is there."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from support import peers

pytestmark = [pytest.mark.vm, pytest.mark.root]

CLONE = Path(__file__).parents[2]
# How the reasons begin that are true of that machine. Whatever else a test of these may ask for, it has.
RIGHTFUL: Final = (
    "the machine has cgroup version 2 only",
    "on version 2 of cgroups a stub is cloned into its cgroup",
    "cgroups of version 2 may be delegated here",
    "needs the hierarchy of version 2 beside those of version 1",
    "systemd runs here",
)
_SKIP: Final = re.compile(r"^SKIPPED \[(\d+)\] \S+: (.*)$", re.MULTILINE)


# Those in which the kernel or its cgroups matter; the others only take long on an emulated processor.
@pytest.mark.parametrize(
    "suite",
    [
        *(
            f"oci/test_{name}.py"
            for name in (
                "attacks_on_mounts", "attacks_on_processes", "attacks_on_the_interpreter", "behaviours", "cgroups",
                "command", "containers", "crashes", "create_ways", "exec_ways", "hooks", "hostile_specs", "id_maps",
                "identity", "lasting", "listener", "mounts", "namespaces", "net_devices", "restore_rules",
                "rootless_command", "scratch", "service", "shared_mounts", "systemd_scopes",
            )
        ),
        "cri/test_attacks.py", "cri/test_user_namespaces.py", "shim/test_attacks.py", "shim/test_oom_log.py",
        "test_remap.py", "test_rootless.py",
    ],
)  # fmt: skip
def test_suite(capsys: pytest.CaptureFixture[str], suite: str) -> None:
    run(capsys, f"tests/kernel/{suite}")


@pytest.mark.parametrize("kind", ["contract", "kernel"])
def test_devices_of_a_thin_pool(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Snapshots that need the device mapper, by the contract of all snapshotters, and containers on them."""
    run(capsys, f"tests/{kind}/test_snapshotters.py", "-k", "devmapper")


@pytest.mark.parametrize(
    "suite", ["oci/test_checkpoint.py", "oci/test_checkpoint_options.py", "cri/test_checkpoint.py"]
)
def test_checkpoints(capsys: pytest.CaptureFixture[str], suite: str) -> None:
    """By a CRIU that knows this kernel, where systemd has all mounts shared."""
    if peers.look_for("criu", "4") is None:
        pytest.skip("Debian's CRIU 3.17 does not keep no_new_privs: tests/newer-criu brings one that does")
    run(capsys, f"tests/kernel/{suite}")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_another_runtime(capsys: pytest.CaptureFixture[str], runtime: str) -> None:
    """In a shim, with cgroups as both like them best: no limit is lost."""
    run(capsys, "tests/kernel/shim/test_runtimes.py", "-k", runtime)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    """Run tests in a process of their own, where some must pass and none may skip that has no right to."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-m",
        "not full",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}

    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, cwd=CLONE, check=False
    )

    skips: Counter[str] = Counter()
    for count, reason in _SKIP.findall(done.stdout):
        skips[reason] += int(count)
    with capsys.disabled():  # seen outside too, where only failures are told with what they print
        sys.stdout.writelines(f"\n    {count} skipped: {reason}" for reason, count in skips.items())
    sys.stdout.write(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-8000:]
    last = done.stdout.splitlines()[-1]
    assert " passed" in last
    assert [reason for reason in skips if not reason.startswith(RIGHTFUL)] == []
    assert skips.total() == sum(map(int, re.findall(r"(\d+) skipped", last))), done.stdout[-8000:]
