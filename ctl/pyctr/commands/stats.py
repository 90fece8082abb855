"""`stats`: what containers use, from their cgroups."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from pyctr import arguments, completing, exit_codes, lookup, output, tasks
from pyctr.connection import CONTAINERS, TASKS, Connection
from pyctr.errors import not_running
from pyctr.session import Session, pass_session
from pyctr_wire import labels
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.metrics_pb2 import Metric

_COLUMNS: Final = {
    "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT", "MemPerc": "MEM %",
    "PIDs": "PIDS",
}  # fmt: skip
_INTERVAL: Final = 1.0  # seconds
_SHORT: Final = 12
_HOME_AND_CLEAR: Final = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a container."""

    at_ns: int
    cpu_ns: int
    memory: int  # bytes that cannot be dropped at once
    memory_limit: int  # bytes
    pids: int


def read(metric: Metric, machine_memory: int) -> Sample:
    """Return what a metric says, whichever cgroup version it comes from."""
    at_ns = metric.timestamp.ToNanoseconds()
    if metric.data.type_url.endswith("cgroups.v2.Metrics"):
        two = v2.Metrics.FromString(metric.data.value)
        usage = two.memory.usage - min(two.memory.usage, two.memory.inactive_file)
        limit = min(two.memory.usage_limit or machine_memory, machine_memory)
        return Sample(at_ns, two.cpu.usage_usec * 1000, usage, limit, two.pids.current)
    one = v1.Metrics.FromString(metric.data.value)
    used = one.memory.usage.usage
    usage = used - min(used, one.memory.total_inactive_file)
    limit = min(one.memory.usage.limit or machine_memory, machine_memory)
    return Sample(at_ns, one.cpu.usage.total, usage, limit, one.pids.current)


def row(container_id: str, name: str, before: Sample | None, now: Sample) -> dict[str, Any]:
    """Return a line; the CPU's share is of one CPU, over the time since `before`."""
    share = 0.0
    if before is not None and now.at_ns > before.at_ns:
        share = 100 * (now.cpu_ns - before.cpu_ns) / (now.at_ns - before.at_ns)
    return {
        "ID": container_id[:_SHORT],
        "Name": name,
        "CPUPerc": f"{share:.2f}%",
        "MemUsage": f"{output.memory(now.memory)} / {output.memory(now.memory_limit)}",
        "MemPerc": f"{100 * now.memory / now.memory_limit if now.memory_limit else 0:.2f}%",
        "PIDs": now.pids,
    }


def _machine_memory() -> int:
    """Return this machine's memory in bytes. Source: proc(5)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(file.readline().split()[1]) * 1024


def _look(connection: Connection, wanted: frozenset[str], machine_memory: int) -> dict[str, Sample]:
    request = tasks_pb2.MetricsRequest(filters=[f"id=={container_id}" for container_id in sorted(wanted)])
    metrics = connection.call(TASKS, "Metrics", request, tasks_pb2.MetricsResponse).metrics
    return {metric.id: read(metric, machine_memory) for metric in metrics}


def _names(connection: Connection) -> Mapping[str, str]:
    containers = connection.call(
        CONTAINERS, "List", containers_pb2.ListContainersRequest(), containers_pb2.ListContainersResponse
    ).containers
    return {container.id: container.labels.get(labels.NAME, "") for container in containers}


@click.command(cls=arguments.DockerLike)
@click.option("--no-stream", is_flag=True, help="Only once.")
@output.format_option
@click.argument("containers", nargs=-1, metavar="[CONTAINER...]", shell_complete=completing.containers)
@pass_session
def stats(session: Session, *, containers: tuple[str, ...], no_stream: bool) -> int:
    """Show what containers use; all that run if none is named."""
    connection = session.connection
    found = {name: lookup.find(connection, name).id for name in containers}
    ended = [name for name, container_id in found.items() if not tasks.runs(connection, container_id)]
    for name in ended:
        not_running(name).show()
    if ended and len(ended) == len(found):
        return exit_codes.FAILURE
    wanted = frozenset(found.values())
    machine_memory = _machine_memory()
    before = _look(connection, wanted, machine_memory)
    while True:
        time.sleep(_INTERVAL)
        now = _look(connection, wanted, machine_memory)
        names = _names(connection)
        rows = [row(one, names.get(one, ""), before.get(one), sample) for one, sample in sorted(now.items())]
        if not no_stream and sys.stdout.isatty() and session.format == "table":
            sys.stdout.write(_HOME_AND_CLEAR)
        output.show_rows(session.format, _COLUMNS, rows)
        if no_stream:
            return exit_codes.FAILURE if ended else 0
        before = now
