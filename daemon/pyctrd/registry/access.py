"""The way to a registry: from a reference to a repository that can be asked."""

import importlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.references import Reference
from pyctrd.offload import Offload
from pyctrd.registry.credentials import CredentialSource, first_of
from pyctrd.registry.hosts import Endpoint, HostsConfig, endpoints

if TYPE_CHECKING:
    from pyctrd.registry.client import Repository


class Registries:
    """Opens repositories as configured; keeps nothing between two of them."""

    def __init__(self, hosts: HostsConfig, credentials: CredentialSource, offload: Offload, user_agent: str) -> None:
        """Find endpoints in `hosts`, who we are in `credentials`; files are read in `offload`."""
        self._hosts = hosts
        self._credentials = credentials
        self._offload = offload
        self._user_agent = user_agent

    @asynccontextmanager
    async def open(
        self,
        reference: Reference,
        *,
        credentials: CredentialSource | None = None,
        headers: Mapping[str, str] | None = None,
        host_dir: str = "",
        default_scheme: str = "",
    ) -> AsyncIterator["Repository"]:
        """Yield the repository of `reference`, whose connections are closed afterwards.

        `credentials` are asked before the configured ones; `headers` go to the registry itself, never to a mirror.
        Raises InvalidArgument and FailedPrecondition for hosts that are not configured right.
        """
        # In a thread, because it takes hundreds of milliseconds the first time: aiohttp comes with it.
        client = await self._offload.run(importlib.import_module, "pyctrd.registry.client")
        transport_module = await self._offload.run(importlib.import_module, "pyctrd.registry.transport")
        hosts = replace(self._hosts, config_path=(Path(host_dir),)) if host_dir else self._hosts
        found = await self._offload.run(endpoints, reference.domain, hosts, default_scheme)
        sources = (credentials, self._credentials) if credentials is not None else (self._credentials,)
        transport = transport_module.Transport(first_of(*sources), self._user_agent, self._offload.run)
        try:
            yield client.Repository(
                reference, [_with_headers(one, reference, headers or {}) for one in found], transport
            )
        finally:
            await transport.close()


def _with_headers(endpoint: Endpoint, reference: Reference, headers: Mapping[str, str]) -> Endpoint:
    if not headers or not endpoint.serves(reference.domain):
        return endpoint
    if not all(text.isprintable() for item in headers.items() for text in item):
        raise InvalidArgument("a header for the registry holds something unprintable")
    own = {name: (value,) for name, value in headers.items()}
    return replace(endpoint, headers={**endpoint.headers, **own})
