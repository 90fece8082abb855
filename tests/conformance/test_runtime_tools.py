"""The validation programs of github.com/opencontainers/runtime-tools judge `pyctr-oci`; where it fails, Debian's runc.

They are built from the Go module proxy when $PYCTR_TEST_BIN/runtime-tools (by default in the user's cache) has none;
that takes some minutes once. What a program finds wrong with ours is on a list here, with the reason:

    WRONG       the program is, on this kind of machine or altogether: runc does not pass it either
    DIFFERENT   runc passes, and ours does something else on purpose, which is told and looked for
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pyctr_shim.oci.cgroups import files
from support import peers
from support.containers import hierarchies

MODULE: Final = "github.com/opencontainers/runtime-tools"
VERSION: Final = "v0.9.1-0.20251114084447-edf4cb3d2116"
CACHE: Final = peers.DIRECTORY / f"runtime-tools-{VERSION}"
ROOT_ARCHIVE: Final = "rootfs-amd64.tar.gz"
BUILD_SECONDS: Final = 1200
RUN_SECONDS: Final = 600  # one that makes a hundred containers, on a loaded machine

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.full,
    pytest.mark.timeout(2 * RUN_SECONDS + BUILD_SECONDS),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="runtime-tools brings a root for x86-64 only"),
]

PROGRAMS: Final = [
    "config_updates_without_affect",
    "create",
    "default",
    "delete",
    "delete_only_create_resources",
    "delete_resources",
    "hooks",
    "hooks_stdin",
    "hostname",
    "kill",
    "kill_no_effect",
    "killsig",
    "linux_cgroups_blkio",
    "linux_cgroups_cpus",
    "linux_cgroups_devices",
    "linux_cgroups_hugetlb",
    "linux_cgroups_memory",
    "linux_cgroups_network",
    "linux_cgroups_pids",
    "linux_cgroups_relative_blkio",
    "linux_cgroups_relative_cpus",
    "linux_cgroups_relative_devices",
    "linux_cgroups_relative_hugetlb",
    "linux_cgroups_relative_memory",
    "linux_cgroups_relative_network",
    "linux_cgroups_relative_pids",
    "linux_devices",
    "linux_masked_paths",
    "linux_mount_label",
    "linux_ns_itype",
    "linux_ns_nopath",
    "linux_ns_path",
    "linux_ns_path_type",
    "linux_process_apparmor_profile",
    "linux_readonly_paths",
    "linux_rootfs_propagation",
    "linux_seccomp",
    "linux_sysctl",
    "linux_uid_mappings",
    "misc_props",
    "mounts",
    "pidfile",
    "poststart",
    "poststart_fail",
    "poststop",
    "poststop_fail",
    "prestart",
    "prestart_fail",
    "process",
    "process_capabilities",
    "process_capabilities_fail",
    "process_oom_score_adj",
    "process_rlimits",
    "process_rlimits_fail",
    "process_user",
    "root_readonly_true",
    "start",
    "state",
]

_POINTERS: Final = "compares the addresses of the limits, not the limits"
_NO_CFQ: Final = "wants leaf weights, which went with the CFQ scheduler"
_NO_KERNEL_LIMIT: Final = "wants limits of kernel memory, which kernels have dropped"
WRONG: Final = {
    "delete": "wants created containers to resist `delete`, where engines rely on its removing them",
    "delete_resources": _POINTERS,
    "hooks": "compares with a text that leaves out what its own hooks write",
    "hooks_stdin": "wants prestart hooks to read `created`, which the container is not before they have run",
    "linux_cgroups_blkio": _NO_CFQ,
    "linux_cgroups_hugetlb": "wants the controller hugetlb of version 1",
    "linux_cgroups_memory": _NO_KERNEL_LIMIT,
    "linux_cgroups_network": "wants the controller net_cls of version 1",
    "linux_cgroups_pids": _POINTERS,
    "linux_cgroups_relative_blkio": _NO_CFQ,
    "linux_cgroups_relative_hugetlb": "wants the controller hugetlb of version 1",
    "linux_cgroups_relative_memory": _NO_KERNEL_LIMIT,
    "linux_cgroups_relative_network": "wants the controller net_cls of version 1",
    "linux_cgroups_relative_pids": _POINTERS,
    "linux_mount_label": "wants SELinux with a policy",
    "linux_process_apparmor_profile": "wants AppArmor",
    "misc_props": "runs a program that it has not put into the container",
    "pidfile": "kills a container that ends by itself; if that is over, it takes the error for one of the pid file",
    "poststart_fail": "wants poststart hooks to fail without consequence, as the specification had it before 1.3",
    "prestart": "wants prestart hooks after `start`, where the specification has had them in `create` since 1.1",
    "process_capabilities": "wants all capabilities to be the runtime's own",
    "process_rlimits": "is in Go, whose runtime raises the soft limit of open files before it is looked at",
    "start": "wants a container to be created without a process, which neither runtime does",
}
RACES: Final = {"pidfile"}  # a runtime may win
# Around a program that has runc mount into its caller's namespace, and then removes the bundle through those mounts.
APART: Final = ("unshare", "--mount", "--ipc", "--propagation", "slave")
DIFFERENT: Final = {
    "mounts": (
        "opens the sources of bind mounts first and attaches all mounts in order, which /proc/self/mountinfo does not "
        "tell: since Linux 6.8 it goes by the age of what was opened",
        "found in order",
    ),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a program says about a runtime."""

    complaints: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Runs the programs on runtimes, each with states of its own."""

    programs: Path
    base: Path

    def __call__(self, program: str, runtime: str, around: Sequence[str] = ()) -> Verdict:
        """Return what `program`, run with the words `around` before it, says about `runtime`; remove what it leaves."""
        states, wrapper = self.base / "states", self.base / "runtime"
        wrapper.write_text(f'#!/bin/sh\nexec {runtime} --root {states} "$@"\n')
        wrapper.chmod(0o755)
        environment = {**os.environ, "RUNTIME": str(wrapper), "TMPDIR": str(self.base)}
        try:
            done = subprocess.run(
                [*around, self.programs / program],
                cwd=self.programs,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
        finally:
            for state in states.glob("*"):
                subprocess.run([wrapper, "delete", "--force", state.name], check=False, timeout=60)
            for hierarchy in hierarchies():
                for path in ("cgrouptest", "testdir", "pyctr/testdir"):
                    files.remove_tree(str(hierarchy / path))
        return Verdict(tuple(complaints(done)), done.stdout + done.stderr)


def complaints(done: "subprocess.CompletedProcess[str]") -> Iterator[str]:
    """Yield what is wrong according to a program's TAP, its diagnostics where it plans no tests, and its end."""
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in lines:
        if line.startswith("not ok") or ("1..0" in lines and line.startswith('"error": "') and line != '"error": "",'):
            yield line
    if done.returncode != 0:
        yield f"exit status {done.returncode}: {done.stderr.strip()[-500:]}"


