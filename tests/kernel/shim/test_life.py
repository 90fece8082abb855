"""A shim and a real container: what its processes' ends are, in which order they are told, what is left."""

import json
import os
import platform
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound, Unimplemented, UnknownError
from support.shim_harness import DEADLINE, Host, Running, eventually, host, is_free

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


@pytest.mark.parametrize(
    ("name", "script", "status"),
    [
        ("zero", "exit 0", 0),
        ("one", "exit 1", 1),
        ("seven", "exit 7", 7),
        ("killed", "kill -KILL $$; sleep 100", 0),  # the first process of a pid namespace ignores its own KILL
        ("segv", "/bin/busybox sh -c 'kill -SEGV $$'; exit $?", 139),
    ],
)
def test_an_exit_status_is_what_the_program_ended_with(shims: Host, name: str, script: str, status: int) -> None:
    if name == "killed":
        container = shims.run(name, "sleep", "1000")
        container.kill(signal.SIGKILL)
        status = 137
    else:
        container = shims.run(name, "sh", "-c", script)

    assert container.wait() == status
    assert container.state().status == 3
    record = json.loads((container.bundle / "exits/init.json").read_text())
    assert record["exit_status"] == status
    assert record["signal"] == (9 if status == 137 else 0)
    deleted = container.delete()
    assert (deleted.pid, deleted.exit_status) == (container.pid, status)
    assert deleted.exited_at.seconds > 0
    container.shut_down()
    topics = [told.topic for told in shims.events.about(name)]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_many_waits_are_parked_and_block_nobody(shims: Host) -> None:
    container = shims.create("waited", "sleep", "1000")
    waits = [container.client.send("Wait", pb.WaitRequest(id="waited")) for _ in range(50)]
    container.start()
    state = container.state()
    assert state.status == 2
    assert state.exited_at.seconds == -62135596800  # Go's zero time: for containerd, none at all is 1970
    container.kill(signal.SIGTERM)  # the first process of a pid namespace has no default action
    container.kill(signal.SIGKILL)

    assert [container.client.answer(wait).exit_status for wait in waits] == [137] * 50
    with pytest.raises(NotFound, match="process already finished"):
        container.kill()
    container.end()


def test_a_wait_with_a_deadline_ends_by_itself(shims: Host) -> None:
    container = shims.run("deadline", "sleep", "1000")
    with pytest.raises(DeadlineExceeded):
        container.client.call("Wait", pb.WaitRequest(id="deadline"), timeout=0.05)
    container.end()


def test_a_container_outlives_the_connection_and_its_creator(shims: Host) -> None:
    container = shims.run("outlives", "sleep", "1000")
    container.client.close()

    container.client = shims.connect(container.request)
    connected = container.client.call("Connect", pb.ConnectRequest(id="outlives"))
    assert (connected.shim_pid, connected.task_pid) == (container.shim_pid, container.pid)
    assert os.getppid() != container.shim_pid
    container.end()


def test_both_versions_of_the_service_answer_and_unknown_ones_do_not(shims: Host) -> None:
    container = shims.run("versions", "sleep", "1000")
    old = shims.connect(container.request)
    old.service = "containerd.task.v2.Task"
    assert old.call("State", pb.StateRequest(id="versions")).pid == container.pid
    old.service = "containerd.task.v9.Task"
    with pytest.raises(Unimplemented, match="service containerd"):
        old.call("State", pb.StateRequest(id="versions"))
    old.close()
    container.end()


def test_execs_end_before_the_first_process_does(shims: Host) -> None:
    container = shims.run("ordered", "sleep", "1000")
    for number in range(3):
        container.exec(f"e{number}", "sleep", "1000")
        container.start(f"e{number}")
    container.exec("never", "sleep", "1000")
    pids = {info.pid for info in container.client.call("Pids", pb.PidsRequest(id="ordered")).processes}
    assert len(pids) == 4

    container.kill()
    container.wait()
    assert container.wait("e1") == 137
    container.delete()
    container.shut_down()

    exits = [
        told.event.id
        for told in shims.events.told
        if told.topic == "/tasks/exit" and told.event.container_id == "ordered"
    ]
    assert sorted(exits[:3]) == ["e0", "e1", "e2"]
    assert exits[3:] == ["ordered"]


@pytest.mark.parametrize("status", [0, 1, 7, 126])
def test_an_exec_has_an_exit_status_of_its_own(shims: Host, status: int) -> None:
    container = shims.run(f"exec{status}", "sleep", "1000")
    container.exec("e", "sh", "-c", f"exit {status}")
    assert container.state("e").status == 1
    container.start("e")
    assert container.wait("e") == status
    assert json.loads((container.bundle / "exits/exec-e.json").read_text())["exit_status"] == status
    assert container.delete("e").exit_status == status
    with pytest.raises(NotFound, match="process does not exist e"):
        container.wait("e")
    container.end()


