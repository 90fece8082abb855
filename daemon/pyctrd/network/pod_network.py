"""The network as pods see it: set up, torn down, checked; whatever happens to us meanwhile, nothing of it stays."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctr_wire.errors import UnknownError
from pyctrd.core.pod_addresses import Preference, ordered
from pyctrd.log import Logger
from pyctrd.network import chain, results
from pyctrd.network.configuration import Configuration
from pyctrd.network.errors import NetworkNotReady, PluginError
from pyctrd.network.netns import is_open
from pyctrd.network.plugins import Plugins
from pyctrd.network.records import Attachment, Records
from pyctrd.offload import Offload

INTERFACE: Final = "eth0"
_UNLIMITED: Final = (1 << 32) - 1  # bits of a burst

_log = Logger("pyctrd.network")


class PodIdentity(NamedTuple):
    """Which pod: its sandbox's id, and who it is to Kubernetes."""

    id: str
    namespace: str
    name: str
    uid: str


class PortMapping(NamedTuple):
    """A port of the host that leads to one of the pod; `host_ip` "" stands for all of the host's addresses."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


class Bandwidth(NamedTuple):
    """Limits in bits per second, 0 for none; ingress is what the pod receives."""

    ingress: int = 0
    egress: int = 0


class Dns(NamedTuple):
    """What plugins that care may tell the pod's name servers."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Addresses(NamedTuple):
    """A pod's addresses, without prefix lengths, and the plugins' result in the network's version."""

    primary: str
    additional: tuple[str, ...]
    result: Mapping[str, Any]


