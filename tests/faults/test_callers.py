"""F36 to F38: callers that go away, callers that repeat each other, and everything ending at once."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import Containers, EventLog
from support.daemon_process import DEADLINE, wait_until

pytestmark = pytest.mark.root


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
