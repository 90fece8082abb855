"""F36 to F38: callers that go away, callers that repeat each other, and everything ending at once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.pyctr import engine_pb2, engine_pb2_grpc
from support.containers import NAMESPACE, Containers, EventLog, exec_request
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.images import busybox, write_archive

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving_nothing")]


HEADERS = (("containerd-namespace", NAMESPACE),)


@pytest.fixture(scope="module")
def image(daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image that the daemon has."""
    name = "example.com/busybox:v1"
    archive = write_archive(tmp_path_factory.mktemp("image") / "archive.tar", {name: busybox()})
    daemon.ctr("images", "import", str(archive))
    return name


def outcomes(futures: list[Any]) -> Counter[str]:
    """Count the codes with which calls ended."""
    codes = (future.exception() for future in futures)
    return Counter("OK" if error is None else error.code().name for error in codes)


@pytest.mark.parametrize("patience_ms", [0.5, 1, 2, 4, 8, 16])
def test_client_leaves_create(containers: Containers, patience_ms: float) -> None:
    """It is undone unless it was answered; the next call finds a clean place or what the first has made."""
    containers.define("web", "sleep", "1000")
    request = tasks_pb2.CreateTaskRequest(container_id="web")
    for _ in range(3):
        containers.future("Create", request, timeout=patience_ms / 1000).exception()
        again = containers.future("Create", request)
        error = again.exception()
        # The answer may have been on its way when the caller gave up.
        assert again.result().pid > 0 if error is None else error.code() == grpc.StatusCode.ALREADY_EXISTS
        assert containers.status("web") == types.CREATED
        containers.delete("web")


def test_client_leaves_start_and_delete(containers: Containers) -> None:
    containers.define("web", "sleep", "1000")
    for patience_ms in (0.5, 1, 2, 4, 8):
        containers.create("web")
        containers.future("Start", tasks_pb2.StartRequest(container_id="web"), timeout=patience_ms / 1000).exception()
        error = containers.future("Start", tasks_pb2.StartRequest(container_id="web")).exception()
        assert error is None or "cannot start a running process" in error.details()
        assert containers.status("web") == types.RUNNING
        containers.kill("web")
        containers.wait("web")
        containers.future(
            "Delete", tasks_pb2.DeleteTaskRequest(container_id="web"), timeout=patience_ms / 1000
        ).exception()
        error = containers.future("Delete", tasks_pb2.DeleteTaskRequest(container_id="web")).exception()
        assert error is None or error.code() == grpc.StatusCode.NOT_FOUND
        assert containers.status("web") is None


def test_client_leaves_exec(containers: Containers) -> None:
    """The process is registered once, or not at all; it can be started and deleted."""
    containers.run("web", "sleep", "1000")
    for patience_ms in (0.5 * number for number in range(1, 25)):
        request = exec_request("web", "sh", "sh", "-c", "exit 3")
        containers.future("Exec", request, timeout=patience_ms / 1000).exception()
        error = containers.future("Exec", request).exception()
        assert error is None or error.code() == grpc.StatusCode.ALREADY_EXISTS
        assert containers.status("web", "sh") == types.CREATED
        containers.start("web", "sh")
        assert containers.wait("web", "sh").status == 3
        containers.tasks("DeleteProcess", tasks_pb2.DeleteProcessRequest(container_id="web", exec_id="sh"))
        assert containers.status("web", "sh") is None


def test_client_leaves_kill(containers: Containers) -> None:
    """The signal is sent or not; the next one ends it, or finds that it has ended."""
    containers.define("web", "sleep", "1000")
    for patience_ms in (0.5, 1, 2, 4, 8):
        containers.create("web")
        containers.start("web")
        request = tasks_pb2.KillRequest(container_id="web", signal=9)
        containers.future("Kill", request, timeout=patience_ms / 1000).exception()
        error = containers.future("Kill", request).exception()
        assert error is None or error.code() == grpc.StatusCode.NOT_FOUND
        assert containers.wait("web").status == 137
        containers.delete("web")


@pytest.mark.parametrize("patience_ms", [0.5, 1, 2, 4, 8, 16, 32])
def test_client_leaves_run_spec(containers: Containers, image: str, patience_ms: float) -> None:
    """The container is there and whole, and has the name, or another one can have it."""
    options = engine_pb2.RunOptions(args=["sleep", "1000"])
    run_spec = engine_pb2_grpc.EngineStub(containers.channel).RunSpec.future
    for number in range(3):
        first, second = (
            engine_pb2.RunSpecRequest(image=image, id=f"{which}{number}", name="web", options=options)
            for which in ("first", "second")
        )
        run_spec(first, metadata=HEADERS, timeout=patience_ms / 1000).exception()
        made = run_spec(second, metadata=HEADERS, timeout=DEADLINE)
        assert outcomes([made]).keys() <= {"OK", "ALREADY_EXISTS"}
        (record,) = containers.records("List", containers_pb2.ListContainersRequest()).containers
        assert record.id == (second.id if made.exception() is None else first.id)
        assert (record.snapshot_key, record.labels[labels.NAME]) == (record.id, "web")
        containers.daemon.ctr("snapshots", "info", record.id)
        containers.remove(record.id)


