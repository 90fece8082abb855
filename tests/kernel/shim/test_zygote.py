"""The zygote: shims are nobody's children, outlive it and their daemon, and none is made of a bad request."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from support.shim_harness import DEADLINE, Host, eventually, host

pytestmark = pytest.mark.root


def spares(here: Host) -> list[int]:
    """Return the zygote's spares, keepers and workers: they have its socket, as what has become a shim still has."""
    link = os.readlink(f"/proc/{here.zygote.pid}/fd/3")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == here.zygote.pid:
            continue
        try:
            if os.readlink(f"/proc/{name}/fd/3") == link and os.getsid(int(name)) not in here.shims:
                found.append(int(name))
        except OSError:
            continue
    return found


def test_shims_outlive_zygote_and_daemon_and_spares_do_not() -> None:
    with host() as here:
        container = here.run("outlive", "sleep", "1000")
        assert os.getsid(container.shim_pid) == container.shim_pid
        waiting = eventually(lambda: spares(here), "spares")
        pidfds = [os.pidfd_open(pid) for pid in waiting]
        here.requests.close()
        assert here.zygote.wait(DEADLINE) == 0
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], DEADLINE)[0], "a spare is left"
            os.close(pidfd)
        assert container.state().status == 2
        container.end()


def test_a_spare_that_dies_is_replaced() -> None:
    with host() as here:
        first = eventually(lambda: spares(here), "spares")
        for pid in first:
            with contextlib.suppress(ProcessLookupError):  # a worker goes with its keeper
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: [pid for pid in spares(here) if pid not in first], "a new spare")
        container = here.run("after", "sleep", "1000")
        container.end()


def test_what_one_left_that_was_killed_while_it_practised_goes_with_the_next() -> None:
    def places(here: Host) -> list[Path]:
        name = f"pyctr-practice-*-{here.zygote.pid}-*"
        return [
            *Path("/tmp").glob(name),
            *Path("/sys/fs/cgroup").glob(f"*/pyctr/{name}"),
            *Path("/sys/fs/cgroup").glob(f"pyctr/{name}"),
        ]

    with host() as killed:
        eventually(lambda: places(killed), "it practises")
        killed.zygote.kill()
        killed.zygote.wait(DEADLINE)
    with host() as here:
        here.run("after", "true").end()
        eventually(lambda: not places(killed), "nothing is left")
        eventually(lambda: not places(here), "nothing of this one either")


def test_requests_in_a_row_are_all_served() -> None:
    with host() as here:
        names = [f"burst{number}" for number in range(12)]
        for name in names:
            here.container(name, "sleep", "1000")
        clients = [here.request(name)[0] for name in names]
        replies = [here.reply() for _ in names]
        assert len({reply["pid"] for reply in replies}) == len(names)
        for name, client in zip(names, clients, strict=True):
            connected = client.call("Connect", pb.ConnectRequest(id=name))
            assert connected.shim_pid in here.shims
            client.call("Shutdown", pb.ShutdownRequest(id=name))
            client.close()


@pytest.mark.parametrize("missing", ["bundle", "instance", "socket"])
def test_a_request_that_cannot_be_met_is_answered_with_the_reason(missing: str) -> None:
    with host() as here:
        if missing != "bundle":
            here.bundle("bad")
        changes = {"bundle": {"bundle": "/nowhere"}, "instance": {}, "socket": {"socket": "/nowhere/" + "x" * 120}}
        client, _request = here.request("bad", **changes[missing])
        reply = here.reply()
        assert ("pid" in reply) == (missing == "instance")
        if missing != "instance":
            assert reply["error"]
        else:
            client.call("Shutdown", pb.ShutdownRequest(id="bad"))
        client.close()


def test_cve_2019_5736_an_interpreter_cannot_be_written_through_a_shim() -> None:
    with host() as here:
        container = here.run("sealed", "sleep", "1000")
        # Opening it for writing may fail because it runs (ETXTBSY); where it does not, the seal is what counts.
        with pytest.raises(OSError, match=r"Text file busy|not permitted"):
            Path(f"/proc/{container.shim_pid}/exe").write_bytes(b"x")
        fd = os.open(f"/proc/{container.shim_pid}/exe", os.O_RDONLY)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        os.close(fd)
        assert seals & fcntl.F_SEAL_WRITE
        container.end()


