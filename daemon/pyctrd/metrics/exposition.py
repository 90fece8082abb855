"""Everything as Prometheus's text.

Source: Prometheus's documentation, "Exposition formats" (0.0.4); names of calls: go-grpc-prometheus, of collections:
what containerd 2.3 serves.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from pyctr_wire.errors import Code
from pyctrd.metrics.cgroup_metrics import samples

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_OF_CONTAINER: Final = ("container_id", "namespace", "runtime")


class Subject(NamedTuple):
    """A container with a running task, and its shim's statistics of it."""

    id: str
    namespace: str
    runtime: str
    statistics: AnyMessage


class State(NamedTuple):
    """What the daemon tells of itself, counted since its start; times in seconds."""

    version: str
    tasks: Mapping[tuple[str, str], int]  # by namespace and status
    started: Counter[str]  # calls, by /SERVICE/METHOD
    handled: Counter[tuple[str, Code]]
    kinds: Mapping[str, str]  # of calls: unary, client_stream, server_stream, bidi_stream
    collections: Mapping[str, int]  # of garbage, by success and fail
    collecting: float
    running: Counter[str]  # operations: create, pull …
    ended: Counter[tuple[str, str]]  # and by ok and failed


def render(subjects: Iterable[Subject], state: State) -> bytes:
    """Return the text."""
    registry = CollectorRegistry()
    registry.register(_Families([*_containers(subjects), *_daemon(state)]))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _containers(subjects: Iterable[Subject]) -> Iterable[Metric]:
    """Return the families of all containers: each family's samples stand together."""
    families: dict[str, Metric] = {}
    for subject in subjects:
        labels = dict(zip(_OF_CONTAINER, (subject.id, subject.namespace, subject.runtime), strict=True))
        for sample in samples(subject.statistics):
            family = families.get(sample.name)
            if family is None:
                words = sample.name.removeprefix("container_").replace("_", " ")
                family = families[sample.name] = Metric(sample.name, f"The container's {words}", "gauge")
            family.add_sample(sample.name, {**labels, **sample.labels}, sample.value)
    return families.values()


def _daemon(state: State) -> Iterator[Metric]:
    build = GaugeMetricFamily("pyctrd_build_info", "Which daemon this is", labels=["version"])
    build.add_metric([state.version], 1)
    yield build
    tasks = GaugeMetricFamily("pyctrd_tasks", "Tasks by their state", labels=["namespace", "status"])
    for key, number in state.tasks.items():
        tasks.add_metric(key, number)
    yield tasks
    yield from _calls(state)
    collections = CounterMetricFamily(
        "containerd_gc_collections", "Collections of garbage, by how they ended", labels=["status"]
    )
    for status, number in state.collections.items():
        collections.add_metric([status], number)
    yield collections
    yield SummaryMetricFamily(
        "containerd_gc_gc_seconds",
        "Time that collections of garbage took",
        count_value=sum(state.collections.values()),
        sum_value=state.collecting,
    )
    running = GaugeMetricFamily("pyctrd_operations_running", "Operations under way", labels=["operation"])
    for name, number in state.running.items():
        running.add_metric([name], number)
    yield running
    ended = CounterMetricFamily(
        "pyctrd_operations", "Operations that ended: creations, pulls and others", labels=["operation", "status"]
    )
    for pair, number in state.ended.items():
        ended.add_metric(pair, number)
    yield ended


def _calls(state: State) -> Iterator[Metric]:
    keys = ["grpc_type", "grpc_service", "grpc_method"]
    started = CounterMetricFamily("grpc_server_started", "Calls that were begun", labels=keys)
    for method, number in state.started.items():
        started.add_metric(_names(method, state.kinds), number)
    yield started
    handled = CounterMetricFamily("grpc_server_handled", "Calls that ended, by status", labels=[*keys, "grpc_code"])
    for (method, code), number in state.handled.items():
        handled.add_metric([*_names(method, state.kinds), _go_name(code)], number)
    yield handled


def _names(method: str, kinds: Mapping[str, str]) -> list[str]:
    _, service, name = method.split("/")
    return [kinds[method], service, name]


def _go_name(code: Code) -> str:
    """Return a code as Go's clients call it: OK, NotFound."""
    return code.name if code is Code.OK else code.name.replace("_", " ").title().replace(" ", "")
