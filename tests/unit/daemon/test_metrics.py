"""Prometheus's text: what a container's statistics become, and what the daemon tells of itself."""

from collections import Counter
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from pyctr_wire.errors import Code
from pyctrd.metrics.exposition import State, Subject, render

METHOD = "/containerd.services.version.v1.Version/Version"
IDLE = State("1.0", {}, Counter(), Counter(), {}, {}, 0.0, Counter(), Counter())


def families(*subjects: Subject, state: State = IDLE) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(render(subjects, state).decode())}


def subject(statistics: Message, id: str = "c1") -> Subject:
    packed = AnyMessage(type_url=statistics.DESCRIPTOR.full_name, value=statistics.SerializeToString())
    return Subject(id, "blue", "io.containerd.runc.v2", packed)


def values(family: Any) -> list[tuple[dict[str, str], float]]:
    return [(sample.labels, sample.value) for sample in family.samples]


OF_C1 = {"container_id": "c1", "namespace": "blue", "runtime": "io.containerd.runc.v2"}


def test_version_1_has_containerds_names() -> None:
    statistics = v1.Metrics()
    statistics.cpu.usage.total = 7
    statistics.cpu.usage.per_cpu.extend([3, 4])
    statistics.memory.total_pg_maj_fault = 5
    statistics.memory.kernel_tcp.failcnt = 6
    statistics.blkio.io_service_bytes_recursive.add(op="Read", device="sda", major=8, minor=1, value=9)
    statistics.hugetlb.add(pagesize="2MB", usage=11)

    found = families(subject(statistics))

    assert values(found["container_cpu_total_nanoseconds"]) == [(OF_C1, 7)]
    per_cpu = found["container_per_cpu_nanoseconds"]
    assert values(per_cpu) == [({**OF_C1, "cpu": "0"}, 3), ({**OF_C1, "cpu": "1"}, 4)]
    assert values(found["container_memory_total_pgmajfault_bytes"]) == [(OF_C1, 5)]
    assert values(found["container_memory_kerneltcp_failcnt_total"]) == [(OF_C1, 6)]
    device = {"op": "Read", "device": "sda", "major": "8", "minor": "1"}
    assert values(found["container_blkio_io_service_bytes_recursive_bytes"]) == [({**OF_C1, **device}, 9)]
    assert values(found["container_hugetlb_usage_bytes"]) == [({**OF_C1, "page": "2MB"}, 11)]
    assert "container_pids_current" not in found, "there is no such controller"
    assert found["container_memory_total_pgmajfault_bytes"].type == "gauge"


def test_version_2_has_containerds_names() -> None:
    statistics = v2.Metrics()
    statistics.cpu.usage_usec = 7
    statistics.memory.usage = 8
    statistics.memory_events.oom = 1
    statistics.pids.limit = 2
    statistics.io.usage.add(major=8, minor=1, rbytes=9)

    found = families(subject(statistics))

    assert values(found["container_cpu_usage_usec_microseconds"]) == [(OF_C1, 7)]
    assert values(found["container_memory_usage_bytes"]) == [(OF_C1, 8)]
    assert values(found["container_memory_oom_total"]) == [(OF_C1, 1)]
    assert values(found["container_pids_limit"]) == [(OF_C1, 2)]
    assert values(found["container_io_rbytes_bytes"]) == [({**OF_C1, "major": "8", "minor": "1"}, 9)]


def test_containers_stand_together_and_strange_statistics_are_left_out() -> None:
    one, other = v2.Metrics(), v2.Metrics()
    one.pids.current, other.pids.current = 1, 2
    strange = Subject("c3", "blue", "", AnyMessage(type_url="of.Another", value=b"x"))

    found = families(subject(one), strange, subject(other, "c2"))

    assert values(found["container_pids_current"]) == [(OF_C1, 1), ({**OF_C1, "container_id": "c2"}, 2)]


def test_the_daemon_tells_of_calls_collections_and_operations() -> None:
    state = IDLE._replace(
        started=Counter({METHOD: 3}),
        handled=Counter({(METHOD, Code.OK): 2, (METHOD, Code.NOT_FOUND): 1}),
        kinds={METHOD: "unary"},
        collections={"success": 4, "fail": 0},
        collecting=0.5,
        running=Counter(pull=1),
        ended=Counter({("pull", "failed"): 2}),
        tasks={("blue", "running"): 5},
    )

    found = families(state=state)

    labels = {"grpc_type": "unary", "grpc_service": "containerd.services.version.v1.Version", "grpc_method": "Version"}
    assert values(found["grpc_server_started"]) == [(labels, 3)]
    handled = [({**labels, "grpc_code": "OK"}, 2), ({**labels, "grpc_code": "NotFound"}, 1)]
    assert values(found["grpc_server_handled"]) == handled
    assert values(found["containerd_gc_collections"]) == [({"status": "success"}, 4), ({"status": "fail"}, 0)]
    assert {sample.name: sample.value for sample in found["containerd_gc_gc_seconds"].samples} == {
        "containerd_gc_gc_seconds_count": 4,
        "containerd_gc_gc_seconds_sum": 0.5,
    }
    assert values(found["pyctrd_operations_running"]) == [({"operation": "pull"}, 1)]
    assert values(found["pyctrd_operations"]) == [({"operation": "pull", "status": "failed"}, 2)]
    assert values(found["pyctrd_tasks"]) == [({"namespace": "blue", "status": "running"}, 5)]
    assert values(found["pyctrd_build_info"]) == [({"version": "1.0"}, 1)]
    assert found["process_resident_memory_bytes"].samples
