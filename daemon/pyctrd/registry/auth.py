"""Authorization with one registry: challenges, tokens and passwords.

Nothing is sent before the registry has asked. A password goes to the registry itself (Basic) or to the realm that its
challenge names (Bearer), the realm never over a weaker scheme than the registry's own.
Source: distribution docs/spec/auth/{token,oauth}.md, RFC 9110 section 11.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlencode, urlunsplit

from pyctr_wire.errors import ApiError, PermissionDenied, Unauthenticated, Unavailable
from pyctrd.core.values import dataclass
from pyctrd.registry.credentials import Credentials, CredentialSource
from pyctrd.registry.hosts import address

CLIENT_ID: Final = "pyctr"
# Bytes of WWW-Authenticate that are read, and of a token.
_MAX_CHALLENGE: Final = 16 << 10
_MAX_TOKEN: Final = 64 << 10
# Seconds before its expiry at which a token is renewed: a request takes time to arrive.
_MARGIN: Final = 5.0

_TOKEN68: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME: Final = re.compile(rf"\s*({_TOKEN68})(?:[ \t]+|(?=,)|$)")
_PARAMETER: Final = re.compile(rf'\s*({_TOKEN68})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))[ \t]*')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server would like to know who asks; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """A token server's answer: status and body, the body cut at its cap."""

    status: int
    body: bytes


