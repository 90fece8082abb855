"""Pods on their network: what a pod's configuration says, as the network wants to hear it."""

import math
import re
from pathlib import Path
from typing import Final

from pyctr_wire.cri import image_pb2
from pyctr_wire.errors import InvalidArgument
from pyctrd.cri.convert import enum_name
from pyctrd.cri.records import Pod
from pyctrd.network.pod_network import Bandwidth, Dns, PodIdentity, PodNetwork, PortMapping
from pyctrd.sandbox.files import SandboxFiles

_INGRESS: Final = "kubernetes.io/ingress-bandwidth"
_EGRESS: Final = "kubernetes.io/egress-bandwidth"
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final = {
    None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40
}  # fmt: skip


class PodNetworks:
    """The network of all pods."""

    def __init__(self, network: PodNetwork, files: SandboxFiles) -> None:
        """Attach pods to `network`; `files` knows where their namespaces are."""
        self._network = network
        self._files = files

    async def problem(self) -> str:
        """Return why pods cannot be attached, "" if they can."""
        return await self._network.status() or ""

    async def set_up(self, pod: Pod) -> tuple[str, ...]:
        """Attach a pod and return its addresses, the primary one first. InvalidArgument, UnknownError."""
        config = pod.config
        annotations, dns = config.annotations, config.dns_config
        found = await self._network.set_up(
            identity_of(pod),
            self._netns(pod),
            port_mappings=[
                PortMapping(one.host_port, one.container_port, _protocol(one.protocol), one.host_ip)
                for one in config.port_mappings
            ],
            bandwidth=Bandwidth(_bits(annotations.get(_INGRESS, "0")), _bits(annotations.get(_EGRESS, "0"))),
            dns=Dns(tuple(dns.servers), tuple(dns.searches), tuple(dns.options)),
            cgroup_parent=config.linux.cgroup_parent,
            annotations=dict(annotations),
        )
        return (found.primary, *found.additional)

    async def tear_down(self, pod: Pod) -> None:
        """Detach a pod; repeatable, and its namespace may be gone. UnknownError."""
        await self._network.tear_down(identity_of(pod), self._netns(pod))

    async def collect(self, pods: "list[Pod]") -> None:
        """Detach what belongs to none of the pods that there are."""
        await self._network.collect([pod.id for pod in pods if pod.ready])

    def _netns(self, pod: Pod) -> Path:
        return self._files.namespaces(pod.id) / "net"


def identity_of(pod: Pod) -> PodIdentity:
    """Return who a pod is to the network."""
    meta = pod.config.metadata
    return PodIdentity(pod.id, meta.namespace, meta.name, meta.uid)


def _protocol(number: "image_pb2.Protocol") -> str:
    return enum_name(image_pb2.Protocol, number).lower()


def _bits(text: str) -> int:
    """Return the bits per second of a quantity. Source: Kubernetes, resource quantities."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"bandwidth {text[:40]!r} is no quantity, as 10M is")
    bits = float(match.group(1)) * _UNITS[match.group(2)]
    if bits == math.inf:
        raise InvalidArgument(f"bandwidth {text[:40]!r} is too much")
    return int(bits)
