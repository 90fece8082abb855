"""Scripted registries, and a client for them that does not sleep."""

from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from pyctrd.core.references import Reference
from pyctrd.offload import Offload
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from pyctrd.registry.hosts import Endpoint, HostsConfig, endpoints
from pyctrd.registry.transport import Transport
from support.scripted_registry import ScriptedRegistry, scripted_registry

Open = Callable[..., Repository]


@pytest.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as server:
        yield server


@pytest.fixture
def pauses() -> list[float]:
    """What the client would have slept."""
    return []


@pytest.fixture
async def open_repository(registry: ScriptedRegistry, pauses: list[float]) -> AsyncIterator[Open]:
    """Opens some/image:v1 on the registry, with credentials by host."""
    offload = Offload(2)
    transports: list[Transport] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def open_with(
        credentials: Mapping[str, Credentials] | None = None,
        served_by: tuple[Endpoint, ...] = (),
        reference: Reference | None = None,
    ) -> Repository:
        async def known(host: str, challenges: tuple[str, ...]) -> Credentials | None:
            return (credentials or {}).get(host)

        transports.append(Transport(known, "test/1", offload.run, sleep))
        reference = reference or Reference(registry.host, "some/image", "v1")
        return Repository(reference, served_by or endpoints(registry.host, HostsConfig(())), transports[-1])

    yield open_with
    for transport in transports:
        await transport.close()
    offload.close()
