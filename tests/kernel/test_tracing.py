"""Spans of calls at a collector, and a daemon that goes on without OpenTelemetry."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.containers.v1 import containers_pb2, containers_pb2_grpc
from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc
from pyctr_wire.containerd.services.version.v1.version_pb2_grpc import VersionStub
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes spans by OTLP over gRPC."""

    def __init__(self) -> None:
        service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self._answer = service.ExportTraceServiceResponse()
        handler = grpc.unary_unary_rpc_method_handler(
            self._take,
            service.ExportTraceServiceRequest.FromString,
            service.ExportTraceServiceResponse.SerializeToString,
        )
        name = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Export": handler})])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _take(self, request: Any, context: grpc.ServicerContext) -> Any:
        for resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return self._answer

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_each_call_is_a_span_below_its_callers(collector: Collector) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    version, get = "containerd.services.version.v1.Version/Version", "containerd.services.containers.v1.Containers/Get"
    subscribe = "containerd.services.events.v1.Events/Subscribe"
    with DaemonProcess(environment=environment) as daemon:
        with daemon.channel() as channel:
            traced = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("containerd-namespace", "blue"))
            VersionStub(channel).Version(Empty(), metadata=traced, timeout=DEADLINE)
            request = containers_pb2.GetContainerRequest(id="nobody")
            with pytest.raises(grpc.RpcError):
                containers_pb2_grpc.ContainersStub(channel).Get(request, metadata=traced[1:], timeout=DEADLINE)
            stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())
            stream.initial_metadata()
            stream.cancel()
        wait_until(lambda: bool(collector.named(version) and collector.named(get)), "the spans arrive")
        wait_until(lambda: bool(collector.named(subscribe)), "a stream's span arrives when it has ended")
        with daemon.channel() as channel:
            VersionStub(channel).Version(Empty(), timeout=DEADLINE)

    (span, last) = collector.named(version)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, PARENT, 2)
    expected = {
        "rpc.system": "grpc",
        "rpc.service": "containerd.services.version.v1.Version",
        "rpc.method": "Version",
        "rpc.grpc.status_code": 0,
        "containerd.namespace": "blue",
    }
    assert attributes(span) == expected
    assert span.status.code == 0
    assert last.trace_id != span.trace_id, "what was not exported when the daemon stopped comes too"
    (failed,) = collector.named(get)
    assert failed.status.code == 2
    assert 'container "nobody"' in failed.status.message
    assert attributes(failed)["rpc.grpc.status_code"] == 5
    assert collector.resources[0]["service.name"] == "pyctrd"


def test_a_collector_that_is_gone_harms_nobody() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_SERVICE_NAME": "another"}
    with DaemonProcess(environment=environment) as daemon, daemon.channel() as channel:
        assert VersionStub(channel).Version(Empty(), timeout=DEADLINE).version


def test_without_the_package_the_daemon_says_so_and_serves(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('it is not installed')\n")
    environment = {"OTEL_TRACES_EXPORTER": "otlp", "PYTHONPATH": str(tmp_path)}
    with DaemonProcess(environment=environment) as daemon:
        with daemon.channel() as channel:
            assert VersionStub(channel).Version(Empty(), timeout=DEADLINE).version
        assert "tracing.off" in daemon.log_text()
        assert "pip install opentelemetry-sdk" in daemon.log_text()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_nothing_is_loaded_where_nobody_listens(environment: dict[str, str]) -> None:
    program = (
        f"import sys; from pyctrd import tracing; assert tracing.start({environment}) is None;"
        " assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=DEADLINE)
