"""A server on loopback that answers as it is told to: a registry, or what only pretends to be one."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; `cut` drops the connection after so many bytes of the body, `endless` repeats it for ever."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


Script = Answer | Callable[[Seen], Answer]


class ScriptedRegistry:
    """Answers by method and path: each script once, in order, and the last of them for ever. Unknown paths: 404."""

    def __init__(self) -> None:
        """Know nothing yet; `host` is set once it runs."""
        self.host = ""
        self.scheme = "http"
        self.seen: list[Seen] = []
        self._scripts: dict[tuple[str, str], list[Script]] = {}

    @property
    def url(self) -> str:
        """The server's base URL."""
        return f"{self.scheme}://{self.host}"

    def on(self, method: str, path: str, *scripts: Script) -> None:
        """Answer requests for `path` so."""
        self._scripts[method, path] = list(scripts)

    def requests(self, path: str, method: str = "") -> list[Seen]:
        """Return the requests that arrived for `path`."""
        return [seen for seen in self.seen if seen.path == path and method in ("", seen.method)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request as scripted."""
        seen = Seen(request.method, request.path, request.query, request.headers, await request.read())
        self.seen.append(seen)
        scripts = self._scripts.get((request.method, request.path))
        if not scripts:
            return web.Response(status=404)
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        answer = script if isinstance(script, Answer) else script(seen)
        if answer.cut is None and not answer.endless:
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if not answer.endless:
            response.content_length = len(answer.body)
        await response.prepare(request)
        try:
            while answer.endless:
                await response.write(answer.body)
            await response.write(answer.body[: answer.cut])
        except ConnectionError:
            return response
        assert request.transport is not None
        request.transport.close()
        return response


@asynccontextmanager
async def scripted_registry(context: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedRegistry]:
    """Yield a running server; with `context`, it speaks TLS."""
    registry = ScriptedRegistry()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{tail:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        registry.scheme = "https" if context else "http"
        registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
        yield registry
    finally:
        await runner.cleanup()
