"""The daemon is replaced while it works: no container, no attached session and no call is harmed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.pyctr import engine_pb2, engine_pb2_grpc
from support.containers import Containers, EventLog
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import unchanged
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as process:
        yield process


@contextmanager
def caller(containers: Containers, id: str) -> Iterator[list[str]]:
    """Keep calling on one connection, also what changes things; yields what failed, as text."""
    failures: list[str] = []
    stop = threading.Event()
    made = 0

    def call() -> None:
        nonlocal made
        while not stop.wait(0.02):
            try:
                assert id in containers.task_ids()
                if made % 5 == 0:
                    containers.exec(id, f"e{made}", "sh", "-c", f"exit {made % 100}")
                    assert containers.wait(id, f"e{made}").status == made % 100
            except (grpc.RpcError, AssertionError) as error:
                failures.append(repr(error))
            made += 1

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield failures
    finally:
        wait_until(lambda: made > 50 or bool(failures), "fifty calls")
        stop.set()
        thread.join()


def test_upgrade_under_load(containers: Containers, daemon: DaemonProcess) -> None:
    """Twice, with fifty containers: calls wait a little, and who waits for an exit goes on waiting."""
    ids = [f"c{number}" for number in range(50)]
    pids = {id: containers.run(id, "sleep", "1000") for id in ids}
    waits = [containers.future("Wait", tasks_pb2.WaitRequest(container_id=id), timeout=600) for id in ids[:10]]
    with caller(containers, "c0") as failures:
        for _ in range(2):
            before = daemon.pid
            daemon.upgrade()
            assert daemon.pid != before
    assert failures == []
    assert sorted(containers.task_ids()) == sorted(ids)
    assert all(containers.status(id) == types.RUNNING for id in ids)
    for id in ids[10:]:
        (process,) = containers.tasks("ListPids", tasks_pb2.ListPidsRequest(container_id=id)).processes
        assert process.pid == pids[id]
    for id in ids[:10]:
        containers.kill(id)
    assert {wait.result().exit_status for wait in waits} == {137}
    containers.close()
    wait_until(lambda: all(old.poll() == 0 for old in daemon.replaced), "the old daemons have ended")


def test_events_across_an_upgrade(containers: Containers, daemon: DaemonProcess) -> None:
    """A subscriber is sent away when the new daemon serves; between the two streams nothing is missing."""
    gate = containers.gate()
    containers.run("web", "sh", "-c", "read x < /gate; exit 5")
    with EventLog(containers) as before:
        daemon.upgrade()
        wait_until(lambda: not before.alive, "the old stream has ended")
    with EventLog(containers) as after:
        gate.open()
        after.wait_for(lambda: after.topics("web") == ["exit"], "the exit is told by the new daemon")
    assert containers.delete("web").status == 5


def test_who_waits_for_days_is_waited_for(tmp_path: Path) -> None:
    """The old daemon stays for a call that was there before the change, for longer than any connection is to live."""
    with (
        DaemonProcess(config="[grpc]\nconnection_age = 1\n") as daemon,
        unchanged(daemon),
        Containers(daemon) as containers,
    ):
        containers.run("web", "sleep", "1000")
        waiting = containers.future("Wait", tasks_pb2.WaitRequest(container_id="web"), timeout=600)
        daemon.upgrade()
        (old,) = daemon.replaced
        wait_until(lambda: "staying for calls that wait" in daemon.log_text(), "the time of connections is over")
        daemon.upgrade()
        containers.kill("web")
        assert waiting.result().exit_status == 137
        containers.close()
        wait_until(lambda: old.poll() == 0, "the old daemon has ended")


def test_who_listens_to_pods_does_not_hold_an_upgrade_up(daemon: DaemonProcess) -> None:
    """His stream is none of the calls that are let come to their end: it has none."""
    with CriClient(daemon) as cri:
        stream: Any = cri.runtime.GetContainerEvents(runtime_pb2.GetEventsRequest(), timeout=600)
        pod = cri.run_pod()
        assert next(stream).container_id == pod.annotations["id"]
        daemon.upgrade()
        with pytest.raises(grpc.RpcError, match="the daemon is stopping") as ended:
            list(stream)
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        cri.remove_pod(pod.annotations["id"])
        cri.images.RemoveImage(image_pb2.RemoveImageRequest(image=image_pb2.ImageSpec(image=IMAGE)))


def test_program_that_does_not_start_changes_nothing(containers: Containers, daemon: DaemonProcess) -> None:
    containers.run("web", "sleep", "1000")
    (daemon.base / "config.toml").write_text("nonsense")
    engine = engine_pb2_grpc.EngineStub(containers.channel)
    with pytest.raises(grpc.RpcError, match="the new daemon ended") as refused:
        engine.Upgrade(engine_pb2.UpgradeRequest(), timeout=120)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert containers.status("web") == types.RUNNING
    (daemon.base / "config.toml").write_text("")
    daemon.upgrade()
    assert containers.status("web") == types.RUNNING


def test_one_upgrade_at_a_time(containers: Containers, daemon: DaemonProcess) -> None:
    engine = engine_pb2_grpc.EngineStub(containers.channel)
    calls = [engine.Upgrade.future(engine_pb2.UpgradeRequest(), timeout=120) for _ in range(2)]
    outcomes = [call.exception() for call in calls]
    assert sorted(error is None for error in outcomes) == [False, True]
    pid = next(call.result().pid for call in calls if call.exception() is None)
    daemon.adopt(pid)


def test_new_daemon_killed_at_once(containers: Containers, daemon: DaemonProcess) -> None:
    """The state is the old one's no more: the next start takes it, containers never notice."""
    containers.run("web", "sleep", "1000")
    daemon.upgrade()
    daemon.kill()
    daemon.start()
    assert containers.status("web") == types.RUNNING


@needs_strace
def test_new_daemon_killed_with_everything_in_its_hands(containers: Containers, daemon: DaemonProcess) -> None:
    """The old one, its stores closed, starts again from what is on disk."""
    containers.run("web", "sleep", "1000")
    engine = engine_pb2_grpc.EngineStub(containers.channel)
    upgrade = engine.Upgrade.future(engine_pb2.UpgradeRequest(), timeout=120)
    wait_until(lambda: bool(successors(daemon)), "the program has been started")
    # It signs the lock that it has been handed.
    with KillAt(successors(daemon)[0], "ftruncate", 1):
        assert upgrade.exception() is not None
    containers.close()
    daemon.wait_ready()
    assert containers.status("web") == types.RUNNING
    daemon.upgrade()
    assert containers.status("web") == types.RUNNING


def successors(daemon: DaemonProcess) -> list[int]:
    """Return the pids of programs that the daemon has started to take over from it."""
    found = []
    for pid in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split():
        if "--take-over" in Path(f"/proc/{pid}/cmdline").read_text():
            found.append(int(pid))
    return found
