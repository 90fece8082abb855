"""A span for each call, where OpenTelemetry is installed (the extra `otel`) and an exporter is named.

What the environment says is read by OpenTelemetry's SDK: OTEL_EXPORTER_OTLP_ENDPOINT and what belongs to it,
OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_…, OTEL_PROPAGATORS, OTEL_SDK_DISABLED.
Without an exporter nothing of it is loaded. Source: OpenTelemetry's "Environment Variable Specification", semantic
conventions for RPC.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Final

from pyctrd.log import Logger
from pyctrd.server.outcomes import Context, outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# By entry points of OpenTelemetry's packages.
_OTLP: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_LAST_EXPORT: Final = 2.0  # seconds

_REMEDY: Final = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-grpc"

_log = Logger("pyctrd.tracing")


def start(environment: Mapping[str, str]) -> "Spans | None":
    """Return what makes spans, None if the environment names no exporter or it is not installed, which is logged."""
    exporter = _exporter_name(environment)
    if not exporter:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        (found,) = entry_points(group="opentelemetry_traces_exporter", name=exporter)
        processor = BatchSpanProcessor(found.load()())
    except (ImportError, ValueError) as error:
        _log.warning("tracing.off", exporter=exporter, error=str(error), remedy=_REMEDY)
        return None
    ours = {SERVICE_VERSION: version("pyctr")}
    if not environment.get("OTEL_SERVICE_NAME"):
        ours[SERVICE_NAME] = "pyctrd"
    # We end it ourselves, while what it needs is still there.
    provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return Spans(provider)


def _exporter_name(environment: Mapping[str, str]) -> str:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    has_endpoint = any(environment.get(name) for name in _ENDPOINTS)
    chosen = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if has_endpoint else "none")
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), "grpc")
    return {"none": "", "otlp": _OTLP.get(protocol, protocol)}.get(chosen, chosen)


class Spans:
    """Makes a span of each call; thread-safe."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Hand spans to `provider`, which is ours from now on."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, StatusCode

        self._provider = provider
        self._tracer = provider.get_tracer("pyctrd", version("pyctr"))
        self._extract = extract
        self._server = SpanKind.SERVER
        self._error = StatusCode.ERROR

    @contextmanager
    def observe(self, method: str, context: Context) -> Iterator[None]:
        """Make a span that lasts as long as the context does, below the caller's if it sent one; errors pass."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        _, service, name = method.split("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        if namespace := metadata.get("containerd-namespace"):
            attributes["containerd.namespace"] = namespace
        span = self._tracer.start_span(
            f"{service}/{name}", context=self._extract(metadata), kind=self._server, attributes=attributes
        )
        ended: BaseException | None = None
        try:
            yield
        except BaseException as error:
            ended = error
            span.set_status(self._error, context.details() or type(error).__name__)
            raise
        finally:
            span.set_attribute("rpc.grpc.status_code", int(outcome(ended, context)))
            span.end()

    def close(self) -> None:
        """Export what has not been, and end; whoever takes over waits for us, so a collector that is gone is not."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_EXPORT)
