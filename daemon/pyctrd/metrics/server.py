"""Prometheus's text over HTTP, at /v1/metrics and /metrics; loaded only where an address is configured for it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from pyctrd.core.addresses import Tcp
from pyctrd.log import Logger
from pyctrd.metrics.exposition import CONTENT_TYPE

_PATHS: Final = ("/v1/metrics", "/metrics")
_PATIENCE: Final = 30.0  # seconds that a connection may be silent

_log = Logger("pyctrd.metrics")


async def serve(address: Tcp, text: Callable[[], Awaitable[bytes]]) -> None:
    """Serve `text` until cancelled. An address that cannot be used is logged: containers are worth more."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.path not in _PATHS:
            raise web.HTTPNotFound(text=f"there is {' and '.join(_PATHS)}\n")
        if request.method not in ("GET", "HEAD"):
            raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
        return web.Response(body=await text(), headers={"Content-Type": CONTENT_TYPE})

    http = web.Server(handle, keepalive_timeout=_PATIENCE, access_log=None)
    try:
        # Two daemons share the port while one takes over from the other.
        server = await asyncio.get_running_loop().create_server(http, address.host, address.port, reuse_port=True)
    except OSError as error:
        _log.error("metrics.not_served", address=str(address), error=error.strerror or str(error))
        return
    _log.info("metrics.listening", url=f"http://{str(address).removeprefix('tcp://')}{_PATHS[0]}")
    try:
        await server.serve_forever()
    finally:
        server.close()
        await http.shutdown()