@pytest.fixture(scope="module")
def programs() -> Path:
    """The directory with the programs, built if need be."""
    if not (CACHE / ROOT_ARCHIVE).exists():
        build()
    return CACHE


def build() -> None:
    """Build the programs; the root that they unpack comes last, so that it tells whether all are there."""
    if shutil.which("go") is None:
        pytest.skip(f"no programs of runtime-tools in {CACHE}, and no Go to build them")
    environment = {**os.environ, "GOBIN": str(CACHE), "CGO_ENABLED": "0"}
    commands = [
        ["go", "install", f"{MODULE}/cmd/runtimetest@{VERSION}"],
        ["go", "install", f"{MODULE}/validation/...@{VERSION}"],
        ["go", "mod", "download", "-json", f"{MODULE}@{VERSION}"],
    ]
    for command in commands:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"runtime-tools cannot be built: {done.stderr.strip()[-300:]}")
    shutil.copy(Path(json.loads(done.stdout)["Dir"]) / ROOT_ARCHIVE, CACHE)


@pytest.fixture
def judge(programs: Path, tmp_path: Path) -> Judge:
    return Judge(programs, tmp_path)


def test_no_program_is_left_out(programs: Path) -> None:
    built = {path.name for path in programs.iterdir()} - {"runtimetest", ROOT_ARCHIVE}

    assert built == set(PROGRAMS)
    assert WRONG.keys() | DIFFERENT.keys() <= built


@pytest.mark.parametrize("program", PROGRAMS)
def test_runtime_tools_are_content(program: str, judge: Judge) -> None:
    ours = judge(program, str(Path(sys.executable).parent / "pyctr-oci"))
    if not ours.complaints:
        return
    runc = shutil.which("runc")
    if program in DIFFERENT:
        does, sign = DIFFERENT[program]
        assert sign in ours.text
        assert runc is None or judge(program, runc, APART).complaints == ()
        pytest.skip(f"ours {does}; runc {'is not here to pass' if runc is None else 'passes'}")
    assert program in WRONG, ours.complaints
    if runc is None:
        pytest.skip(f"the program {WRONG[program]}; runc is not here to fail, too")
    complaints_about_runc = judge(program, runc).complaints
    assert complaints_about_runc or program in RACES, f"runc passes, ours does not: {ours.complaints}"
    pytest.skip(f"the program {WRONG[program]}; runc {'fails, too' if complaints_about_runc else 'won this time'}")
