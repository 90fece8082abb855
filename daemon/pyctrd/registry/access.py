"""The way to a registry: from a reference to a repository that can be asked."""

import importlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.references import Reference
from pyctrd.offload import Offload
from pyctrd.registry.credentials import Credentials, CredentialSource, canonical_host, first_of
from pyctrd.registry.hosts import Endpoint, HostsConfig, endpoints

if TYPE_CHECKING:
    from pyctrd.registry.client import Repository
    from pyctrd.registry.transport import Transport


class Registries:
    """Opens repositories as configured; keeps nothing between two of them."""

    def __init__(
        self,
        hosts: HostsConfig,
        configured: CredentialSource,
        fallback: CredentialSource,
        offload: Offload,
        user_agent: str,
    ) -> None:
        """Find endpoints in `hosts`, who we are in `configured`, and if nobody else knows, in `fallback`.

        Files are read in `offload`.
        """
        self._hosts = hosts
        self._configured = configured
        self._fallback = fallback
        self._offload = offload
        self._user_agent = user_agent

    @asynccontextmanager
    async def open(
        self,
        reference: Reference,
        *,
        credentials: CredentialSource | None = None,
        client: CredentialSource | None = None,
        headers: Mapping[str, str] | None = None,
        host_dir: str = "",
        default_scheme: str = "",
    ) -> AsyncIterator["Repository"]:
        """Yield the repository of `reference`, whose connections are closed afterwards.

        `credentials` are asked before the configured ones, a `client` after them; `headers` go to the registry itself,
        never to a mirror.
        Raises InvalidArgument and FailedPrecondition for hosts that are not configured right, mirrors too.
        """
        hosts = replace(self._hosts, config_path=(Path(host_dir),)) if host_dir else self._hosts
        found = await self._offload.run(endpoints, reference.domain, hosts, default_scheme)
        sources = [one for one in (credentials, self._configured, client, self._fallback) if one is not None]
        async with self._repository(
            reference, [_with_headers(one, reference, headers or {}) for one in found], first_of(*sources)
        ) as repository:
            yield repository

    async def check_login(self, host: str, credentials: Credentials) -> None:
        """Ask the registry `host` whether it takes `credentials`, over the way that a pull goes.

        Raises Unauthenticated or PermissionDenied if it does not, Unavailable if it does not answer, NotFound if it is
        no registry, and as `open` does.
        """
        registry = Reference(canonical_host(host), "")
        found = await self._offload.run(endpoints, registry.domain, self._hosts)

        async def given(host: str, challenges: tuple[str, ...]) -> Credentials:
            return credentials

        async with self._repository(registry, found, given) as repository:
            await repository.check_login()

    @asynccontextmanager
    async def _repository(
        self, reference: Reference, served_by: Sequence[Endpoint], credentials: CredentialSource
    ) -> AsyncIterator["Repository"]:
        # In a thread, because it takes hundreds of milliseconds the first time: aiohttp comes with it.
        client = await self._offload.run(importlib.import_module, "pyctrd.registry.client")
        transport_module = await self._offload.run(importlib.import_module, "pyctrd.registry.transport")
        transport: Transport = transport_module.Transport(credentials, self._user_agent, self._offload.run)
        try:
            await transport.prepare(served_by)
            yield client.Repository(reference, served_by, transport)
        finally:
            await transport.close()


def _with_headers(endpoint: Endpoint, reference: Reference, headers: Mapping[str, str]) -> Endpoint:
    if not headers or not endpoint.serves(reference.domain):
        return endpoint
    if not all(text.isprintable() for item in headers.items() for text in item):
        raise InvalidArgument("a header for the registry holds something unprintable")
    own = {name: (value,) for name, value in headers.items()}
    return replace(endpoint, headers={**endpoint.headers, **own})
