"""Who we are to a registry: challenges, tokens, and where secrets never go."""

import asyncio
import base64
import json
from collections.abc import Callable
from urllib.parse import parse_qs

import pytest

from pyctr_wire.errors import ApiError, PermissionDenied, Unauthenticated, Unavailable
from pyctrd.registry.auth import Answer as TokenAnswer
from pyctrd.registry.auth import Authorizer, Challenge, parse_challenges
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from support.images import MANIFEST, image
from support.scripted_registry import Answer, ScriptedRegistry, Seen

Open = Callable[..., Repository]

IMAGE = image({"file": b"content"})
TAG = "/v2/some/image/manifests/v1"
OK = Answer(200, IMAGE.manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": IMAGE.digest})
SCOPE = "repository:some/image:pull"


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        (["Basic"], [("basic", {})]),
        (['Basic realm="a, b"'], [("basic", {"realm": "a, b"})]),
        (['Bearer realm="https://a/t?x=y",service=s'], [("bearer", {"realm": "https://a/t?x=y", "service": "s"})]),
        (['bearer Realm = "q\\"q" , scope="a b"'], [("bearer", {"realm": 'q"q', "scope": "a b"})]),
        (['Basic realm="x", Bearer realm="y"'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y"})]),
        (["Basic", "Negotiate"], [("basic", {}), ("negotiate", {})]),
        (["", ",,,", '="x"'], []),
        (['Bearer realm="open'], [("bearer", {"realm": ""})]),
    ],
)
def test_challenges_are_read(headers: list[str], challenges: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(headers) == [Challenge(*challenge) for challenge in challenges]


@pytest.mark.parametrize("header", ["a=" * 500_000, 'a="' + '\\"' * 500_000, "a " * 500_000, '"' * 1_000_000])
def test_hostile_challenges_are_cut_short(header: str) -> None:
    """The test is that it ends: the parser is linear, and reads only the start."""
    assert len(parse_challenges([header])) <= 10_000


def bearer(url: str, **parameters: str) -> Answer:
    values = ",".join(f'{name}="{value}"' for name, value in {"realm": url, "service": "reg", **parameters}.items())
    return Answer(401, headers={"WWW-Authenticate": f"Bearer {values}"})


def token(value: str = "tok", **more: object) -> Answer:
    return Answer(200, json.dumps({"token": value, **more}).encode())


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def guarded(registry: ScriptedRegistry, tokens: tuple[str, ...] = ("tok",)) -> None:
    """Let the registry's manifest be had with one of `tokens` only."""

    def answer(seen: Seen) -> Answer:
        good = seen.headers.get("Authorization") in [f"Bearer {value}" for value in tokens]
        return OK if good else bearer(f"{registry.url}/token")

    registry.on("HEAD", TAG, answer)


async def test_an_anonymous_token(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry)
    registry.on("GET", "/token", token())

    assert (await open_repository().resolve()).digest == IMAGE.digest

    [asked] = registry.requests("/token")
    assert asked.query == {"service": "reg", "scope": SCOPE}
    assert "Authorization" not in asked.headers


async def test_a_password_is_traded_for_a_token(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry)
    registry.on("POST", "/token", Answer(200, json.dumps({"access_token": "tok"}).encode()))

    await open_repository({registry.host: Credentials("me", "pass")}).resolve()

    [asked] = registry.requests("/token")
    form = {name: value[0] for name, value in parse_qs(asked.body.decode()).items()}
    assert form["grant_type"] == "password"
    assert (form["username"], form["password"], form["scope"]) == ("me", "pass", SCOPE)


async def test_an_identity_token_is_refreshed(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry)
    registry.on("POST", "/token", token())

    await open_repository({registry.host: Credentials(secret="identity")}).resolve()

    form = parse_qs(registry.requests("/token")[0].body.decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["identity"]


@pytest.mark.parametrize("status", [401, 404, 405])
async def test_an_older_token_server_gets_the_password_the_older_way(
    registry: ScriptedRegistry, open_repository: Open, status: int
) -> None:
    guarded(registry)
    registry.on("POST", "/token", Answer(status))
    registry.on("GET", "/token", token())

    await open_repository({registry.host: Credentials("me", "pass")}).resolve()

    [_, asked] = registry.requests("/token")
    assert asked.headers["Authorization"] == basic("me", "pass")


async def test_basic(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on(
        "HEAD",
        TAG,
        lambda seen: (
            OK
            if seen.headers.get("Authorization") == basic("me", "pass")
            else Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        ),
    )

    await open_repository({registry.host: Credentials("me", "pass")}).resolve()
    with pytest.raises(Unauthenticated, match="rejects the credentials"):
        await open_repository({registry.host: Credentials("me", "wrong")}).resolve()
    with pytest.raises(Unauthenticated, match="pyctr login"):
        await open_repository().resolve()


async def test_a_ready_made_header_is_sent_as_it_is(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry, ("ready",))

    await open_repository({registry.host: Credentials(header="Bearer ready")}).resolve()

    assert registry.requests("/token") == []


async def test_a_token_that_expires_is_replaced(registry: ScriptedRegistry, open_repository: Open) -> None:
    good = ["one"]
    registry.on(
        "HEAD",
        TAG,
        lambda seen: (
            OK if seen.headers.get("Authorization") == f"Bearer {good[0]}" else bearer(f"{registry.url}/token")
        ),
    )
    registry.on("GET", "/token", token("one"), token("two"))
    repository = open_repository()

    await repository.resolve()
    good[0] = "two"
    await repository.resolve()

    assert len(registry.requests("/token")) == 2


async def test_a_token_that_never_suffices_is_given_up(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry, ())
    registry.on("GET", TAG, bearer(f"{registry.url}/token"))
    registry.on("GET", "/token", token())

    with pytest.raises(Unauthenticated):
        await open_repository().resolve()

    assert len(registry.seen) <= 10


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, b"<html>"), Unauthenticated),
        (Answer(200, b"{}"), Unauthenticated),
        (Answer(200, b"[]"), Unauthenticated),
        (token("a\r\nX-Evil: yes"), Unauthenticated),
        (token("x", expires_in="soon"), Unauthenticated),
        (token("x", expires_in=10**400), Unauthenticated),
        (Answer(401), Unauthenticated),
        (Answer(403), PermissionDenied),
        (Answer(503), Unavailable),
        (Answer(302, headers={"Location": "/elsewhere"}), Unavailable),
    ],
)
async def test_a_token_server_without_a_token(
    registry: ScriptedRegistry, open_repository: Open, answer: Answer, error: type[ApiError]
) -> None:
    guarded(registry)
    registry.on("GET", "/token", answer)

    with pytest.raises(error):
        await open_repository().resolve()

    assert registry.requests("/elsewhere") == []