class PodNetwork:
    """The network that pods are attached to, with the interface eth0."""

    def __init__(
        self, configuration: Configuration, plugins: Plugins, records: Records, preference: Preference, offload: Offload
    ) -> None:
        """Use `offload`, of which hanging plugins may take each thread, for all that blocks."""
        self._configuration, self._plugins, self._records = configuration, plugins, records
        self._preference = preference
        self._offload = offload
        self._busy = _Busy()
        # Sandboxes that were attached by this object: those who ask for a collection may not know them yet.
        self._attached: set[str] = set()

    async def status(self) -> str | None:
        """Return None if pods can be attached, else why they cannot."""
        return await self._offload.run(self._status)

    async def set_up(
        self,
        pod: PodIdentity,
        netns: Path,
        *,
        port_mappings: Sequence[PortMapping] = (),
        bandwidth: Bandwidth | None = None,
        dns: Dns | None = None,
        cgroup_parent: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> Addresses:
        """Attach the pod, whose network namespace is at `netns`, and return its addresses.

        Raises NetworkNotReady, PluginError, or UnknownError if the plugins gave it no address; what was done is
        undone then, as far as the plugins let it, and the rest by `tear_down` or `collect`. If cancelled it goes on,
        and a `tear_down` waits for it. If the pod is attached already, that is all.
        """
        runtime = _runtime(port_mappings, bandwidth, dns, cgroup_parent, annotations or {})
        return await self._offload.run(self._set_up, pod, netns, runtime)

    async def tear_down(self, pod: PodIdentity, netns: Path | None) -> None:
        """Detach the pod; its network namespace may be gone. If it was never attached, nothing happens.

        Raises PluginError if a plugin failed: then it may be asked again. What goes wrong for a pod whose ADD has never
        finished is logged only: no pod is to stay for what it never had. `collect` tries again.
        """
        await self._offload.run(self._tear_down, pod.id, netns)

    async def check(self, pod: PodIdentity) -> None:
        """Ask the plugins whether the pod's network is as they made it. Raises PluginError, NetworkNotReady."""
        await self._offload.run(self._check, pod.id)

    async def addresses(self, pod: PodIdentity) -> Addresses | None:
        """Return the addresses that the pod was given, None if it is not attached."""
        return await self._offload.run(self._addresses_of, pod.id)

    async def collect(self, valid: Collection[str]) -> None:
        """Detach what belongs to none of the `valid` sandboxes, by our records and by the plugins' own.

        Those that were attached meanwhile, by this object, are left alone. Failures are logged: the next time it is
        tried again.
        """
        await self._offload.run(self._collect, frozenset(valid))

    # -- in threads

    def _status(self) -> str | None:
        try:
            chain.status(self._plugins, self._configuration.network())
        except (NetworkNotReady, PluginError) as error:
            return str(error)
        return None

    def _set_up(self, pod: PodIdentity, netns: Path, runtime: Mapping[str, Any]) -> Addresses:
        arguments = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}"
            f";K8S_POD_INFRA_CONTAINER_ID={pod.id};K8S_POD_UID={pod.uid}"
        )
        with self._busy.alone(pod.id):
            for earlier in self._records.of(pod.id):
                if earlier.result is not None and earlier.netns == str(netns):
                    return self._addresses(earlier)  # whoever asks has not heard that it was done
                self._delete(earlier)
            network = self._configuration.network()
            self._attached.add(pod.id)
            attachment = Attachment(network, pod.id, INTERFACE, str(netns), arguments, runtime, self._plugins.chosen)
            # A crash from here on leaves a record without a result: `collect` undoes what the plugins did.
            self._records.write(attachment)
            try:
                attachment = attachment._replace(result=chain.add(self._plugins, attachment))
                addresses = self._addresses(attachment)
            except BaseException:
                self._attached.discard(pod.id)
                self._undo(attachment)
                raise
            self._records.write(attachment)
            return addresses

    def _addresses(self, attachment: Attachment) -> Addresses:
        assert attachment.result is not None
        result = results.parse(attachment.result, attachment.network.version)
        found = ordered(result.of_interface(attachment.interface), self._preference)
        if not found:
            raise UnknownError(f'failed to find network info for sandbox "{attachment.container}"')
        return Addresses(found[0], tuple(found[1:]), attachment.result)

    def _addresses_of(self, container: str) -> Addresses | None:
        found = [one for one in self._records.of(container) if one.result is not None]
        return self._addresses(found[-1]) if found else None

    def _undo(self, attachment: Attachment) -> None:
        """Detach what was not attached completely; its record stays if that fails."""
        try:
            self._delete(attachment)
        except PluginError as error:
            _log.warning("network.undo_failed", sandbox=attachment.container, error=str(error))

    def _tear_down(self, container: str, netns: Path | None) -> None:
        there = netns is not None and is_open(netns)
        with self._busy.alone(container):
            for attachment in self._records.of(container):
                attachment = attachment._replace(netns=str(netns) if there else "")
                if attachment.result is None:
                    self._undo(attachment)
                else:
                    self._delete(attachment)
            self._attached.discard(container)

    def _delete(self, attachment: Attachment) -> None:
        chain.delete(self._plugins.choosing(attachment.in_process), attachment)
        self._records.remove(attachment)

    def _check(self, container: str) -> None:
        with self._busy.alone(container):
            found = [one for one in self._records.of(container) if one.result is not None]
            if not found:
                raise NetworkNotReady(f'sandbox "{container}" is attached to no network')
            for attachment in found:
                chain.check(self._plugins.choosing(attachment.in_process), attachment)

    def _collect(self, valid: frozenset[str]) -> None:
        with self._busy.none():
            self._records.sweep()
        for attachment in self._records:
            if attachment.container not in valid:
                with self._busy.alone(attachment.container):
                    if attachment.container not in self._attached:
                        there = bool(attachment.netns) and is_open(Path(attachment.netns))
                        self._undo(attachment if there else attachment._replace(netns=""))
        try:
            network = self._configuration.network()
            # An address that is given away in between would be taken back.
            with self._busy.none():
                kept = [one.key for one in self._records if one.network.name == network.name]
                chain.collect(self._plugins, network, kept)
        except NetworkNotReady:
            return  # then there is nobody to ask
        except ExceptionGroup as failures:
            _log.warning("network.collect_failed", errors=[str(one) for one in failures.exceptions])


def _runtime(
    port_mappings: Sequence[PortMapping],
    bandwidth: Bandwidth | None,
    dns: Dns | None,
    cgroup_parent: str,
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    """Return what plugins with capabilities are given, by the capability. Source: CNI conventions."""
    runtime: dict[str, Any] = {}
    mappings = [
        {
            "hostPort": one.host_port,
            "containerPort": one.container_port,
            "protocol": one.protocol.lower(),
            "hostIP": one.host_ip,
        }
        for one in port_mappings
        if one.host_port > 0
    ]
    if mappings:
        runtime["portMappings"] = mappings
    limits = {"ingress": bandwidth.ingress, "egress": bandwidth.egress} if bandwidth is not None else {}
    for direction, rate in limits.items():
        if rate:
            runtime.setdefault("bandwidth", {}).update({f"{direction}Rate": rate, f"{direction}Burst": _UNLIMITED})
    if dns is not None and any(dns):
        runtime["dns"] = {key: list(texts) for key, texts in dns._asdict().items()}
    if cgroup_parent:
        runtime["cgroupPath"] = cgroup_parent
    if annotations:
        runtime["io.kubernetes.cri.pod-annotations"] = dict(annotations)
    return runtime


class _Busy:
    """Who is being worked on: one at a time for each, or nobody at all."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._names: set[str] = set()
        self._closed = False

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed and name not in self._names)
            self._names.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._names.discard(name)
                self._changed.notify_all()

    @contextmanager
    def none(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed and not self._names)
            self._closed = True
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