def test_what_is_not_allowed_is_refused_in_containerds_words(shims: Host) -> None:
    container = shims.create("refused", "sleep", "1000")
    with pytest.raises(UnknownError, match="cannot pause task in created state"):
        container.client.call("Pause", pb.PauseRequest(id="refused"))
    with pytest.raises(AlreadyExists):
        container.client.call("Create", pb.CreateTaskRequest(id="refused", bundle=str(container.bundle)))
    container.start()
    with pytest.raises(UnknownError, match="cannot delete a running process"):
        container.delete()
    with pytest.raises(UnknownError, match="cannot start a running process"):
        container.start()
    container.exec("e", "true")
    with pytest.raises(AlreadyExists, match="id e: already exists"):
        container.exec("e", "true")
    with pytest.raises(FailedPrecondition, match="process not created"):
        container.kill(exec_id="e")
    container.kill()
    container.wait()
    with pytest.raises(UnknownError, match="cannot exec in a stopped state"):
        container.exec("late", "true")
    with pytest.raises(FailedPrecondition, match="init process is not running"):
        container.start("e")
    container.end()


def test_a_created_container_can_be_deleted(shims: Host) -> None:
    container = shims.create("unstarted", "sleep", "1000")
    assert container.delete().exit_status == 137
    with pytest.raises(NotFound, match="container not created"):
        container.delete()
    container.shut_down()


def test_ten_deletes_at_once_have_one_effect_and_one_answer(shims: Host) -> None:
    container = shims.run("deleted10", "sh", "-c", "exit 7")
    container.wait()
    streams = [container.client.send("Delete", pb.DeleteRequest(id="deleted10")) for _ in range(10)]
    statuses = []
    for stream in streams:
        try:
            statuses.append(container.client.answer(stream).exit_status)
        except NotFound:
            continue
    assert statuses
    assert set(statuses) == {7}
    container.shut_down()
    assert shims.events.topics().count("/tasks/delete") >= 1


def test_a_program_that_is_not_there_fails_the_call_with_its_name(shims: Host) -> None:
    bundle = shims.container("missing", "x")
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["nowhere"]
    (bundle / "config.json").write_text(json.dumps(spec))
    client, request, _pid = shims.shim("missing")
    with pytest.raises(UnknownError, match=r"OCI runtime create failed: .*nowhere.*executable file not found"):
        client.call("Create", pb.CreateTaskRequest(id="missing", bundle=str(bundle)))
    client.call("Shutdown", pb.ShutdownRequest(id="missing"))
    eventually(lambda: not os.path.exists(request["socket"]), "socket removed")
    client.close()


def test_pause_freezes_and_a_kill_still_ends_it(shims: Host) -> None:
    container = shims.run("paused", "sleep", "1000")
    container.client.call("Pause", pb.PauseRequest(id="paused"))
    assert container.state().status == 4
    container.client.call("Resume", pb.ResumeRequest(id="paused"))
    assert container.state().status == 2
    container.client.call("Pause", pb.PauseRequest(id="paused"))
    container.kill()
    assert container.wait() == 137
    container.end()


def test_processes_without_a_pid_namespace_of_their_own_end_with_the_first(shims: Host) -> None:
    container = shims.run(
        "hostpid", "sh", "-c", "/bin/busybox sleep 1000 & exec /bin/busybox sleep 1001", own_pids=False
    )
    pids = eventually(
        lambda: [info.pid for info in container.client.call("Pids", pb.PidsRequest(id="hostpid")).processes][1:],
        "the second process",
    )
    pidfd = os.pidfd_open(pids[0])
    container.kill()
    container.wait()
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)
    # The orphan came to the shim, which has reaped it.
    children = Path(f"/proc/{container.shim_pid}/task/{container.shim_pid}/children")
    eventually(lambda: not children.read_text().strip(), "orphans reaped")
    container.end()


def test_what_could_not_start_can_be_deleted_at_once(shims: Host) -> None:
    """Its process may have been reaped by then, and not told of."""
    script = shims.rootfs / "bin/without-interpreter"
    script.write_text("#!/nosuch\n")
    script.chmod(0o755)
    for number in range(20):
        name = f"nostart{number}"
        bundle = shims.container(name, "true")
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"]["args"] = ["/bin/without-interpreter"]
        (bundle / "config.json").write_text(json.dumps(spec))
        client, request, shim_pid = shims.shim(name)
        pid = client.call("Create", pb.CreateTaskRequest(id=name, bundle=str(bundle))).pid
        container = Running(shims, name, bundle, client, request, shim_pid, pid)
        with pytest.raises(UnknownError, match="no such file or directory"):
            container.start()
        assert container.delete().exit_status != 0
        container.shut_down()


def test_an_oom_kill_is_told_and_is_the_reason(shims: Host) -> None:
    limit: dict[str, Any] = {
        "resources": {"memory": {"limit": 16 << 20}, "devices": [{"allow": True, "access": "rwm"}]}
    }
    container = shims.run("oom", "sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", **limit)
    assert container.wait() == 137
    record = json.loads((container.bundle / "exits/init.json").read_text())
    assert (record["oom_killed"], record["reason"]) == (True, "oom")
    shims.events.wait_for("/tasks/oom", container_id="oom")
    container.end()


