"""A shim whose container is gone is a spare again: the same process, with nothing of what it was."""

import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.errors import UnknownError
from support import runtimes
from support.shim_harness import DEADLINE, Host, Running, eventually, host

pytestmark = pytest.mark.root


@pytest.fixture
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ends(pid: int) -> bool:
    """Wait for the process's end; False if it goes on."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], DEADLINE)[0])
    finally:
        os.close(pidfd)


def second_life(shims: Host, name: str, first: Running) -> Running:
    """Run containers until one has the first one's shim, which has ended."""
    for number in range(50):
        container = shims.run(
            f"{name}{number}", "sh", "-c", "read x; exit 7", stdio={"stdin": shims.fifo(f"{name}{number}")}
        )
        if container.shim_pid == first.shim_pid:
            return container
        container.end()
    raise AssertionError("it never came back")


def complete(container: Running) -> list[str]:
    """Return what the shim has open, once it has opened all that it opens for a container that runs."""
    folder = f"/proc/{container.shim_pid}/fd"
    try:
        found = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    except FileNotFoundError:  # it has closed one meanwhile
        return []
    return found if any(name.startswith("/sys/fs/cgroup/") for name in found) else []


def say(container: Running, text: bytes) -> None:
    fd = os.open(container.host.root / container.id, os.O_WRONLY)
    os.write(fd, text)
    os.close(fd)


def test_it_serves_again_and_nothing_adds_up(shims: Host) -> None:
    first = shims.run("first", "sleep", "1000", stdio={"stdout": f"json-file://{shims.root}/first.log"})
    first.exec("e", "true")
    first.start("e")
    listener = first.attach(stdout=True)
    counts = []
    for number in range(3):
        first.end()
        container = second_life(shims, f"again{number}-", first)
        counts.append(len(eventually(lambda made=container: complete(made), "it watches for lack of memory")))
        say(container, b"go\n")
        assert container.wait() == 7
        record = json.loads((container.bundle / "exits/init.json").read_text())
        assert record["exit_status"] == 7
        first = container
    first.end()
    listener.close()
    assert counts[-1] <= counts[0] + 1  # its connection to the daemon comes and goes
    for name in ("first", "again0-0"):
        assert not list((shims.root / "tasks/ns" / name).glob("spool/*"))


def test_one_that_has_slept_serves_again(shims: Host) -> None:
    first = shims.run("slept", "sleep", "1000")
    eventually(lambda: (first.bundle / "asleep").exists() and len(children(first.shim_pid)) == 1, "it falls asleep")
    first.end()
    container = second_life(shims, "woken", first)
    assert not (container.bundle / "asleep").exists()
    say(container, b"go\n")
    assert container.wait() == 7
    container.end()


def test_one_with_an_orphan_left_ends(shims: Host) -> None:
    container = shims.run(
        "orphans", "sh", "-c", "/bin/busybox sleep 1001 & exec /bin/busybox sleep 1000", own_pids=False
    )
    orphan = eventually(
        lambda: [info.pid for info in container.client.call("Pids", pb.PidsRequest(id="orphans")).processes][1:],
        "the second process",
    )[0]
    # Out of its cgroup, which would end it.
    for procs in Path("/sys/fs/cgroup").glob("*/cgroup.procs"):
        if os.access(procs, os.W_OK):
            procs.write_text(str(orphan))
    try:
        container.kill()
        container.wait()
        container.delete()
        eventually(lambda: orphan in children(container.shim_pid), "the orphan comes to its shim")
        container.shut_down()
        assert ends(container.shim_pid)
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_what_was_executed_in_one_life_is_forgotten_in_the_next(shims: Host) -> None:
    """It may be a secret, and it is a burden."""
    first = shims.run("secretive", "sleep", "1000")
    before = private_memory(first)
    for number in range(4):
        first.exec(f"e{number}", "true", str(number) * 3_000_000)
        with pytest.raises(UnknownError, match="rgument list too long"):
            first.start(f"e{number}")
    taken = private_memory(first) - before
    assert taken > 12 << 20
    first.end()

    again = second_life(shims, "unaware", first)
    assert private_memory(again) - before < taken / 2  # the C library keeps some of what it was given back
    say(again, b"go\n")
    again.wait()
    again.end()


def private_memory(container: Running) -> int:
    """Return how many bytes a shim's worker has to itself."""
    for pid in children(container.shim_pid):
        status = Path(f"/proc/{pid}/status").read_text()
        if status.startswith("Name:\tpyctr-shim:work"):
            return int(status.partition("RssAnon:")[2].split()[0]) << 10
    raise AssertionError("it is asleep")


@pytest.mark.parametrize("runtime", [name for name in runtimes.ALL if name != "embedded"])
def test_one_that_had_another_runtime_make_its_container(shims: Host, runtime: str) -> None:
    """The first process that it had ready has long ended then."""
    first = shims.create("other", "sleep", "1000", runtime=runtimes.options_of(runtime))
    assert children(first.shim_pid).count(first.pid) == 1
    assert len(children(first.shim_pid)) == 2  # the other is its worker
    first.start()
    first.end()

    second_life(shims, "embedded", first).end()


def test_one_in_another_cgroup_ends(shims: Host) -> None:
    bundle = shims.container("moved", "sleep", "1000")
    client, request, shim_pid = shims.shim("moved")
    asked = pb.CreateTaskRequest(id="moved", bundle=str(bundle))
    asked.options.Pack(oci_pb2.Options(shim_cgroup=f"/{shims.group}/shim"), type_url_prefix="")
    asked.options.type_url = "containerd.runc.v1.Options"
    pid = client.call("Create", asked).pid
    Running(shims, "moved", bundle, client, request, shim_pid, pid).end()
    assert ends(shim_pid)
    for cgroup in Path("/sys/fs/cgroup").glob(f"*/{shims.group}/shim"):
        cgroup.rmdir()


def test_one_ends_whose_zygote_is_gone(shims: Host) -> None:
    container = shims.run("alone", "sleep", "1000")
    shims.requests.close()
    assert shims.zygote.wait(DEADLINE) == 0
    container.end()
    assert ends(container.shim_pid)


def test_surplus_ones_end(shims: Host) -> None:
    many = [shims.run(f"many{number}", "sleep", "1000") for number in range(12)]
    for container in many:
        container.end()

    def waiting() -> list[int]:
        return [pid for pid in children(shims.zygote.pid) if os.getsid(pid) == pid]

    eventually(lambda: len(waiting()) == 2, "two spares are left")
    shims.run("last", "true").end()
