"""/etc/hostname, /etc/hosts and /etc/resolv.conf of containers, bind mounted as docker does.

    <root>/<namespace>/<container>/hostname, hosts, resolv.conf

They are made before the container's record and go with it; a crash in between leaves them to the next start. What
is written here is the container's to change. One that shares this machine's network is shown this machine's own
hosts and resolv.conf instead: they are always as they should be, and not its to change.
"""

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyctrd.metadata.durable import fsync, naming_full_disk
from pyctrd.runtime.container_folders import ContainerFolders
from pyctrd.runtime.presence import Presence

_WHAT: Final = "the container's /etc/hosts"
_OF_THIS_MACHINE: Final = ("/etc/hosts", "/etc/resolv.conf")
_HOSTS: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_RESOLV_CONF: Final = "# The container has no network, so no name server can be asked.\n"


def contents(hostname: str, network: str) -> dict[str, str]:
    """Return the text of each file that a container has to itself, by its path there."""
    texts = {"/etc/hostname": f"{hostname}\n"}
    if network != "host":
        short = hostname.partition(".")[0]
        names = hostname if short == hostname else f"{hostname} {short}"
        # Not 127.0.0.1, as in Debian: the reverse look-up of that is to say localhost.
        texts |= {"/etc/hosts": f"{_HOSTS}127.0.1.1\t{names}\n", "/etc/resolv.conf": _RESOLV_CONF}
    return texts


def of_this_machine(network: str) -> dict[str, str]:
    """Return the files of this machine that a container is shown, by their path there."""
    return {path: path for path in _OF_THIS_MACHINE if Path(path).exists()} if network == "host" else {}


class NetworkFiles:
    """Owns everything below its root; synchronous, thread-safe."""

    def __init__(self, root: Path, presence: Presence) -> None:
        """Use `root`, which is made with the first files."""
        self._folders = ContainerFolders(root, presence)

    def make(self, ns: str, container: str, texts: Mapping[str, str]) -> dict[str, str]:
        """Write the files of a container that is being made; return where each is, by its path in the container.

        Raises ResourceExhausted for a full disk.
        """
        made = {}
        with naming_full_disk(_WHAT):
            folder = self._folders.make(ns, container)
            for target, text in texts.items():
                path = folder / posixpath.basename(target)
                path.write_text(text)
                path.chmod(0o644)  # whatever the umask is
                made[target] = str(path)
        return made

    def sync(self, ns: str, container: str) -> None:
        """Wait until a container's files are on disk: nobody would write them again after a power cut."""
        folder = self._folders.of(ns, container)
        with naming_full_disk(_WHAT):
            for path in (*folder.iterdir(), folder, folder.parent, folder.parent.parent):
                fsync(path)

    def has(self, ns: str, container: str) -> bool:
        """Return whether there is anything of a container's."""
        return self._folders.has(ns, container)

    def container_gone(self, ns: str, container: str) -> None:
        """Remove a container's files; without effect while that is there."""
        self._folders.remove(ns, container)

    def sweep(self) -> None:
        """Remove the files of containers that are gone."""
        for ns, container in self._folders.sweep():
            self._folders.remove(ns, container)
