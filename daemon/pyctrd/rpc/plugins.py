"""What Introspection lists: the parts of this daemon under the names that containerd's clients look for.

Clients branch on these: nerdctl and buildkitd want snapshotters with platforms, buildkitd a runtime with
platforms, nerdctl's `--restart` a plugin called restart. So nothing stands here that does not work.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from pyctrd.core.platforms import Platform
from pyctrd.core.restarts import When
from pyctrd.rpc.introspection import Plugin


class Proxy(Protocol):
    """What another program keeps."""

    @property
    def address(self) -> str:
        """Its socket."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do."""


# gRPC services whose plugin's id is not a part of their name.
_SERVICE_IDS: Final[Mapping[str, str]] = {
    "grpc.health.v1.Health": "healthcheck",
    "containerd.services.sandbox.v1.Controller": "sandbox-controllers",
    "containerd.services.sandbox.v1.Store": "sandboxes",
    "runtime.v1.ImageService": "cri",
    "runtime.v1.RuntimeService": "cri",
}
# Those that containerd has in its own process too, where older clients look for them.
_IN_PROCESS: Final = (
    "containers", "content", "diff", "images", "introspection", "leases", "namespaces", "snapshots", "tasks",
)  # fmt: skip

_PARTS: Final = (
    Plugin("io.containerd.content.v1", "content"),
    Plugin("io.containerd.event.v1", "exchange"),
    Plugin("io.containerd.metadata.v1", "bolt", requires=("io.containerd.content.v1", "io.containerd.snapshotter.v1")),
    Plugin("io.containerd.gc.v1", "scheduler", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.lease.v1", "manager", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.differ.v1", "walking", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.monitor.task.v1", "cgroups", requires=("io.containerd.event.v1",)),
    Plugin(
        "io.containerd.monitor.container.v1",
        "restart",
        requires=("io.containerd.event.v1", "io.containerd.service.v1"),
        capabilities=tuple(When),
    ),
    Plugin(
        "io.containerd.runtime.v2",
        "task",
        requires=("io.containerd.event.v1", "io.containerd.metadata.v1"),
        exports={"log-uri-schemes": "fifo,binary,binary-v2,file,json-file,cri,journald"},
    ),
    Plugin("io.containerd.mount-manager.v1", "bolt", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.sandbox.controller.v1", "shim", requires=("io.containerd.shim.v1", "io.containerd.event.v1")),
    Plugin("io.containerd.sandbox.store.v1", "local", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.shim.v1", "manager", requires=("io.containerd.event.v1",)),
    Plugin("io.containerd.streaming.v1", "manager", requires=("io.containerd.metadata.v1",)),
    Plugin("io.containerd.transfer.v1", "local", requires=("io.containerd.lease.v1", "io.containerd.metadata.v1")),
    Plugin("io.containerd.warning.v1", "deprecations"),
    *(Plugin("io.containerd.service.v1", f"{name}-service") for name in _IN_PROCESS),
    Plugin("io.containerd.cri.v1", "images", requires=("io.containerd.metadata.v1", "io.containerd.transfer.v1")),
    Plugin("io.containerd.cri.v1", "runtime", requires=("io.containerd.runtime.v2", "io.containerd.sandbox.store.v1")),
    Plugin("io.containerd.server.v1", "grpc", requires=("io.containerd.grpc.v1",)),
    Plugin("io.containerd.server.v1", "ttrpc", requires=("io.containerd.event.v1",)),
)

_PER_PLATFORM: Final = frozenset(
    {
        "io.containerd.cri.v1",
        "io.containerd.differ.v1",
        "io.containerd.monitor.task.v1",
        "io.containerd.runtime.v2",
        "io.containerd.transfer.v1",
    }
)


def plugins(
    host: Platform,
    snapshotters: Mapping[str, Path],
    services: Iterable[str],
    capabilities: Iterable[str] = (),
    proxies: Mapping[str, Proxy] = MappingProxyType({}),
    refused: Mapping[str, str] = MappingProxyType({}),
) -> list[Plugin]:
    """Return the plugins of a daemon with these snapshotters (by name, with their directories) and gRPC services.

    All snapshotters have the same `capabilities`, but for those that other programs keep: `proxies` has theirs.
    `refused` are those that this machine cannot have, and why.
    """
    own = tuple(capabilities)
    ids = sorted({_id_of(service) for service in services if "pyctr" not in service})
    return [
        *(
            Plugin(
                "io.containerd.snapshotter.v1",
                name,
                platforms=(host,),
                exports={"root": str(root)} if name not in proxies else {"address": proxies[name].address},
                capabilities=own if name not in proxies else proxies[name].capabilities,
            )
            for name, root in snapshotters.items()
        ),
        *(Plugin("io.containerd.snapshotter.v1", name, error=reason) for name, reason in refused.items()),
        *(replace(part, platforms=(host,)) if part.type in _PER_PLATFORM else part for part in _PARTS),
        *(Plugin("io.containerd.grpc.v1", id) for id in ids),
    ]


def _id_of(service: str) -> str:
    """Return the plugin's id of a gRPC service: containerd.services.ID.v1.Name, with exceptions."""
    return _SERVICE_IDS.get(service) or service.split(".")[-3]
