"""Credentials of a PullImage: every form that they come in, and whom they are never shown to."""

import base64

import pytest

from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.errors import InvalidArgument
from pyctrd.cri.image_auth import credentials_of, only_for
from pyctrd.registry.credentials import Credentials

HOST = "registry.example.com:5000"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({}, None),
        ({"username": "me", "password": "secret"}, Credentials("me", "secret")),
        ({"username": "me", "password": ""}, Credentials("me")),
        ({"auth": encoded("me:se:cret")}, Credentials("me", "se:cret")),
        ({"auth": encoded("me:secret\0\0")}, Credentials("me", "secret")),
        ({"identity_token": "refresh"}, Credentials(secret="refresh")),
        ({"registry_token": "bearer"}, Credentials(header="Bearer bearer")),
        ({"username": "me", "password": "secret", "auth": encoded("you:other")}, Credentials("me", "secret")),
    ],
)
def test_every_form(auth: dict[str, str], expected: Credentials | None) -> None:
    assert credentials_of(pb.AuthConfig(**auth), HOST) == expected


@pytest.mark.parametrize("address", ["", HOST, f"https://{HOST}", f"https://{HOST}/v2/", f"http://{HOST.upper()}"])
def test_the_server_that_they_are_for(address: str) -> None:
    assert credentials_of(pb.AuthConfig(username="me", server_address=address), HOST)


@pytest.mark.parametrize(
    "address", ["other.example.com", "registry.example.com", f"{HOST}.evil.com", f"https://evil.com/{HOST}", "evil.com"]
)
def test_credentials_for_another_server_do_not_count(address: str) -> None:
    """Even damaged ones: they are nobody's business here."""
    assert credentials_of(pb.AuthConfig(username="me", server_address=address), HOST) is None
    assert credentials_of(pb.AuthConfig(auth="%", server_address=address), HOST) is None


@pytest.mark.parametrize("address", ["docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"])
def test_docker_hub_has_many_names(address: str) -> None:
    assert credentials_of(pb.AuthConfig(username="me", server_address=address), "docker.io")


@pytest.mark.parametrize("auth", ["%%%", encoded("nocolon"), base64.b64encode(b"\xff\xfe:x").decode(), "bWU6"[:-1]])
def test_damaged_ones_are_refused_without_being_told(auth: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        credentials_of(pb.AuthConfig(auth=auth), HOST)
    assert auth not in str(caught.value)


def test_a_token_cannot_break_out_of_its_header() -> None:
    with pytest.raises(InvalidArgument):
        credentials_of(pb.AuthConfig(registry_token="x\r\nHost: evil"), HOST)


async def test_they_are_had_by_their_own_registry_alone() -> None:
    source = only_for("docker.io", Credentials("me", "secret"))

    assert await source("registry-1.docker.io", ()) == Credentials("me", "secret")
    for host in ("mirror.local", "registry-1.docker.io.evil.com", "auth.docker.io", "localhost:5000"):
        assert await source(host, ()) is None