def test_delete_buries_what_a_killed_shim_left(tmp_path: Path) -> None:
    with host() as here:
        container = here.run("buried", "sh", "-c", "/bin/busybox sleep 1000 & exec /bin/busybox sleep 1001")
        pidfd = os.pidfd_open(container.pid)
        os.kill(container.shim_pid, signal.SIGKILL)
        command = [sys.executable, "-m", "pyctr_shim", "-namespace", "ns", "-address", "/x", "-id", "buried", "delete"]
        for _ in range(2):
            done = subprocess.run(command, cwd=container.bundle, capture_output=True, check=True, timeout=2 * DEADLINE)
        response = pb.DeleteResponse.FromString(done.stdout)
        assert response.exit_status == 255
        assert response.exited_at.seconds > 0
        assert select.select([pidfd], [], [], DEADLINE)[0], "the container goes on"
        os.close(pidfd)
        assert not list(Path("/sys/fs/cgroup").glob(f"*/{here.group}/buried"))
        assert not os.path.exists(container.request["socket"])
        container.client.close()


def test_delete_tells_what_the_shim_still_recorded() -> None:
    with host() as here:
        container = here.run("recorded", "sh", "-c", "exit 7")
        container.wait()
        os.kill(container.shim_pid, signal.SIGKILL)
        command = [sys.executable, "-m", "pyctr_shim", "-id", "recorded", "-bundle", str(container.bundle), "delete"]
        done = subprocess.run(command, cwd="/", capture_output=True, check=True, timeout=2 * DEADLINE)
        response = pb.DeleteResponse.FromString(done.stdout)
        assert (response.pid, response.exit_status) == (container.pid, 7)
        container.client.close()


def test_what_happens_while_no_daemon_listens_is_told_afterwards_in_order() -> None:
    with host() as here:
        container = here.run("away", "sleep", "1000")
        for number, end in enumerate(("exit 0", "exit 1", "kill -9 $$", "kill -11 $$", "exit 7")):
            container.exec(f"e{number}", "sh", "-c", f"read x; {end}", stdin=here.fifo(f"in{number}"))
            container.start(f"e{number}")
        here.events.wait_for("/tasks/exec-started", exec_id="e4")
        here.events.stop()
        container.client.close()
        for number in range(5):
            fd = os.open(here.root / f"in{number}", os.O_WRONLY)
            os.write(fd, b"go\n")
            os.close(fd)
        records = container.bundle / "exits"
        eventually(lambda: records.is_dir() and len(list(records.glob("exec-*.json"))) == 5, "records of all ends")
        container.client = here.connect(container.request)
        container.kill()
        container.wait()
        container.client.close()
        eventually(lambda: len(list((container.bundle / "spool").iterdir())) == 6, "six events wait")

        here.events.start()
        container.client = here.connect(container.request)
        container.client.call("Connect", pb.ConnectRequest(id="away"))
        here.events.wait_for("/tasks/exit", id="away")
        exits = [told for told in here.events.about("away") if told.topic == "/tasks/exit"]
        assert {told.event.id: told.event.exit_status for told in exits} == {
            "e0": 0,
            "e1": 1,
            "e2": 137,
            "e3": 139,
            "e4": 7,
            "away": 137,
        }
        assert exits[-1].event.id == "away"
        assert [told.sequence for told in exits] == sorted({told.sequence for told in exits})
        record = json.loads((records / "init.json").read_text())
        assert (record["exit_status"], record["reason"]) == (137, "signalled")
        eventually(lambda: not list((container.bundle / "spool").iterdir()), "the spool is empty")
        container.end()


@pytest.mark.parametrize("way", ["immutable", "directory removed"])
def test_a_log_that_cannot_be_written_does_not_stop_the_container(way: str) -> None:
    with host() as here:
        log = here.root / "logs" / "0.log"
        script = (
            "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; echo done > /tmp/done; exec sleep 1000"
        )
        log.parent.mkdir()
        container = here.create("nolog", "sh", "-c", script, stdio={"stdout": f"cri://{log}"})
        if way == "immutable":
            # Nothing immutable on a tmpfs: a directory in the place of the file after a rotation does as well.
            log.unlink()
            log.mkdir()
            os.kill(container.shim_pid, signal.SIGUSR1)
        else:
            log.unlink()
            log.parent.rmdir()
            here.root.joinpath("logs").write_text("in the way")
            os.kill(container.shim_pid, signal.SIGUSR1)
        container.start()
        eventually((here.rootfs / "tmp/done").exists, "the container has written everything")
        (here.rootfs / "tmp/done").unlink()
        container.end()
