"""A cgroup's counters as messages."""

from pathlib import Path

from pyctr_shim.oci.cgroups.stats import v1_metrics, v2_metrics
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2


def test_who_has_read_and_written_nothing_has_counters_of_that_nevertheless(tmp_path: Path) -> None:
    """Clients look into the message without asking whether it is there; nerdctl stats dies of it."""
    (tmp_path / "blkio.throttle.io_service_bytes_recursive").write_text("Total 0\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 5\n")

    url, first = v1_metrics(lambda controller: str(tmp_path) if controller == "blkio" else "")
    assert url == "io.containerd.cgroups.v1.Metrics"
    assert v1.Metrics.FromString(first).HasField("blkio")
    url, second = v2_metrics(str(tmp_path))
    assert url == "io.containerd.cgroups.v2.Metrics"
    metrics = v2.Metrics.FromString(second)
    assert metrics.HasField("io")
    assert metrics.cpu.usage_usec == 5


def test_bytes_read_and_written_are_told_by_device(tmp_path: Path) -> None:
    (tmp_path / "blkio.throttle.io_service_bytes_recursive").write_text("7:0 Read 4096\n7:0 Write 0\nTotal 4096\n")
    (tmp_path / "io.stat").write_text("7:0 rbytes=4096 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n")

    first = v1.Metrics.FromString(v1_metrics(lambda controller: str(tmp_path) if controller == "blkio" else "")[1])
    entries = [(one.major, one.minor, one.op, one.value) for one in first.blkio.io_service_bytes_recursive]
    assert entries == [(7, 0, "Read", 4096), (7, 0, "Write", 0)]
    [entry] = v2.Metrics.FromString(v2_metrics(str(tmp_path))[1]).io.usage
    assert (entry.major, entry.minor, entry.rbytes, entry.wbytes) == (7, 0, 4096, 1)
