"""Whose credentials a registry is shown, of all who have some."""

import base64
import contextlib
from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.references import Reference
from pyctrd.offload import Offload
from pyctrd.registry.access import Registries
from pyctrd.registry.credentials import Credentials, CredentialSource
from pyctrd.registry.hosts import HostsConfig
from support.images import MANIFEST, digest, image
from support.scripted_registry import Answer, ScriptedRegistry

IMAGE = image({"file": b"content"})
TAG = "/v2/some/image/manifests/v1"
SOURCES = ("request", "configuration", "client", "docker's file")


def source(name: str, knowing: str) -> CredentialSource:
    """Return a source that knows what it is called, or nothing, or, beyond who is `knowing`, fails."""

    async def find(host: str, challenges: tuple[str, ...]) -> Credentials | None:
        if SOURCES.index(name) > SOURCES.index(knowing):
            raise FailedPrecondition("its helper is not installed")
        return Credentials(name, "secret") if name == knowing else None

    return find


async def test_certificates_that_cannot_be_read_end_it(registry: ScriptedRegistry, tmp_path: Path) -> None:
    """Else an http address, which is tried with TLS first, would be asked without."""
    (tmp_path / registry.host).mkdir()
    (tmp_path / registry.host / "hosts.toml").write_text(f'[host."{registry.url}"]\nca = "missing.pem"')
    nobody = source("client", "request")

    with contextlib.closing(Offload(1)) as offload:
        registries = Registries(HostsConfig((tmp_path,)), nobody, nobody, offload, "test/1")
        with pytest.raises(FailedPrecondition, match=r"missing\.pem"):
            async with registries.open(Reference(registry.host, "some/image", "v1")):
                pass


@pytest.mark.parametrize("knowing", SOURCES)
async def test_who_comes_first_and_who_is_not_asked(registry: ScriptedRegistry, knowing: str) -> None:
    """Later ones are not even asked: that one cannot answer does not matter then."""
    found = Answer(200, IMAGE.manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": digest(IMAGE.manifest)})
    registry.on("HEAD", TAG, Answer(401, headers={"WWW-Authenticate": "Basic realm=x"}), found)
    request, configured, client, file = (source(name, knowing) for name in SOURCES)
    reference = Reference(registry.host, "some/image", "v1")

    with contextlib.closing(Offload(1)) as offload:
        registries = Registries(HostsConfig(()), configured, file, offload, "test/1")
        async with registries.open(reference, credentials=request, client=client) as repository:
            await repository.resolve()

    shown = registry.seen[-1].headers["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(shown).decode() == f"{knowing}:secret"