def test_waiters_that_leave(containers: Containers) -> None:
    containers.run("web", "sleep", "1000")
    request = tasks_pb2.WaitRequest(container_id="web")
    waits = [containers.future("Wait", request) for _ in range(50)]
    for wait in waits[::2]:
        wait.cancel()
    containers.kill("web")
    assert {wait.result().exit_status for wait in waits[1::2]} == {137}


def test_create_start_and_delete_ten_times_at_once(containers: Containers) -> None:
    containers.define("web", "sleep", "1000")
    creates = [containers.future("Create", tasks_pb2.CreateTaskRequest(container_id="web")) for _ in range(10)]
    assert outcomes(creates) == {"OK": 1, "ALREADY_EXISTS": 9}
    starts = [containers.future("Start", tasks_pb2.StartRequest(container_id="web")) for _ in range(10)]
    assert outcomes(starts)["OK"] == 1
    kills = [containers.future("Kill", tasks_pb2.KillRequest(container_id="web", signal=9)) for _ in range(10)]
    assert outcomes(kills).keys() <= {"OK", "NOT_FOUND"}
    containers.wait("web")
    deletes = [containers.future("Delete", tasks_pb2.DeleteTaskRequest(container_id="web")) for _ in range(10)]
    assert outcomes(deletes).keys() <= {"OK", "NOT_FOUND"}
    assert {delete.result().exit_status for delete in deletes if delete.exception() is None} == {137}


def test_kill_and_delete_race(containers: Containers) -> None:
    """Whoever comes first: the end is a task that is gone, or one that has ended."""
    containers.define("web", "sleep", "1000")
    for _ in range(5):
        containers.create("web")
        containers.start("web")
        kill = containers.future("Kill", tasks_pb2.KillRequest(container_id="web", signal=9))
        delete = containers.future("Delete", tasks_pb2.DeleteTaskRequest(container_id="web"))
        kill.exception()
        if delete.exception() is not None:
            assert "cannot delete a running process" in delete.exception().details()
            assert containers.wait("web").status == 137
            containers.delete("web")
        assert containers.status("web") is None


def test_events_come_in_the_order_of_the_calls(containers: Containers) -> None:
    """What a shim tells is told before the answer that says the same, and so before what a client does then."""
    filters = ["event.container_id==ordered", "topic~=^/containers/,event.id==ordered"]
    stream: Any = events_pb2_grpc.EventsStub(containers.channel).Subscribe(
        events_pb2.SubscribeRequest(filters=filters), timeout=DEADLINE
    )
    stream.initial_metadata()
    for _ in range(20):
        containers.define("ordered", "sleep", "1000")
        containers.create("ordered")
        containers.start("ordered")
        containers.remove("ordered")
    lifecycle = ["/containers/create", *(f"/tasks/{verb}" for verb in ("create", "start", "exit", "delete"))]
    lifecycle.append("/containers/delete")
    assert [next(stream).topic for _ in range(20 * len(lifecycle))] == 20 * lifecycle
    stream.cancel()


def test_two_hundred_exits_at_once(containers: Containers) -> None:
    """Each is told once, with its own status, between its start and its deletion."""
    ids = [f"c{number}" for number in range(200)]
    gate = containers.gate()
    with EventLog(containers) as events:
        for number, id in enumerate(ids):
            containers.run(id, "sh", "-c", f"read x < /gate; exit {number}")
        waits = {id: containers.future("Wait", tasks_pb2.WaitRequest(container_id=id)) for id in ids}
        gate.open()
        assert [waits[id].result().exit_status for id in ids] == list(range(200))
        with ThreadPoolExecutor(8) as pool:
            assert [ended.status for ended in pool.map(containers.delete, ids)] == list(range(200))
        events.wait_for(
            lambda: sum(event.topic == "/tasks/delete" for event in events.events) == 200, "200 deletions are told"
        )
        for number, id in enumerate(ids):
            assert events.topics(id) == ["create", "start", "exit", "delete"]
            assert events.of(id)[2].status == number
    wait_until(lambda: not containers.leftovers(), lambda: f"nothing is left, but: {containers.leftovers()}")
