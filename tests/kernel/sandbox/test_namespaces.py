"""Namespaces that outlive every process, and whom they belong to."""

import fcntl
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.errors import UnknownError
from pyctrd.core.idmaps import IdMap, Maps
from pyctrd.sandbox import namespaces

pytestmark = pytest.mark.root

ALL = ("user", "net", "uts", "ipc", "pid")
MAPS = Maps((IdMap(0, 200_000, 65536),), (IdMap(0, 300_000, 65536),))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ns"
    namespaces.unpin(tmp_path / "ns")
    assert not (tmp_path / "ns").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def inside(directory: Path, *words: str) -> str:
    """What a program prints that is root of the user namespace, in all of its namespaces."""
    flags = [f"--{kind}={directory / kind}" for kind in ("user", "net", "uts", "ipc")]
    command = ["nsenter", *flags, "--setuid=0", "--setgid=0", "unshare", "--mount", "--", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_all_belong_to_the_user_namespace(directory: Path) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
    namespaces.pin(directory, ALL, "mapped", sysctls, MAPS)

    assert namespaces.is_pinned(directory, ALL)
    assert inside(directory, "cat", "/proc/self/uid_map").split() == ["0", "200000", "65536"]
    assert inside(directory, "cat", "/proc/self/gid_map").split() == ["0", "300000", "65536"]
    assert inside(directory, "hostname") == "mapped\n"
    assert "<LOOPBACK,UP" in inside(directory, "ip", "link")
    assert inside(directory, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0\n"
    assert inside(directory, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1\n"
    # Only the owner's root may do these.
    inside(directory, "ip", "link", "add", "mine", "type", "bridge")
    inside(directory, "hostname", "renamed")
    user = os.stat(directory / "user").st_ino
    for kind in ("net", "uts", "ipc", "pid"):
        assert owner_of(directory / kind) == user, kind


def test_the_first_process_is_nobody_in_it(directory: Path) -> None:
    namespaces.pin(directory, ALL, "mapped", {}, MAPS)

    flags = [f"--{kind}={directory / kind}" for kind in ("user", "pid")]
    command = ["nsenter", *flags, "--setuid=0", "--setgid=0", "unshare", "--mount-proc", "cat", "/proc/1/status"]
    status = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Name:\tpyctr-pause" in status
    assert "Uid:\t65534\t65534\t65534\t65534" in status
    assert "CapEff:\t0000000000000000" in status


@pytest.mark.parametrize("size", [0, 1 << 32])
def test_maps_that_the_kernel_refuses_leave_nothing(directory: Path, size: int) -> None:
    maps = (IdMap(0, 1000, size),)

    with pytest.raises(UnknownError, match="namespaces of the sandbox"):
        namespaces.pin(directory, ALL, "mapped", {}, Maps(maps, maps))

    assert not directory.exists()


@pytest.mark.parametrize("kinds", [("net", "pid"), ALL], ids="-".join)
def test_a_first_process_that_cannot_be_noted_does_not_stay(directory: Path, kinds: tuple[str, ...]) -> None:
    directory.mkdir()
    (directory / "init.json").symlink_to("/nowhere/init.json")
    before = first_processes()

    with pytest.raises(UnknownError, match=r"init\.json"):
        namespaces.pin(directory, kinds, "mapped", {}, MAPS)

    assert first_processes() <= before
    assert not directory.exists()


def test_a_first_process_ends_with_whoever_has_not_noted_it() -> None:
    program = (
        "import os, signal, sys\n"
        "from pyctrd.network.netns import in_thread\n"
        "from pyctrd.sandbox import pid_one\n"
        "with pid_one.gate() as (waited_fd, _):\n"
        "    print(in_thread(lambda: pid_one.start(waited_fd)), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pidfd = os.pidfd_open(int(process.stdout.readline()))
        assert select.select([pidfd], [], [], 0.1)[0] == []
        process.kill()
    with open(pidfd, "rb"):
        assert select.select([pidfd], [], [], 10)[0] == [pidfd]


def test_half_a_record_is_nobodys(directory: Path) -> None:
    directory.mkdir()
    (directory / "init.json").write_text('{"pid": 1')

    namespaces.unpin(directory)

    assert not directory.exists()


def first_processes() -> set[str]:
    """The pids of all that are there."""
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/exe") if program_of(path) == "/pause"}


def program_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def owner_of(path: Path) -> int:
    """The inode of the user namespace that a namespace belongs to: ioctl_ns(2), NS_GET_USERNS."""
    fd = os.open(path, os.O_RDONLY)
    try:
        owner_fd = fcntl.ioctl(fd, 0xB701)
    finally:
        os.close(fd)
    try:
        return os.fstat(owner_fd).st_ino
    finally:
        os.close(owner_fd)
