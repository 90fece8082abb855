"""What a daemon and its containers occupy beyond themselves: descriptors, network namespaces, rows, files.

    with unchanged(daemon):
        ...

looks before and after; a Footprint does where something else is to be done in between. Processes, mounts, sockets,
bundles and cgroups are looked at by DaemonProcess and Containers when they end.
"""

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pyctr_wire.pyctr import engine_pb2, engine_pb2_grpc

from .containers import hierarchies
from .daemon_process import DEADLINE, DaemonProcess, wait_until

# A log, a copy of the database and the notes of a rebuild come by themselves; namespaces, and the folders in which
# things are kept, stay when they are empty.
_OWN_FILES = re.compile(
    r"log|root/metadata\.db.*|root/uuid|root/reserve|root/seccomp.*|root/content/(ingest|blobs(/\w+)?)|"
    r"root/snapshots/[\w-]+|"
    r"root/(logs|checkpoints|network|network_records|pods)|state/pods|state/pyctrd\.sock.*|state/tasks/[^/]*"
)
_OWN_TABLES = {"namespaces", "sqlite_sequence"}
# Each thread that has read from the database keeps it open, and modules are loaded when they are needed.
_OWN_DESCRIPTORS = re.compile(r".*/metadata\.db(-wal|-shm)?( \(deleted\))?|.*\.(py|pyc|so)")


@contextmanager
def unchanged(daemon: DaemonProcess) -> Iterator[None]:
    """Check that there is nothing more of a daemon after the context than there was before."""
    before = Footprint(daemon)
    yield
    before.assert_unchanged()


class Footprint:
    """What a daemon has open, its rows and its files, at one moment at which no client is connected."""

    def __init__(self, daemon: DaemonProcess) -> None:
        """Look at a running daemon, once all of it is loaded."""
        self._daemon = daemon
        self._collect()
        self._before = self._look()

    def excess(self) -> Counter[str]:
        """Return what there is more of than there was."""
        return self._look() - self._before

    def assert_unchanged(self) -> None:
        """Wait until nothing is more than it was, what no longer has a use having been collected."""
        self._collect()
        wait_until(lambda: not self.excess(), lambda: f"nothing more is left, but: {dict(self.excess())}")

    def _collect(self) -> None:
        """Have what no longer has a use collected."""
        with self._daemon.channel() as channel:
            engine_pb2_grpc.EngineStub(channel).CollectGarbage(engine_pb2.CollectGarbageRequest(), timeout=DEADLINE)

    def _look(self) -> Counter[str]:
        return sum(
            (Counter(what()) for what in (self._descriptors, self._networks, self._rows, self._files)), Counter()
        )

    def _descriptors(self) -> list[str]:
        folder = Path(f"/proc/{self._daemon.pid}/fd")
        found = []
        for name in os.listdir(folder):
            try:
                target = os.readlink(folder / name)
            except FileNotFoundError:  # closed meanwhile
                continue
            if not _OWN_DESCRIPTORS.fullmatch(target):
                found.append(f"descriptor of {target.partition(':[')[0]}")
        for _ in range(self._waiting_workers()):
            found.remove("descriptor of socket")
        return found

    def _waiting_workers(self) -> int:
        """Return how many processes wait half a minute for another layer to unpack; each is at the end of a socket."""
        found = 0
        for children in Path(f"/proc/{self._daemon.pid}/task").glob("*/children"):
            with suppress(OSError):  # a thread or a process that has ended meanwhile
                for pid in children.read_text().split():
                    found += "pyctrd.diff" in Path(f"/proc/{pid}/cmdline").read_text()
        return found

    def _networks(self) -> set[str]:
        """Return the network namespaces that its programs or their children are in or hold, or that it has mounted."""
        found = set(_mounted("self", self._daemon.base))
        for pid in self._processes():
            found |= _mounted(pid, self._daemon.base)
            for link in (*Path(f"/proc/{pid}/task").glob("*/ns/net"), *Path(f"/proc/{pid}/fd").glob("*")):
                with suppress(OSError):  # a process that has ended, a descriptor that is closed
                    found.add(os.readlink(link))
        found.discard(os.readlink("/proc/self/ns/net"))
        return {f"network namespace {name}" for name in found if name.startswith("net:[")}

    def _processes(self) -> set[str]:
        """Return the daemon, whatever it has started, and all that these have."""
        parents: dict[str, str] = {}
        found = {str(self._daemon.pid)}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):  # no process, or one that has ended
                parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if str(self._daemon.base).encode() in (folder / "environ").read_bytes():
                    found.add(folder.name)
        while children := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= children
        return found - {str(os.getpid())}

    def _rows(self) -> list[str]:
        path = self._daemon.root / "metadata.db"
        found = []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in sorted(set(tables) - _OWN_TABLES):
                (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
                found += [f"row of {table}"] * count
        return found

    def _files(self) -> list[str]:
        found = []
        for top in (self._daemon.root, self._daemon.state):
            for folder, folders, files in os.walk(top):
                # What is inside of snapshots is theirs.
                if Path(folder).name == "fs":
                    folders.clear()
                    continue
                names = [str(Path(folder, name).relative_to(self._daemon.base)) for name in (*folders, *files)]
                found += [f"file {name}" for name in names if not _OWN_FILES.fullmatch(name)]
        return found


def _mounted(pid: str, base: Path) -> set[str]:
    """Return the namespaces that are mounted below `base`, as a process sees it."""
    with suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        return {words[3] for words in lines if words[4].startswith(f"{base}/")}
    return set()


def cgroup_value(pid: int, controller: str, version_1: str, version_2: str) -> str:
    """Return what a file of a process's cgroup says, by its name in version 1 of the controller and in version 2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return _value(controller, path, version_1)
    (path,) = [line[3:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::")]
    return _value("cgroup2", path, version_2)


def _value(controller: str, path: str, name: str) -> str:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(maxsplit=2)
        if kind == controller or (kind == "cgroup" and controller in options.split(",")):
            return (Path(left.split()[4]) / path.lstrip("/") / name).read_text().strip()
    raise AssertionError(f"no cgroup hierarchy has {controller}")


def cgroups_below(name: str) -> list[str]:
    """Return the cgroups in the top-level cgroup `name` of any hierarchy."""
    parents = [root / name for root in hierarchies() if (root / name).is_dir()]
    return [str(child) for parent in parents for child in parent.iterdir() if child.is_dir()]


def remove_cgroup(name: str) -> None:
    """Remove the empty top-level cgroup `name` from all hierarchies; whoever made it does not."""
    for root in hierarchies():
        if (root / name).is_dir():
            (root / name).rmdir()
