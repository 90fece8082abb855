"""Requests to a registry's endpoints: authorization, retries, redirects, deadlines.

Imported only when a registry is first used: aiohttp costs a daemon that never pulls 20 MiB.
Source: OCI distribution-spec v1.1; RFC 9110.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.client_exceptions import ClientConnectorCertificateError
from yarl import URL

from pyctr_wire.errors import ApiError, FailedPrecondition, ResourceExhausted, Unavailable
from pyctrd.core.values import dataclass
from pyctrd.registry.auth import Answer, Authorizer
from pyctrd.registry.credentials import CredentialSource
from pyctrd.registry.hosts import Endpoint, Tls, address, is_loopback

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS: Final = 10
_MAX_ERROR_BODY: Final = 8 << 10
_MAX_TOKEN_BODY: Final = 1 << 20
# How often a request is sent at most, and how often it may be answered with 401.
MAX_ATTEMPTS: Final = 5
_MAX_CHALLENGES: Final = 2
# Seconds: the first pause, the longest one that we choose, the longest that a server may ask for.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_LONGEST_RETRY_AFTER: Final = 120.0
# Seconds without a byte after which a connection is given up.
_SILENCE: Final = 60.0
# The same once a blob has been sent: the registry puts it away before it answers.
_COMMIT: Final = 600.0
# Bytes per second that a transfer must keep up on average, after its first minute: less is a way to hold us up.
_LEAST_RATE: Final = 1024
# Bytes that may wait, read and not yet taken.
_BUFFER: Final = 1 << 20

Body = Callable[[], AsyncIterator[bytes]]
Run = Callable[..., Awaitable[Any]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request: `url` in full; `body` makes the bytes anew for each of `attempts` and `size` counts them."""

    method: str
    url: str
    scopes: frozenset[str]
    headers: Mapping[str, str]
    body: Body | bytes | None = None
    size: int = 0
    attempts: int = MAX_ATTEMPTS