async def test_an_endless_token_is_cut(registry: ScriptedRegistry, open_repository: Open) -> None:
    guarded(registry)
    registry.on("GET", "/token", Answer(200, b"x" * 10_000, endless=True))

    with pytest.raises(ApiError):
        await open_repository().resolve()


async def test_a_mirror_gets_its_own_credentials(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    guarded(registry)
    registry.on("POST", "/token", token())
    repository = open_repository({other.host: Credentials("other", "secret")})

    with pytest.raises(ApiError):
        await repository.resolve()

    assert not any(b"secret" in seen.body for seen in registry.seen)


class Exchange:
    """A token server; records what it is asked, and answers after a turn of the loop."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, url: str, *, authorization: str = "", form: object = None) -> TokenAnswer:
        self.asked.append(url)
        await asyncio.sleep(0)
        return TokenAnswer(200, self.answers[min(len(self.asked), len(self.answers)) - 1])


async def nobody(host: str, challenges: tuple[str, ...]) -> Credentials | None:
    return None


async def test_many_requests_fetch_one_token() -> None:
    exchange = Exchange(b'{"token":"t"}')
    authorizer = Authorizer("https://r/v2", "r", nobody, exchange)
    scopes = frozenset({SCOPE})
    challenge = ['Bearer realm="https://auth/token"']

    await asyncio.gather(*(authorizer.challenged(challenge, scopes, "") for _ in range(10)))

    assert await authorizer.header(scopes) == "Bearer t"
    assert len(exchange.asked) == 1


async def test_a_token_is_renewed_before_it_expires() -> None:
    now = 0.0
    exchange = Exchange(b'{"token":"one","expires_in":60}', b'{"token":"two","expires_in":60}')
    authorizer = Authorizer("https://r/v2", "r", nobody, exchange, clock=lambda: now)
    scopes = frozenset({SCOPE})
    await authorizer.challenged(['Bearer realm="https://auth/token"'], scopes, "")

    now = 50.0
    assert await authorizer.header(scopes) == "Bearer one"
    now = 58.0
    assert await authorizer.header(scopes) == "Bearer two"


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth/token",
        "ftp://auth/token",
        "/token",
        "",
        "https://[::1",
        "https://a..b/",
        "https://me:pass@auth/token",
        "https://auth/token?a=\v",
    ],
)
async def test_a_realm_that_is_less_safe_than_the_registry_or_none_gets_nothing(realm: str) -> None:
    exchange = Exchange(b'{"token":"t"}')
    authorizer = Authorizer("https://r/v2", "r", nobody, exchange)

    with pytest.raises(Unauthenticated):
        await authorizer.challenged([f'Bearer realm="{realm}"'], frozenset(), "")

    assert exchange.asked == []


async def test_an_unknown_scheme_is_refused() -> None:
    authorizer = Authorizer("https://r/v2", "r", nobody, Exchange(b""))

    with pytest.raises(Unauthenticated, match="neither"):
        await authorizer.challenged(["Negotiate"], frozenset(), "")


async def test_a_challenge_with_bytes_that_are_no_text_is_answered() -> None:
    exchange = Exchange(b'{"token":"t"}')
    authorizer = Authorizer("https://r/v2", "r", nobody, exchange)

    await authorizer.challenged(['Bearer realm="https://auth/token",service="a\udcff"'], frozenset(), "")

    assert exchange.asked == ["https://auth/token?service=a%3F"]


async def test_a_lifetime_that_is_no_number_of_seconds_is_refused() -> None:
    exchange = Exchange(b'{"token":"t","expires_in":1' + b"0" * 400 + b"}")
    authorizer = Authorizer("https://r/v2", "r", nobody, exchange)

    with pytest.raises(Unauthenticated, match="of no use"):
        await authorizer.challenged(['Bearer realm="https://auth/token"'], frozenset(), "")