class Exchange(Protocol):
    """Asks a token server, without redirects; `form` makes it a POST. Raises Unavailable when it is out of reach."""

    async def __call__(self, url: str, *, authorization: str = "", form: Mapping[str, str] | None = None) -> Answer:
        """Return what the server at `url` answered."""
        ...


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    expires_at: float | None  # on the clock of the Authorizer


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all WWW-Authenticate headers; what cannot be read is left out. Linear in their size."""
    found: list[Challenge] = []
    for header in headers:
        text, position = header[:_MAX_CHALLENGE], 0
        while position < len(text):
            if text[position] in ", \t":
                position += 1
                continue
            parameter = _PARAMETER.match(text, position) if found else None
            if parameter is not None:
                name, quoted, bare = parameter.groups()
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
                found[-1] = Challenge(found[-1].scheme, {**found[-1].parameters, name.lower(): value})
                position = parameter.end()
            elif scheme := _SCHEME.match(text, position):
                found.append(Challenge(scheme[1].lower(), {}))
                position = scheme.end()
            else:
                break
    return found


class Authorizer:
    """What to send as Authorization to one registry host. Safe for many concurrent requests: one fetches, all use."""

    def __init__(
        self,
        url: str,
        host: str,
        credentials: CredentialSource,
        exchange: Exchange,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` is the registry's endpoint; `host` names whose `credentials` may be sent."""
        self._url = url
        self._host = host
        self._credentials = credentials
        self._exchange = exchange
        self._clock = clock
        self._asked: tuple[str, ...] = ()
        self._fixed = ""
        self._realm: Challenge | None = None
        self._tokens: dict[frozenset[str], _Token] = {}
        self._lock = asyncio.Lock()

    async def header(self, scopes: frozenset[str]) -> str:
        """Return the header's value for a request that needs `scopes`; "" until the registry has asked for one."""
        if self._fixed or self._realm is None:
            return self._fixed
        async with self._lock:
            return await self._bearer(self._realm, scopes)

    async def challenged(self, headers: Iterable[str], scopes: frozenset[str], sent: str) -> None:
        """Learn from a 401 that answered a request with the Authorization header `sent`.

        Raises Unauthenticated or PermissionDenied if there is nothing else to try.
        """
        async with self._lock:
            token = self._tokens.get(scopes)
            current = self._fixed or (f"Bearer {token.value}" if token is not None else "")
            if current and sent != current:
                return  # answered by another request while this one was on its way
            if self._fixed:
                raise Unauthenticated(f"{self._host} rejects the credentials that it was given")
            self._tokens.pop(scopes, None)
            # Bytes that are no UTF-8 came as half surrogates, which nobody could be sent.
            self._asked = tuple(header.encode(errors="replace").decode() for header in headers)
            challenges = {challenge.scheme: challenge for challenge in reversed(parse_challenges(self._asked))}
            if bearer := challenges.get("bearer"):
                self._realm = bearer
                await self._bearer(bearer, scopes)
            elif "basic" in challenges:
                self._fixed = _basic(await self._known_credentials())
            else:
                raise Unauthenticated(f"{self._host} asks for an authorization that is neither Bearer nor Basic")

    async def _known_credentials(self) -> Credentials:
        found = await self._credentials(self._host, self._asked)
        if found is None:
            raise Unauthenticated(
                f"{self._host} wants a user name and a password, and none are stored for it: pyctr login {self._host}"
            )
        return found

    async def _bearer(self, realm: Challenge, scopes: frozenset[str]) -> str:
        """Return the Bearer header for `scopes`, with a new token unless one is still good. Called under the lock."""
        token = self._tokens.get(scopes)
        if token is None or (token.expires_at is not None and token.expires_at <= self._clock()):
            credentials = await self._credentials(self._host, self._asked)
            if credentials is not None and credentials.header:
                self._fixed = credentials.header
                return self._fixed
            token = self._tokens[scopes] = await self._fetch(realm, scopes, credentials)
        return f"Bearer {token.value}"

    async def _fetch(self, realm: Challenge, scopes: frozenset[str], credentials: Credentials | None) -> _Token:
        url = realm.parameters.get("realm", "")
        try:
            parts = address(url)
        except ValueError:
            raise Unauthenticated(f"{self._host} names no usable token server: {url[:200]!r}") from None
        if parts.scheme == "http" and not self._url.startswith("http:"):
            raise Unauthenticated(f"{self._host} names a token server without TLS: {url[:200]!r}")
        service = realm.parameters.get("service", "")
        wanted = sorted(scopes | frozenset(realm.parameters.get("scope", "").split()))
        if credentials is not None:
            answer = await self._exchange(url, form=_form(service, wanted, credentials))
            if answer.status == 200:
                return self._token(answer)
            if not credentials.username or answer.status not in (400, 401, 404, 405):
                raise self._refused(answer)
        # Without credentials, and for token servers that know only this older way.
        query = parse_qsl(parts.query) + ([("service", service)] if service else [])
        query += [("scope", scope) for scope in wanted]
        if credentials is not None:
            query.append(("account", credentials.username))
        authorization = _basic(credentials) if credentials is not None else ""
        answer = await self._exchange(urlunsplit(parts._replace(query=urlencode(query))), authorization=authorization)
        if answer.status == 200:
            return self._token(answer)
        raise self._refused(answer)

    def _token(self, answer: Answer) -> _Token:
        try:
            value, lifetime = _parse_token(answer.body)
        except (ArithmeticError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Unauthenticated(f"token server of {self._host} gave an answer of no use: {error}") from error
        # Without a lifetime it is kept until a 401 says otherwise.
        return _Token(value, self._clock() + max(lifetime - _MARGIN, 1.0) if lifetime > 0 else None)

    def _refused(self, answer: Answer) -> ApiError:
        if answer.status in (400, 401):
            return Unauthenticated(f"token server of {self._host} rejects us (status {answer.status})")
        if answer.status in (403, 404):
            return PermissionDenied(f"token server of {self._host} refuses access (status {answer.status})")
        return Unavailable(f"token server of {self._host} failed with status {answer.status}")


def _parse_token(body: bytes) -> tuple[str, float]:
    """Return the token and its lifetime in seconds, 0 if none is given."""
    document = json.loads(body)
    value = document.get("token") or document.get("access_token")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or len(value) > _MAX_TOKEN:
        raise ValueError("it holds no token that could be sent")
    return value, float(document.get("expires_in") or 0)


def _basic(credentials: Credentials) -> str:
    if credentials.header:
        return credentials.header
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.secret}".encode()).decode()


def _form(service: str, scopes: list[str], credentials: Credentials) -> dict[str, str]:
    """Return the OAuth2 form; a secret without a name is a refresh token."""
    form: dict[str, Any] = {"client_id": CLIENT_ID, "service": service, "scope": " ".join(scopes)}
    if credentials.username:
        return {**form, "grant_type": "password", "username": credentials.username, "password": credentials.secret}
    return {**form, "grant_type": "refresh_token", "refresh_token": credentials.secret}
