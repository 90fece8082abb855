"""A login, checked: with the registry itself, by what it would be shown in a pull."""

import base64
import json
from collections.abc import Callable

import pytest

from pyctr_wire.errors import ApiError, FailedPrecondition, NotFound, Unauthenticated, Unavailable
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from pyctrd.registry.hosts import Endpoint, Tls
from support.scripted_registry import Answer, ScriptedRegistry, Seen

Open = Callable[..., Repository]

BASIC = "Basic " + base64.b64encode(b"me:pass").decode()


def asking(challenge: str, accepted: str) -> Callable[[Seen], Answer]:
    """Return a script that lets in who shows `accepted`, and asks the others with `challenge`."""

    def answer(seen: Seen) -> Answer:
        if seen.headers.get("Authorization") == accepted:
            return Answer(200, b"{}")
        return Answer(401, headers={"WWW-Authenticate": challenge})

    return answer


@pytest.mark.parametrize("kind", ["basic", "bearer"])
@pytest.mark.parametrize("secret", ["pass", "wrong"])
async def test_who_is_known_and_who_is_not(
    registry: ScriptedRegistry, open_repository: Open, kind: str, secret: str
) -> None:
    if kind == "basic":
        registry.on("GET", "/v2/", asking("Basic realm=x", BASIC))
    else:
        registry.on("GET", "/v2/", asking(f'Bearer realm="{registry.url}/token",service="s"', "Bearer t"))
        registry.on("POST", "/token", Answer(404))
        registry.on(
            "GET",
            "/token",
            lambda seen: (
                Answer(200, json.dumps({"token": "t"}).encode())
                if seen.headers["Authorization"] == BASIC
                else Answer(401)
            ),
        )
    check = open_repository({registry.host: Credentials("me", secret)}).check_login()

    if secret == "pass":
        await check
    else:
        with pytest.raises(Unauthenticated):
            await check


@pytest.mark.parametrize(
    ("answer", "error"), [(Answer(404), NotFound), (Answer(500), Unavailable)], ids=["no registry", "failing"]
)
async def test_what_does_not_tell(
    registry: ScriptedRegistry, open_repository: Open, pauses: list[float], answer: Answer, error: type[ApiError]
) -> None:
    registry.on("GET", "/v2/", answer)

    with pytest.raises(error):
        await open_repository().check_login()

    assert len(registry.seen) == 1
    assert pauses == []


async def test_mirrors_are_not_asked(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    registry.on("GET", "/v2/", Answer(200))
    mirror, own = (Endpoint(f"{one.url}/v2", one.host) for one in (other, registry))

    await open_repository(served_by=(mirror, own)).check_login()
    with pytest.raises(FailedPrecondition, match="served by other hosts"):
        await open_repository(served_by=(mirror,)).check_login()

    assert other.seen == []


async def test_an_http_address_with_tls_settings_is_asked_both_ways(
    registry: ScriptedRegistry, open_repository: Open
) -> None:
    registry.on("GET", "/v2/", Answer(200))
    maybe = Endpoint(f"https://{registry.host}/v2", registry.host, tls=Tls(skip_verify=True), may_fall_back=True)

    await open_repository(served_by=(maybe,)).check_login()