def test_a_second_shim_on_a_bundle_is_refused(shims: Host) -> None:
    container = shims.run("locked", "sleep", "1000")
    client, _request = shims.request("locked", socket=str(shims.root / "other.sock"))
    reply = shims.reply()
    assert "a live shim holds" in reply["error"]
    client.close()
    container.end()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no stub on this machine")
@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_process_is_no_interpreter_before_it_is_the_program(shims: Host, terminal: bool) -> None:
    container = shims.create(f"place{terminal}", "sleep", "1000", terminal=terminal)

    assert "python" not in Path(f"/proc/{container.pid}/maps").read_text().lower()
    container.start()
    container.end()


def test_a_shim_needs_one_thread_and_no_big_library(shims: Host) -> None:
    container = shims.run("thread", "sleep", "1000")
    assert len(os.listdir(f"/proc/{container.shim_pid}/task")) == 1
    assert os.readlink(f"/proc/{container.shim_pid}/exe").startswith("/memfd:")
    assert "grpc" not in Path(f"/proc/{container.shim_pid}/maps").read_text()
    container.end()


def test_a_container_runs_since_it_was_made(shims: Host) -> None:
    """What its shim had ready before is not what it tells: programs say since when they run, and others ask."""
    shims.run("first", "true").end()
    time.sleep(4)  # in which nobody wants a shim

    container = shims.run("second", "sleep", "1000")

    ticks = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK") < 3
    container.end()


def test_one_whose_bundle_was_removed_is_no_shim_any_more_once_its_container_has_ended(shims: Host) -> None:
    container = shims.run("lost", "sleep", "1000")
    lines = Path(f"/proc/{container.pid}/cgroup").read_text().splitlines()
    (cgroup,) = {path for line in lines if "lost" in (path := line.split(":")[2])}
    shutil.rmtree(container.bundle)
    pidfd = os.pidfd_open(container.pid)

    time.sleep(2.5)  # it looks when it is idle
    assert os.path.exists(container.request["socket"])
    assert list(Path("/sys/fs/cgroup").glob(f"*{cgroup}"))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    eventually(lambda: not os.path.exists(container.request["socket"]), "the shim ends, or is a spare again")
    assert not list(Path("/sys/fs/cgroup").glob(f"*{cgroup}"))
    container.client.close()
    os.close(pidfd)


def test_nor_one_with_an_exec_that_was_never_started(shims: Host) -> None:
    container = shims.run("lost-exec", "sleep", "1000")
    container.exec("e", "true")
    shutil.rmtree(container.bundle)
    container.kill()

    eventually(lambda: not os.path.exists(container.request["socket"]), "the shim ends, or is a spare again")
    container.client.close()


def test_one_that_others_share_is_found_by_their_bundles(shims: Host) -> None:
    """How they ended is still asked for when the container is gone that the shim was started for."""
    first = shims.run("pod", "sleep", "1000")
    bundle = shims.container("member", "sleep", "1000")
    pid = first.client.call("Create", pb.CreateTaskRequest(id="member", bundle=str(bundle))).pid
    member = Running(shims, "member", bundle, first.client, first.request, first.shim_pid, pid)
    member.start()
    first.kill()
    first.wait()
    first.delete()
    shutil.rmtree(first.bundle)
    member.kill()
    member.wait()

    time.sleep(4)  # it looks when it is idle, and has no connection to the daemon any more

    assert member.delete().exit_status == 128 + 9
    first.client.call("Shutdown", pb.ShutdownRequest(id="pod"))
    eventually(lambda: not os.path.exists(first.request["socket"]), "the shim ends, or is a spare again")
    first.client.close()


@pytest.fixture
def nobody_to_tell(shims: Host) -> Iterator[None]:
    shims.events.stop()
    yield
    shims.events.start()


@pytest.mark.usefixtures("nobody_to_tell")
def test_one_whose_daemon_never_comes_back_leaves_what_it_has_to_tell_and_ends(shims: Host) -> None:
    container = shims.run("untold", "sleep", "1000")
    container.kill()
    container.wait()
    container.delete()
    container.client.close()

    eventually(lambda: is_free(container.bundle), "nobody has used the shim for ten seconds")

    assert not os.path.exists(container.request["socket"])
    assert len(os.listdir(container.bundle / "spool")) == 4, "created, started, exited, deleted"


@pytest.mark.usefixtures("nobody_to_tell")
def test_one_whose_bundle_was_removed_ends_even_if_it_has_something_to_tell(shims: Host) -> None:
    container = shims.run("untold-lost", "sleep", "1000")
    spool = container.bundle / "spool"
    eventually(lambda: spool.exists() and len(os.listdir(spool)) == 2, "created and started wait to be told")
    shutil.rmtree(container.bundle)
    container.kill()
    container.client.close()

    eventually(lambda: not os.path.exists(container.request["socket"]), "the shim ends, or is a spare again")
