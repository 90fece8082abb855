"""The files of a pod's sandbox, which its containers mount.

<root>/<id>/hostname  hosts  resolv.conf    as long as the sandbox is there
<root>/<id>/pause/                          the root of a first container, where a shim of another make wants one
<state>/<id>/shm                            a tmpfs, /dev/shm of all containers
<state>/<id>/images/<container>/            images that are volumes of a container
<state>/<id>/ns/                            the namespaces
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_wire.errors import InvalidArgument
from pyctrd.core.values import dataclass

_SHM_FLAGS: Final = MountFlag.NOEXEC | MountFlag.NOSUID | MountFlag.NODEV
_SHM_OPTIONS: Final = "mode=1777,size=67108864"


@dataclass(frozen=True, slots=True)
class Dns:
    """What resolv.conf is to say; nothing at all means the host's own."""

    servers: Sequence[str] = ()
    searches: Sequence[str] = ()
    options: Sequence[str] = ()


class SandboxFiles:
    """Owns everything below its two directories; synchronous, thread-safe."""

    def __init__(self, root: Path, state: Path) -> None:
        """Keep lasting files in `root`, and what does not outlive the machine in `state`."""
        self._root = root
        self._state = state

    def folder(self, sandbox_id: str) -> Path:
        """Return where hostname, hosts and resolv.conf are."""
        return self._root / sandbox_id

    def pause(self, sandbox_id: str) -> Path:
        """Return where the root file system of a first container is, if there is one."""
        return self._root / sandbox_id / "pause"

    def shm(self, sandbox_id: str) -> Path:
        """Return where /dev/shm is."""
        return self._state / sandbox_id / "shm"

    def images(self, sandbox_id: str) -> Path:
        """Return where images are mounted that are volumes of containers."""
        return self._state / sandbox_id / "images"

    def namespaces(self, sandbox_id: str) -> Path:
        """Return where namespaces are pinned."""
        return self._state / sandbox_id / "ns"

    def make(self, sandbox_id: str, hostname: str, dns: Dns) -> None:
        """Write the files. Raises OSError, InvalidArgument for DNS settings with a line break."""
        for word in (*dns.servers, *dns.searches, *dns.options):
            if not word.isprintable() or not word:
                raise InvalidArgument(f"dns_config: {word[:80]!r} cannot be written to resolv.conf")
        folder = self.folder(sandbox_id)
        folder.mkdir(mode=0o700, parents=True)
        _write(folder / "hostname", f"{hostname}\n")
        _write(folder / "hosts", _read("/etc/hosts"))
        _write(folder / "resolv.conf", _resolv_conf(dns))

    def mount_shm(self, sandbox_id: str, uid: int = 0, gid: int = 0) -> None:
        """Mount the tmpfs that is the /dev/shm of all containers, whose owner this is; again after a reboot."""
        path = self.shm(sandbox_id)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.ismount(path):
            mount("shm", str(path), "tmpfs", _SHM_FLAGS, f"{_SHM_OPTIONS},uid={uid},gid={gid}")

    def unmount(self, sandbox_id: str) -> None:
        """Take down what does not outlive the machine, but for the namespaces; repeatable."""
        images = self.images(sandbox_id)
        for path in (self.shm(sandbox_id), *images.glob("*/*"), *images.glob("*"), images):
            unmount(path)
        with suppress(OSError):
            images.parent.rmdir()

    def remove(self, sandbox_id: str) -> None:
        """Remove all files of a sandbox; repeatable."""
        self.unmount(sandbox_id)
        shutil.rmtree(self.folder(sandbox_id), ignore_errors=True)

    def list(self) -> Iterator[str]:
        """Yield the sandboxes that have files."""
        for directory in (self._root, self._state):
            with suppress(FileNotFoundError):
                yield from os.listdir(directory)


def unmount(path: Path) -> None:
    """Take down what is mounted on a directory, however often, and then that; repeatable."""
    with suppress(OSError):
        while True:
            umount2(str(path), MNT_DETACH)
    with suppress(OSError):
        path.rmdir()


def _resolv_conf(dns: Dns) -> str:
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines) or _read("/etc/resolv.conf")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except FileNotFoundError:
        return ""


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)  # whatever the umask is
