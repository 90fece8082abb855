"""Pods without containers: network namespaces that are attached to networks, with real plugins or scripted ones."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyctr_sys.namespaces import Clone, setns, unshare
from pyctrd.core.pod_addresses import Preference
from pyctrd.network import own
from pyctrd.network.configuration import Configuration
from pyctrd.network.netns import set_loopback_up
from pyctrd.network.plugins import Plugins
from pyctrd.network.pod_network import PodIdentity, PodNetwork
from pyctrd.network.records import Records
from pyctrd.offload import Offload
from pyctrd.sandbox import namespaces

OWN_PLUGINS = ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap")
REAL_PLUGINS = Path("/usr/lib/cni")


def pod(name: str = "one") -> PodIdentity:
    """A pod whose sandbox has the id `name`."""
    return PodIdentity(name, "default", f"pod-{name}", f"uid-{name}")


def command(*words: str | Path, netns: Path | None = None) -> str:
    """Return what a program prints, in a pod's network namespace or on the host."""
    prefix = ["nsenter", f"--net={netns}"] if netns else []
    return subprocess.run([*prefix, *words], check=True, capture_output=True, text=True).stdout


class NetworkNamespaces:
    """Network namespaces as pods have them, without pods."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self) -> Path:
        """Return the path of a new one, in which `lo` is up."""
        folder = self._directory / uuid.uuid4().hex
        namespaces.pin(folder, ("net",), "", {})
        return folder / "net"

    def remove(self, path: Path) -> None:
        """Let go of one, which may be gone."""
        namespaces.unpin(path.parent)

    def close(self) -> None:
        """Let go of all."""
        for folder in self._directory.glob("*"):
            namespaces.unpin(folder)


@contextmanager
def own_host() -> Iterator[None]:
    """Let this thread, and those that it starts, be in a new network namespace."""
    own_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    unshare(Clone.NEWNET)
    try:
        set_loopback_up()
        yield
    finally:
        setns(own_fd, Clone.NEWNET)
        os.close(own_fd)


class Lab:
    """A directory with a network's configuration, programs for plugins, and what a daemon keeps."""

    def __init__(self, directory: Path, in_process: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.configurations, self.programs = directory / "net.d", directory / "bin"
        self.configurations.mkdir()
        self.programs.mkdir()
        self.namespaces = NetworkNamespaces(directory / "netns")
        self._offload = Offload(8)
        self.seconds = 30.0
        self.in_process = in_process
        self.network = self.started()

    def started(self) -> PodNetwork:
        """Return what a daemon has that was started just now."""
        self.records = Records(self.directory / "records")
        plugins = Plugins((self.programs, REAL_PLUGINS), self.seconds, own.PLUGINS, self.in_process)
        return PodNetwork(Configuration(self.configurations), plugins, self.records, Preference.IPV4, self._offload)

    def configure(self, *plugins: dict[str, Any], version: str = "1.0.0", name: str = "labnet", **more: Any) -> None:
        document = {"cniVersion": version, "name": name, "plugins": plugins, **more}
        (self.configurations / "10-lab.conflist").write_text(json.dumps(document))

    def bridge(self, *, routes: bool = True, **more: Any) -> dict[str, Any]:
        """A bridge plugin's configuration, with an address of each family for each pod."""
        ranges: list[Any] = [[{"subnet": "10.201.0.0/24"}], [{"subnet": "fd00:201::/64"}]]
        ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(self.ips), "ranges": ranges}
        if routes:
            ipam["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        return {"type": "bridge", "bridge": "labbr", "isGateway": True, "ipMasq": True, "ipam": ipam, **more}

    @property
    def ips(self) -> Path:
        return self.directory / "ips"

    def reserved(self) -> set[str]:
        """The addresses that host-local has given away."""
        names = {path.name for path in self.ips.glob("labnet/*")}
        return {name for name in names if name != "lock" and not name.startswith("last_reserved")}

    def close(self) -> None:
        self.namespaces.close()
        self._offload.close()
