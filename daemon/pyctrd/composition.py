"""The parts of a daemon, each built from those before it. This module and late.py alone know concrete classes."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyctr_wire.errors import FailedPrecondition
from pyctrd.config.tables import Config
from pyctrd.core.anys import AnyValue
from pyctrd.core.events import (
    ContainerCreate,
    ContainerDelete,
    ContainerUpdate,
    Event,
    ImageCreate,
    ImageDelete,
    ImageUpdate,
)
from pyctrd.events.exchange import Exchange
from pyctrd.metadata.containers import Containers
from pyctrd.metadata.database import Database
from pyctrd.offload import Offload
from pyctrd.rpc import containers, forward, health, tasks, version
from pyctrd.rpc.container_index import ContainerIndex
from pyctrd.runtime.apparmor import AppArmor
from pyctrd.runtime.bundle import Bundles
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.operations import Operations
from pyctrd.runtime.owner import Owners
from pyctrd.runtime.programs import Endpoints
from pyctrd.runtime.recovery import Recovery
from pyctrd.runtime.runtime_versions import RuntimeVersions
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.runtime.shims import Shims
from pyctrd.runtime.tasks import Tasks
from pyctrd.runtime.zygote_client import Zygote
from pyctrd.server.call_counts import CallCounts
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.server.ttrpc import TtrpcListener

if TYPE_CHECKING:
    from pyctrd.content.store import ContentStore
    from pyctrd.runtime.checkpoints import Checkpoints
    from pyctrd.sandbox.controller import SandboxController
    from pyctrd.server.remote_listener import RemoteListener
    from pyctrd.tracing import Spans
    from pyctrd.upgrade import Serving

CHECKPOINTS: Final = "checkpoints"
"""Where, below the root directory, checkpoints are while they are written and read."""

# What late.py serves.
LATE_SERVICES: Final = frozenset(
    {
        "containerd.services.content.v1.Content",
        "containerd.services.diff.v1.Diff",
        "containerd.services.events.v1.Events",
        "containerd.services.images.v1.Images",
        "containerd.services.introspection.v1.Introspection",
        "containerd.services.leases.v1.Leases",
        "containerd.services.mounts.v1.Mounts",
        "containerd.services.namespaces.v1.Namespaces",
        "containerd.services.sandbox.v1.Controller",
        "containerd.services.sandbox.v1.Store",
        "containerd.services.snapshots.v1.Snapshots",
        "containerd.services.streaming.v1.Streaming",
        "containerd.services.transfer.v1.Transfer",
        "pyctr.v1.Engine",
        "runtime.v1.ImageService",
        "runtime.v1.RuntimeService",
    }
)


class Parts:
    """What a daemon needs to know its containers and to tell of them; late.py adds the rest."""

    def __init__(
        self,
        config: Config,
        zygote: Zygote,
        group: asyncio.TaskGroup,
        closing: ExitStack,
        upgrade: "Callable[[], Awaitable[Serving]]",
    ) -> None:
        """Build it; work that starts by itself runs in `group`, and `closing` is told how to end each part.

        `upgrade` lets another daemon take over.
        """
        self.config = config
        self.group = group
        self.closing = closing
        self.upgrade = upgrade
        # Nobody counts where nobody asks.
        self.calls = CallCounts() if config.metrics.address else None
        spans = self._spans() if any(name.startswith("OTEL_") for name in os.environ) else None
        self.dispatch = Dispatch([watcher.observe for watcher in (self.calls, spans) if watcher is not None])
        self.content: ContentStore | None = None  # one of the late parts
        self.sandboxes: SandboxController | None = None  # another one
        self._made_checkpoints: Checkpoints | None = None
        self.exchange = Exchange(_encoded, config.events.queue)
        self.database = Database(config.root / "metadata.db", self._publish)
        closing.callback(self.database.close)
        # Closed before the database: that waits for the calls under way.
        self.rows = Offload(config.threads.metadata, "rows")
        closing.callback(self.rows.close)
        self.bulk = Offload(config.threads.bulk, "bulk")
        closing.callback(self.bulk.close)
        self.containers = Containers(self.database)
        self.container_index = ContainerIndex(self.containers, self.rows)
        # What late.py adds hears of changed images by namespace and name, in the committing thread.
        self.image_changed: Callable[[str, str], None] | None = None
        self.bundles = Bundles(config.state)
        self._build_runtime(zygote)
        closing.callback(self.tasks.let_go)
        self._build_services()
        owner = {"uid": config.grpc.uid, "gid": config.grpc.gid}
        age = config.grpc.connection_age
        self.listener = Listener(self.dispatch, config.paths, connection_age=age, **owner)
        self.remote_listener = self._remote_listener() if config.ports else None
        self.shim_listener = TtrpcListener(forward.services(self.tasks), Path(config.ttrpc_address), **owner)

    def _spans(self) -> "Spans | None":
        """Return what makes spans of calls, if the environment says where to."""
        from pyctrd import tracing

        spans = tracing.start(os.environ)
        if spans is not None:
            self.closing.callback(spans.close)
        return spans

    def _remote_listener(self) -> "RemoteListener":
        """Return what serves other machines. Raises FailedPrecondition if its certificates cannot be used."""
        from pyctrd.server.certificates import Certificates  # most daemons serve this machine only
        from pyctrd.server.remote_listener import RemoteListener

        grpc = self.config.grpc
        certificates = Certificates(grpc.tcp_tls_ca, grpc.tcp_tls_cert, grpc.tcp_tls_key)
        return RemoteListener(self.dispatch, self.config.ports, certificates, connection_age=grpc.connection_age)

    def _build_runtime(self, zygote: Zygote) -> None:
        config, group = self.config, self.group
        endpoints = Endpoints(config.state, config.address, config.ttrpc_address, config.log.level)
        self.operations = Operations()
        self.runtimes = Runtimes(config.runtimes)
        self.runtime_versions = RuntimeVersions(self.bulk, group)
        self.owners = owners = Owners(group)
        shims = Shims(endpoints, zygote, self.bulk, lambda request: self.shim_listener.take(request))
        self.tasks = Tasks(self.exchange, group, self.rows)
        undertaker = Undertaker(self.tasks, shims, owners, self.operations, group)
        self.apparmor = AppArmor(self.bulk)
        self.lifecycle = Lifecycle(
            self.tasks, self.bundles, shims, owners, undertaker, self.operations, self.apparmor.prepare, group
        )
        self.recovery = Recovery(self.tasks, self.bundles, shims, owners, undertaker, self.lifecycle, group)

    def _build_services(self) -> None:
        self.dispatch.expect(LATE_SERVICES, self._load_late)
        for servicer in (
            containers.Containers(self.containers, self.container_index, self.rows),
            health.Health(self.dispatch.services),
            tasks.Tasks(
                self.tasks,
                self.lifecycle,
                self.container_index,
                self.checkpoints,
                self._check_sandbox,
                self.runtimes,
                self.runtime_versions,
            ),
            version.Version(),
        ):
            self.dispatch.add(servicer)

    def _check_sandbox(self, namespace: str, sandbox_id: str) -> None:
        """Raise FailedPrecondition if no task may be made in a sandbox."""
        self.dispatch.complete()
        assert self.sandboxes is not None
        self.sandboxes.check_member(namespace, sandbox_id)

    def checkpoints(self) -> "Checkpoints":
        """Return what saves and restores tasks, made on first use. Raises FailedPrecondition while that is off."""
        if not self.config.checkpoint.enabled:
            raise FailedPrecondition(
                "checkpoints are off: set enabled = true in [checkpoint] of the daemon's configuration"
            )
        if self._made_checkpoints is None:
            from pyctrd.runtime.checkpoints import Checkpoints

            self.dispatch.complete()
            assert self.content is not None
            directory = self.config.root / CHECKPOINTS
            self._made_checkpoints = Checkpoints(directory, self.content, self.tasks, self.bulk)
        return self._made_checkpoints

    def _load_late(self) -> None:
        """Load and serve what can wait until the daemon answers: that takes as long as all of the above."""
        from pyctrd import late

        late.add(self)

    def _publish(self, namespace: str, event: Event) -> None:
        """Tell everybody of a change that is on disk; called in the committing thread."""
        if isinstance(event, ContainerCreate | ContainerUpdate | ContainerDelete):
            self.container_index.changed(namespace, event.id)
        elif self.image_changed is not None and isinstance(event, ImageCreate | ImageUpdate | ImageDelete):
            self.image_changed(namespace, event.name)
        self.exchange.publish_core(namespace, event)


def _encoded(event: Event) -> AnyValue:
    """Return the wire form of an event. What encodes them is loaded with the first one."""
    from pyctrd.rpc.convert.events import event_to_any

    return event_to_any(event)
