"""A child forked ahead becomes whatever container is asked for next."""

import contextlib
import os
import signal
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim.oci import practice, runtime
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys import pagemap
from support.oci_bundle import Lab, Spec, process, read_all, wait

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _end_what_was_not_used() -> Iterator[None]:
    yield
    for child in runtime.forked_ahead():
        child.end()
    runtime.forked_ahead().clear()
    # Who stepped out left a process behind, which ends after it; a shim's keeper reaps them.
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def without(spec: Spec, *kinds: str) -> Spec:
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] not in kinds]
    return spec


def test_it_is_used_once(lab: Lab) -> None:
    runtime.fork_ahead()
    runtime.fork_ahead()
    (child,) = runtime.forked_ahead()

    container = lab.running()

    # On version 2 it is init that steps out of it, into the cgroup.
    assert (container.pid == child.pid) is not mounted().is_v2
    assert container.pids() == [container.pid]
    assert runtime.forked_ahead() == []
    assert lab.running().pid not in (child.pid, container.pid)


def test_its_namespaces_are_the_containers_own(lab: Lab) -> None:
    runtime.fork_ahead()
    spec = lab.spec(
        "sh", "-c", "for n in net ipc uts; do readlink /proc/self/ns/$n; done; hostname; busybox ip link show lo"
    )
    spec["hostname"] = "ahead"

    lines = lab.run(spec).output.splitlines()

    assert not {os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "uts")} & set(lines[:3])
    assert lines[3] == "ahead"
    assert "LOOPBACK,UP" in lines[4]


def test_it_goes_back_to_the_hosts_namespaces(lab: Lab) -> None:
    runtime.fork_ahead()
    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"
    spec = without(lab.spec("sh", "-c", script), "network", "ipc", "uts")

    expected = [os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "uts")]

    assert lab.run(spec).output.split() == expected


def test_it_joins_by_path(lab: Lab) -> None:
    other = lab.running()
    runtime.fork_ahead()
    spec = without(lab.spec("readlink", "/proc/self/ns/net"), "network")
    spec["linux"]["namespaces"].append({"type": "network", "path": f"/proc/{other.pid}/ns/net"})

    assert lab.run(spec).output.strip() == os.readlink(f"/proc/{other.pid}/ns/net")


def test_a_spec_that_needs_a_stager_gets_one(lab: Lab) -> None:
    runtime.fork_ahead()

    assert lab.run(without(lab.spec("echo", "staged"), "pid")).output == "staged\n"
    assert runtime.forked_ahead() == []


def test_a_terminal_and_an_exec(lab: Lab) -> None:
    runtime.fork_ahead()
    spec = lab.spec("sh", "-c", "tty")
    spec["process"]["terminal"] = True
    container = lab.create(spec)
    assert container.console_fd is not None
    container.start()
    assert read_all(container.console_fd).strip() == "/dev/pts/0"
    wait(container.pidfd)

    runtime.fork_ahead()
    assert lab.exec(lab.running(), process("echo", "inside")).output == "inside\n"


def test_one_that_has_ended_is_replaced(lab: Lab) -> None:
    runtime.fork_ahead()
    (child,) = runtime.forked_ahead()
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)

    assert lab.run(lab.spec("echo", "anyway")).output == "anyway\n"


def test_a_failure_is_told_and_undone(lab: Lab) -> None:
    runtime.fork_ahead()

    with pytest.raises(OciError, match=r"executable file not found"):
        lab.create(lab.spec("nope"))


def test_it_keeps_no_fd_of_its_parent(lab: Lab) -> None:
    read_fd, write_fd = os.pipe()
    runtime.fork_ahead()
    os.close(write_fd)

    assert read_all(read_fd) == ""
    os.close(read_fd)


def test_a_rehearsal_comes_back_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    before = sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.umask(0o022)

    practice.rehearse()

    assert (sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.umask(0o022)) == before
    assert os.path.samefile("/", f"/proc/{os.getppid()}/root")
    assert os.getcwd() == "/"
    assert not list(Path("/tmp").glob(f"pyctr-practice-*-{os.getpid()}-*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/pyctr/pyctr-practice-*-{os.getpid()}-*"))
    assert "pyctr-practice" not in Path("/proc/self/mountinfo").read_text()


def test_a_rehearsal_that_goes_wrong_comes_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.chdir("/")

    def refuse(root_fd: int, propagation: int) -> None:
        taken.append(os.readlink("/proc/self/ns/mnt"))
        raise OciError("refused")

    monkeypatch.setattr("pyctr_shim.oci.rootfs.pivot", refuse)
    here = os.readlink("/proc/self/ns/mnt")

    practice.rehearse()

    assert [inside != here for inside in taken] == [True]
    assert os.readlink("/proc/self/ns/mnt") == here
    assert os.path.samefile("/", f"/proc/{os.getppid()}/root")
    assert not list(Path("/sys/fs/cgroup").glob(f"*/pyctr/pyctr-practice-*-{os.getpid()}-*"))


def test_practice_learns_pages_and_leaves_nothing(lab: Lab) -> None:
    before = sorted(os.listdir("/proc/self/fd"))

    pages = practice.touched_pages()

    assert len(pages) > 0
    assert len(pages) % 3 == 0
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not list(Path("/tmp").glob(f"pyctr-practice-*-{os.getpid()}-*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/pyctr/pyctr-practice-*-{os.getpid()}-*"))
    runtime.fork_ahead(lambda fd: runtime.fork_waiting(fd, pages))
    container = lab.running()
    assert lab.exec(container, process("echo", "practised")).output == "practised\n"


def test_pages_that_do_not_exist_do_no_harm() -> None:
    pagemap.populate(array("Q", [0x1000, 0x1000, 23, 0, 0, 22]))
