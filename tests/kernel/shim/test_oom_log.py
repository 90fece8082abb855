"""Kills for memory: what wakes the shim, and what tells of one whose cgroup is gone, as systemd's soon are."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim import oom_log
from pyctr_shim.loop import PRIORITY, Loop
from pyctr_shim.oom import OomWatch
from support.shim_harness import Host, Running, host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("the kernel's log cannot be read here")
    with host() as here:
        yield here


def ended(shims: Host, name: str, *arguments: str) -> Running:
    container = shims.run(name, *arguments, resources={"memory": {"limit": 8 << 20}})
    if arguments[0] == "sleep":
        container.kill()
    assert container.wait() == 137
    container.end()
    return container


class Gone:
    """A cgroup that has been removed; its file can still be asked for, and says nothing."""

    def __init__(self) -> None:
        process = os.posix_spawn("/bin/true", ["true"], {})
        self.fd = os.open(f"/proc/{process}/status", os.O_RDONLY)
        os.waitpid(process, 0)

    def oom_kills(self) -> int:
        return 0

    def oom_watch(self) -> tuple[int, int]:
        read_fd, write_fd = os.pipe()
        os.close(write_fd)
        return read_fd, self.fd


def test_the_log_tells_who_was_killed_for_memory(shims: Host) -> None:
    greedy, modest = ended(shims, "greedy", "tail", "/dev/zero"), ended(shims, "modest", "sleep", "1000")
    told: list[None] = []
    watch = OomWatch(Loop(), Gone(), lambda: told.append(None))

    assert watch.check() == 0
    assert not watch.has_missed(modest.pid)
    assert watch.has_missed(greedy.pid)
    assert len(told) == 1
    watch.close()


def test_a_cgroup_that_is_there_is_believed(shims: Host, tmp_path: Path) -> None:
    greedy = ended(shims, "again", "tail", "/dev/zero")
    assert oom_log.tells_of(greedy.pid)
    (tmp_path / "events").touch()
    there = Gone()
    os.close(there.fd)
    there.fd = os.open(tmp_path / "events", os.O_RDONLY)
    watch = OomWatch(Loop(), there, lambda: None)

    assert not watch.has_missed(greedy.pid)
    watch.close()


class Unified(Gone):
    """A cgroup of version 2; this file of it is told of as memory.events is, which not every machine has there."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cgroup.events"

    def oom_watch(self) -> tuple[int, int]:
        fd = os.open(self.path, os.O_RDONLY)
        return fd, os.dup(fd)


def test_a_file_that_does_not_change_wakes_nobody() -> None:
    """On version 2 it can be read at any time: waiting for that would be no waiting."""
    roots = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
    root = next((one for one in roots if (one / "cgroup.controllers").exists()), None)
    if root is None:
        pytest.skip("no cgroups of version 2 here")
    directory = root / f"pyctr-test-{os.getpid()}"
    directory.mkdir()
    loop = Loop()
    watch = OomWatch(loop, Unified(directory), lambda: None)
    process = subprocess.Popen(["sleep", "1000"])
    try:
        watch._ready(PRIORITY)  # what nobody has read yet is news
        assert loop._epoll.poll(0) == []
        (directory / "cgroup.procs").write_text(str(process.pid))
        assert [events & PRIORITY for _, events in loop._epoll.poll(30)] == [PRIORITY]
    finally:
        process.kill()
        process.wait()
        watch.close()
        directory.rmdir()