class Transport:
    """The connections of one session with a registry and its mirrors. Close it when done."""

    def __init__(self, credentials: CredentialSource, user_agent: str, run: Run, sleep: Sleep = asyncio.sleep) -> None:
        """`run` takes blocking work (reading certificates) off the event loop; `sleep` waits between attempts."""
        self._credentials = credentials
        self._user_agent = user_agent
        self._run = run
        self._sleep = sleep
        self._sessions: dict[tuple[Tls, float], aiohttp.ClientSession] = {}
        self._authorizers: dict[str, Authorizer] = {}
        self._heard: set[str] = set()  # the origins that have answered
        self._opening = asyncio.Lock()

    async def prepare(self, endpoints: Iterable[Endpoint]) -> None:
        """Read the certificates of `endpoints`. Raises FailedPrecondition for files that cannot be used.

        Later, it would look like one endpoint's failure, after which the next is asked: the same one without TLS, say.
        """
        for endpoint in endpoints:
            if endpoint.tls != Tls():
                await self._session(endpoint.tls, endpoint.dial_timeout)

    def has_answered(self, endpoint: Endpoint) -> bool:
        """Say whether there has been any answer from an endpoint: a refusal, or a certificate of no use, are some."""
        return origin(endpoint.url) in self._heard

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()

    @asynccontextmanager
    async def request(self, endpoint: Endpoint, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send `call` until it has an answer worth having, and yield that; any status but the retried ones is one.

        Tokens, custom headers and client certificates go to `endpoint` alone, never along a redirect to another
        origin. Raises Unavailable when nobody answers or the server keeps failing, Unauthenticated and
        PermissionDenied when it will not know us, FailedPrecondition for TLS that we were told not to accept.
        """
        response = await self._answered(endpoint, call)
        try:
            yield response
        finally:
            response.close()  # what was not read would have to be; a new connection is cheaper

    async def _answered(self, endpoint: Endpoint, call: Call) -> aiohttp.ClientResponse:
        authorizer = self._authorizer(endpoint)
        challenges = 0
        attempt = 1
        while True:
            authorization = await authorizer.header(call.scopes)
            pause: float | None = None
            try:
                response = await self._follow(endpoint, call, authorization)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: ApiError = _connection_error(call.url, error)
                if isinstance(failure, FailedPrecondition):
                    self._heard.add(origin(endpoint.url))
                    raise failure from error
            else:
                if response.status == 401 and origin(str(response.url)) == origin(endpoint.url):
                    if challenges == _MAX_CHALLENGES:
                        return response
                    challenges += 1
                    headers = response.headers.getall("WWW-Authenticate", [])
                    if not headers:
                        return response
                    response.close()
                    await authorizer.challenged(headers, call.scopes, authorization)
                    continue
                if not _is_transient(response.status):
                    return response
                failure = Unavailable(f"{call.method} {_shown(call.url)} failed with status {response.status}")
                pause = _retry_after(response)
                response.close()
            if attempt >= call.attempts or (pause is not None and pause > _LONGEST_RETRY_AFTER):
                raise failure
            await self._sleep(_back_off(attempt) if pause is None else pause)
            attempt += 1

    async def _follow(self, endpoint: Endpoint, call: Call, authorization: str) -> aiohttp.ClientResponse:
        """Send one request and follow its redirects, up to the final response."""
        home = origin(endpoint.url)
        url, method = call.url, call.method
        for _ in range(_MAX_REDIRECTS):
            at_home = origin(url) == home
            headers = {**call.headers, "User-Agent": self._user_agent, "Accept-Encoding": "identity"}
            pairs = list(headers.items())
            tls = endpoint.tls
            if at_home:
                pairs += [(name, value) for name, values in endpoint.headers.items() for value in values]
                if authorization:
                    pairs.append(("Authorization", authorization))
            else:
                tls = replace(tls, client_pairs=())
            if call.body is not None and not isinstance(call.body, bytes):
                pairs.append(("Content-Length", str(call.size)))
            session = await self._session(tls, endpoint.dial_timeout)
            body = call.body() if callable(call.body) else call.body
            # Each byte of an answer's head begins the silence anew; what takes a body may take its time over it, too.
            async with asyncio.timeout(endpoint.dial_timeout + _SILENCE if body is None else None):
                # As it is: a signed URL must not be spelled another way.
                response = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=pairs,
                    data=body,
                    allow_redirects=False,
                    proxy=_proxy_for(url),
                    timeout=_timeout(endpoint.dial_timeout, _SILENCE if body is None else _COMMIT),
                )
            if at_home:
                self._heard.add(home)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                return response
            response.close()
            url = redirected(url, target)
            if response.status == 303 and method != "HEAD":
                method, call = "GET", replace(call, body=None)
        raise Unavailable(f"{call.url} was redirected more than {_MAX_REDIRECTS} times")

    def _authorizer(self, endpoint: Endpoint) -> Authorizer:
        key = origin(endpoint.url)
        if key not in self._authorizers:

            async def exchange(url: str, *, authorization: str = "", form: Mapping[str, str] | None = None) -> Answer:
                return await self._ask_token_server(endpoint, url, authorization, form)

            self._authorizers[key] = Authorizer(endpoint.url, endpoint.host, self._credentials, exchange)
        return self._authorizers[key]

    async def _ask_token_server(
        self, endpoint: Endpoint, url: str, authorization: str, form: Mapping[str, str] | None
    ) -> Answer:
        tls = endpoint.tls if origin(url) == origin(endpoint.url) else replace(endpoint.tls, client_pairs=())
        session = await self._session(tls, endpoint.dial_timeout)
        headers = {"User-Agent": self._user_agent, "Accept": "application/json", "Accept-Encoding": "identity"}
        if authorization:
            headers["Authorization"] = authorization
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                async with (
                    asyncio.timeout(_SILENCE),
                    session.request(
                        "GET" if form is None else "POST",
                        url,
                        headers=headers,
                        data=form,
                        allow_redirects=False,
                        proxy=_proxy_for(url),
                    ) as response,
                ):
                    if not _is_transient(response.status) or attempt == MAX_ATTEMPTS:
                        return Answer(response.status, await read_capped(response, _MAX_TOKEN_BODY))
                    pause = _retry_after(response)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if attempt == MAX_ATTEMPTS:
                    raise _connection_error(url, error) from error
                pause = None
            wait = _back_off(attempt) if pause is None else min(pause, _LONGEST_RETRY_AFTER)
            await self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _session(self, tls: Tls, dial_timeout: float) -> aiohttp.ClientSession:
        key = (tls, dial_timeout)
        async with self._opening:
            if key not in self._sessions:
                # True is aiohttp's own context, which is there already and trusts what the system trusts.
                context = True if tls == Tls() else await self._run(tls_context, tls)
                self._sessions[key] = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=context, limit_per_host=16),
                    timeout=_timeout(dial_timeout, _SILENCE),
                    auto_decompress=False,
                    read_bufsize=_BUFFER,
                    cookie_jar=aiohttp.DummyCookieJar(),
                )
        return self._sessions[key]


def _timeout(dial_timeout: float, silence: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=dial_timeout, sock_read=silence)


def origin(url: str) -> str:
    """Return scheme, host and port: what a credential is bound to."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for `url`; not aiohttp's way, which would send ~/.netrc too."""
    parts = urlsplit(url)
    proxies = getproxies()
    if is_loopback(parts.netloc) or proxy_bypass(parts.netloc, proxies):
        return None
    return proxies.get(parts.scheme)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return the context for `tls`. Blocks. Raises FailedPrecondition for files that cannot be used."""
    context = ssl.create_default_context()
    try:
        for path in tls.authorities:
            context.load_verify_locations(path)
        for certificate, key in tls.client_pairs:
            context.load_cert_chain(certificate, key, "")  # for a password, OpenSSL would ask the terminal
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(str(path) for path in (*tls.authorities, *(pair[0] for pair in tls.client_pairs)))
        raise FailedPrecondition(f"cannot use the certificates {names}: {error}") from error
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def read_capped(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body, or raise ResourceExhausted as soon as it is longer than `limit` bytes.

    Raises Unavailable if it breaks off or comes too slowly.
    """
    data = bytearray()
    try:
        async for part in paced(response):
            data += part
            if len(data) > limit:
                raise ResourceExhausted(f"{response.url.with_query(None)} sends more than {limit} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _connection_error(str(response.url), error) from error
    return bytes(data)


async def paced(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises TimeoutError if it comes too slowly, ClientError if it breaks off."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + _SILENCE
    async for part in response.content.iter_any():
        deadline += len(part) / _LEAST_RATE
        if clock() > deadline:
            raise TimeoutError(f"less than {_LEAST_RATE} bytes a second")
        yield part


async def server_message(response: aiohttp.ClientResponse, endpoint: Endpoint) -> str:
    """Return the start of an error's body, for a message to people; "" if it is not the registry's own."""
    if origin(str(response.url)) != origin(endpoint.url):
        return ""
    try:
        async with asyncio.timeout(_SILENCE):
            text = (await response.content.read(_MAX_ERROR_BODY)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
    return "".join(char if char.isprintable() else " " for char in text)[:500].strip()


def redirected(url: str, target: str) -> str:
    """Return where a redirect leads; never from https to http."""
    try:
        found = urljoin(url, target)
        parts = address(found)
    except ValueError:
        raise Unavailable(f"{_shown(url)} redirects to {_shown(target)[:200]!r}, which is no place to go") from None
    if parts.scheme == "http" and url.startswith("https:"):
        raise FailedPrecondition(f"{_shown(url)} redirects to plain http at {parts.netloc}: refused")
    return found


def _is_transient(status: int) -> bool:
    return status in (408, 429) or (500 <= status < 600 and status != 501)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Return the seconds for which the server asks to be left alone; None if it does not say."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _back_off(attempt: int) -> float:
    """Return the pause after the failed `attempt`: doubling, with jitter so that clients do not return together."""
    longest: float = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def _connection_error(url: str, error: BaseException) -> ApiError:
    if isinstance(error, ClientConnectorCertificateError):
        reason = error.certificate_error
        return FailedPrecondition(f"{_shown(url)}: the server's certificate cannot be verified: {reason}")
    return Unavailable(f"{_shown(url)}: {error or type(error).__name__}")


def _shown(url: str) -> str:
    """Return the URL for a message: its query may hold what is nobody's business."""
    return url.partition("?")[0]
