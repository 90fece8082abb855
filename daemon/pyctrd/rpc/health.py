"""grpc.health.v1: are we there? Whoever gets an answer knows."""

import asyncio
from collections.abc import Callable
from typing import ClassVar

from pyctr_wire.errors import NotFound
from pyctr_wire.health.v1 import health_pb2
from pyctrd.rpc.headers import Context

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class Health:
    """A service is well as long as it is served."""

    SERVICE: ClassVar = health_pb2.DESCRIPTOR.services_by_name["Health"]

    def __init__(self, services: Callable[[], set[str]]) -> None:
        """Know the services by their full names."""
        self._services = services

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return SERVING for the daemon ("") and for every service that there is; raise NotFound for others."""
        if self._serves(request.service):
            return _SERVING
        raise NotFound(f'service "{request.service}"')

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send the state, which does not change until the connection ends."""
        await context.write(_SERVING if self._serves(request.service) else _SERVICE_UNKNOWN)
        await asyncio.Event().wait()

    def _serves(self, service: str) -> bool:
        return not service or service in self._services()
