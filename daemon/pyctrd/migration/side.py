"""One namespace of a daemon that takes part, with a lease of ours in it that holds what is under way."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.leases.v1 import leases_pb2 as pb
from pyctr_wire.errors import AlreadyExists
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.remote.connection import Remote

# Marks what only a run of ours needs: leases, and snapshots that are not finished.
LABEL: Final = "pyctr.io/migrate"

CALL_TIMEOUT: Final = 3600.0  # seconds: a layer may be large
# How long an interrupted run's work stays, for the next one to go on with.
_LEASE_AGE: Final = timedelta(hours=24)
_LEASES: Final = "/containerd.services.leases.v1.Leases/"


class Side:
    """Calls in one namespace, all under a lease that exists while the context lasts.

    A run that fails leaves its lease, so that nothing of its work is collected before the next run; the first run
    that succeeds removes those of its predecessors. Else they end after 24 hours.
    """

    def __init__(self, what: str, address: str, namespace: str) -> None:
        """Call the daemon at `address`, a path; `what` names it in errors."""
        self.namespace = namespace
        self._lease = f"pyctr-migrate-{secrets.token_hex(6)}"
        self.remote = Remote(what, address, namespace, CALL_TIMEOUT, self._lease)
        self.call, self.receive, self.exchange = self.remote.call, self.remote.receive, self.remote.exchange

    def hold(self, kind: str, name: str) -> None:
        """Keep an object from collection, there or not yet; `kind` is content or snapshots/SNAPSHOTTER."""
        resource = pb.Resource(id=name, type=kind)
        self.call(f"{_LEASES}AddResource", pb.AddResourceRequest(id=self._lease, resource=resource), Empty)

    def release(self, kind: str, name: str) -> None:
        """Leave an object to the collector, if nobody else holds it."""
        resource = pb.Resource(id=name, type=kind)
        self.call(f"{_LEASES}DeleteResource", pb.DeleteResourceRequest(id=self._lease, resource=resource), Empty)

    def leases(self) -> Iterator[pb.Lease]:
        """Yield the leases that are nobody's run of ours."""
        for lease in self.call(f"{_LEASES}List", pb.ListRequest(), pb.ListResponse).leases:
            if LABEL not in lease.labels:
                yield lease

    def resources(self, lease: str) -> Iterator[pb.Resource]:
        """Yield what a lease holds."""
        yield from self.call(
            f"{_LEASES}ListResources", pb.ListResourcesRequest(id=lease), pb.ListResourcesResponse
        ).resources

    def take_over(self, lease: pb.Lease, resources: Iterator[pb.Resource]) -> bool:
        """Have a lease of the other side here too, holding the same; return whether it was missing."""
        try:
            self.call(f"{_LEASES}Create", pb.CreateRequest(id=lease.id, labels=lease.labels), pb.CreateResponse)
            missing = True
        except AlreadyExists:
            missing = False
        for resource in resources:
            self.call(f"{_LEASES}AddResource", pb.AddResourceRequest(id=lease.id, resource=resource), Empty)
        return missing

    def __enter__(self) -> Self:
        """Make the lease."""
        try:
            expiry = (datetime.now(UTC) + _LEASE_AGE).isoformat(timespec="seconds")
            request = pb.CreateRequest(id=self._lease, labels={LABEL: "run", EXPIRE_LABEL: expiry})
            self.call(f"{_LEASES}Create", request, pb.CreateResponse)
        except BaseException:
            self.remote.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the leases, if all went well, and with them what only they kept."""
        try:
            if error is None:
                for lease in self.call(f"{_LEASES}List", pb.ListRequest(), pb.ListResponse).leases:
                    if LABEL in lease.labels:
                        self.call(f"{_LEASES}Delete", pb.DeleteRequest(id=lease.id, sync=True), Empty)
        finally:
            self.remote.close()
