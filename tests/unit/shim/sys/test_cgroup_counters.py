"""A cgroup's counters, as they are read and as messages."""

from pathlib import Path

from pyctr_sys import cgroup_counters
from pyctr_wire import cgroup_metrics
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2


def first(directory: Path, *controllers: str) -> v1.Metrics:
    counters = cgroup_counters.version_1(lambda controller: str(directory) if controller in controllers else "")
    url, data = cgroup_metrics.of_version_1(counters)
    assert url == "io.containerd.cgroups.v1.Metrics"
    return v1.Metrics.FromString(data)


def second(directory: Path) -> v2.Metrics:
    url, data = cgroup_metrics.of_version_2(cgroup_counters.version_2(str(directory)))
    assert url == "io.containerd.cgroups.v2.Metrics"
    return v2.Metrics.FromString(data)


def test_who_has_read_and_written_nothing_has_counters_of_that_nevertheless(tmp_path: Path) -> None:
    """Clients look into the message without asking whether it is there; nerdctl stats dies of it."""
    (tmp_path / "blkio.throttle.io_service_bytes_recursive").write_text("Total 0\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 5\n")

    assert first(tmp_path, "blkio").HasField("blkio")
    metrics = second(tmp_path)
    assert metrics.HasField("io")
    assert metrics.cpu.usage_usec == 5
    assert not metrics.cpu.HasField("psi")


def test_bytes_read_and_written_are_told_by_device(tmp_path: Path) -> None:
    (tmp_path / "blkio.throttle.io_service_bytes_recursive").write_text("7:0 Read 4096\n7:0 Write 0\nTotal 4096\n")
    (tmp_path / "io.stat").write_text("7:0 rbytes=4096 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n(unknown) rbytes=1\n")

    entries = first(tmp_path, "blkio").blkio.io_service_bytes_recursive
    assert [(one.major, one.minor, one.op, one.value) for one in entries] == [(7, 0, "Read", 4096), (7, 0, "Write", 0)]
    [entry] = second(tmp_path).io.usage
    assert (entry.major, entry.minor, entry.rbytes, entry.wbytes) == (7, 0, 4096, 1)


def test_version_1(tmp_path: Path) -> None:
    for name, text in {
        "pids.current": "3\n", "pids.max": "max\n",
        "cpuacct.usage": "700\n", "cpuacct.stat": "user 2\nsystem 1\n", "cpuacct.usage_percpu": "300 400 \n",
        "cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 88\n",
        "memory.stat": "cache 10\npgpgin 4\nswap 5\ntotal_pgmajfault 6\nhierarchical_memsw_limit 7\nsomething_new 1\n",
        "memory.usage_in_bytes": "100\n", "memory.limit_in_bytes": "200\n", "memory.max_usage_in_bytes": "150\n",
        "memory.failcnt": "1\n", "memory.memsw.usage_in_bytes": "105\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
        "hugetlb.2MB.usage_in_bytes": "4\n", "hugetlb.2MB.rsvd.usage_in_bytes": "5\n", "hugetlb.2MB.failcnt": "6\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)

    metrics = first(tmp_path, "pids", "cpu", "cpuacct", "memory", "hugetlb")

    assert (metrics.pids.current, metrics.pids.limit) == (3, 0)
    assert (metrics.cpu.usage.total, list(metrics.cpu.usage.per_cpu)) == (700, [300, 400])
    assert metrics.cpu.usage.user == 2 * metrics.cpu.usage.kernel > 0
    assert (metrics.cpu.throttling.periods, metrics.cpu.throttling.throttled_time) == (9, 88)
    memory = metrics.memory
    assert (memory.cache, memory.pg_pg_in, memory.total_pg_maj_fault, memory.hierarchical_swap_limit) == (10, 4, 6, 7)
    assert (memory.usage.usage, memory.usage.limit, memory.usage.max, memory.usage.failcnt) == (100, 200, 150, 1)
    assert (memory.swap.usage, memory.swap.limit) == (105, 0)
    assert (metrics.memory_oom_control.under_oom, metrics.memory_oom_control.oom_kill) == (1, 2)
    assert [(one.pagesize, one.usage, one.failcnt) for one in metrics.hugetlb] == [("2MB", 4, 6)]
    assert not metrics.HasField("blkio")


def test_version_2(tmp_path: Path) -> None:
    for name, text in {
        "pids.current": "3\n", "pids.max": "40\n",
        "cpu.stat": "usage_usec 700\nnr_throttled 2\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 total=3\n",
        "memory.stat": "anon 10\nfile 20\npgfault 4\nkernel 1\n",
        "memory.current": "100\n", "memory.max": "max\n", "memory.peak": "150\n", "memory.swap.current": "5\n",
        "memory.events": "low 0\noom 1\noom_kill 2\n",
        "hugetlb.2MB.current": "4\n", "hugetlb.2MB.max": "max\n", "hugetlb.2MB.events": "max 6\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)

    metrics = second(tmp_path)

    assert (metrics.pids.current, metrics.pids.limit) == (3, 40)
    assert (metrics.cpu.usage_usec, metrics.cpu.nr_throttled) == (700, 2)
    assert (metrics.cpu.psi.some.avg10, metrics.cpu.psi.some.total, metrics.cpu.psi.full.total) == (1.5, 12, 3)
    memory = metrics.memory
    assert (memory.anon, memory.file, memory.pgfault, memory.usage, memory.max_usage) == (10, 20, 4, 100, 150)
    assert (memory.usage_limit, memory.swap_usage) == ((1 << 64) - 1, 5)
    assert (metrics.memory_events.oom, metrics.memory_events.oom_kill) == (1, 2)
    assert [(one.pagesize, one.current, one.failcnt) for one in metrics.hugetlb] == [("2MB", 4, 6)]


def test_a_cgroup_that_is_gone_counts_nothing(tmp_path: Path) -> None:
    assert second(tmp_path / "gone").pids.current == 0
    assert first(tmp_path / "gone", "pids", "memory", "cpuacct", "hugetlb").memory.usage.usage == 0
