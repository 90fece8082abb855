"""Figures of several containers added up."""

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from pyctrd.rpc.figures import added_up


def packed(message: v1.Metrics | v2.Metrics, prefix: str = "") -> AnyMessage:
    return AnyMessage(type_url=prefix + message.DESCRIPTOR.full_name, value=message.SerializeToString())


def test_numbers_are_added_and_lists_of_counters_too() -> None:
    one = v1.Metrics(
        pids=v1.PidsStat(current=2, limit=(1 << 64) - 1),
        cpu=v1.CPUStat(usage=v1.CPUUsage(total=10, per_cpu=[4, 6])),
        hugetlb=[v1.HugetlbStat(usage=1, pagesize="2MB")],
    )
    other = v1.Metrics(pids=v1.PidsStat(current=3, limit=7), cpu=v1.CPUStat(usage=v1.CPUUsage(total=5, per_cpu=[5])))

    total = v1.Metrics.FromString(added_up([packed(one), packed(other, "type.googleapis.com/"), packed(other)]).value)

    assert (total.pids.current, total.pids.limit) == (8, (1 << 64) - 1)
    assert (total.cpu.usage.total, list(total.cpu.usage.per_cpu)) == (20, [14, 6])
    assert [entry.pagesize for entry in total.hugetlb] == ["2MB"]


def test_of_version_2() -> None:
    one = v2.Metrics(memory=v2.MemoryStat(usage=100), pids=v2.PidsStat(current=1))
    only = added_up([packed(one, "x/")])

    assert only.type_url == "io.containerd.cgroups.v2.Metrics"
    assert v2.Metrics.FromString(only.value) == one
    assert v2.Metrics.FromString(added_up([packed(one)] * 3).value).memory.usage == 300


def test_what_is_no_metrics_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        added_up([AnyMessage(type_url="x.Y")])
