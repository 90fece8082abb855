"""The streaming server: gives out URLs for exec, attach and port-forward, and serves each once.

It listens from the first URL on; what serves is loaded then.
"""

import asyncio
import importlib
from typing import TYPE_CHECKING, Final

from pyctr_wire.errors import FailedPrecondition, Unavailable
from pyctrd.config.tables import Streaming
from pyctrd.cri.streaming.port_forward import Ports
from pyctrd.cri.streaming.remote_command import Sessions
from pyctrd.cri.streaming.requests import Attach, Exec, Request, check
from pyctrd.cri.streaming.tokens import Tokens
from pyctrd.log import Logger
from pyctrd.offload import Offload

if TYPE_CHECKING:
    import ssl

    from pyctrd.cri.streaming.listener import Listener

# Addresses to listen on that are none to connect to.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_LOOPBACK: Final = ("127.", "::1", "localhost")

_log = Logger("pyctrd.cri.streaming")


class StreamingServer:
    """URLs, and what is behind them."""

    def __init__(self, settings: Streaming, sessions: Sessions, ports: Ports, offload: Offload) -> None:
        """Serve `sessions` and `ports`; what is read and loaded first is so in a thread of `offload`."""
        self._settings = settings
        self._sessions = sessions
        self._ports = ports
        self._offload = offload
        self._tokens: Tokens[Request] = Tokens()
        self._listener: Listener | None = None
        self._base_url = ""
        self._starting = asyncio.Lock()

    async def url(self, request: Request) -> str:
        """Return where `request` is served, once and within a minute.

        Raises InvalidArgument for a request that makes no sense, ResourceExhausted if a thousand wait to be fetched,
        Unavailable and FailedPrecondition if the configured address or certificate cannot be used.
        """
        check(request)
        async with self._starting:
            if self._listener is None:
                await self._start()
        kind = "exec" if isinstance(request, Exec) else "attach" if isinstance(request, Attach) else "portforward"
        return f"{self._base_url}/{kind}/{self._tokens.issue(request)}"

    async def run(self) -> None:
        """Serve until this is cancelled, then cut off the sessions that there are."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.close()

    async def close(self, seconds: float = 0.0) -> None:
        """Accept no more connections, wait up to `seconds` for the sessions that there are, then cut them off."""
        async with self._starting:
            if self._listener is not None:
                await self._listener.close(seconds)

    async def _start(self) -> None:
        settings = self._settings
        module = await self._offload.run(importlib.import_module, "pyctrd.cri.streaming.listener")
        context = await self._offload.run(_context, settings)
        listener: Listener = module.Listener(
            self._tokens,
            self._sessions,
            self._ports,
            idle_timeout=settings.idle_timeout,
            creation_timeout=settings.creation_timeout,
        )
        try:
            port = await listener.start(settings.address, settings.port, context)
        except OSError as error:
            where = f"{settings.address}:{settings.port}"
            raise Unavailable(f"cri.streaming cannot listen on {where}: {error.strerror or error}") from error
        host = _WILDCARDS.get(settings.address, settings.address)
        self._base_url = f"http{'s' if context else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        self._listener = listener
        if context is None and not settings.address.startswith(_LOOPBACK):
            _log.warning("streaming.not_encrypted", address=settings.address, remedy="set cri.streaming.certificate")
        _log.info("streaming.listening", url=self._base_url)


def _context(settings: Streaming) -> "ssl.SSLContext | None":
    """Return what the configured certificate makes, None without one."""
    if not settings.certificate:
        return None
    import ssl  # not loaded where it is not needed

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.key, "")  # else OpenSSL asks the terminal
    except OSError as error:  # SSLError is one
        files = f"{settings.certificate} and {settings.key}"
        raise FailedPrecondition(f"cri.streaming cannot use {files}: {error}") from error
    return context
