"""Volumes with a name that a user gave: any container can have them bind mounted, and they stay until they are removed.

    <root>/<namespace>/<name>/volume.json   since when it is there, and its labels
    <root>/<namespace>/<name>/data/         what containers see

A volume appears complete, by a rename. So does what it starts with: the image's files are copied beside it, and the
copy then takes the place of the empty `data`. A crash leaves a name with a dot in front, which the next sweep removes.
Who uses a volume is not written down anywhere: containers whose specs name its directory do.
"""

import errno
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyctr_sys.sync import syncfs
from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.containers import Container
from pyctrd.core.labels import Labels, validate_labels
from pyctrd.core.values import dataclass
from pyctrd.metadata.durable import fsync, naming_full_disk, replacing
from pyctrd.runtime.container_folders import directories, doomed, opened, remove
from pyctrd.runtime.copy_up import copy_up
from pyctrd.snapshots.usage import measure

_MANIFEST: Final = "volume.json"
_DATA: Final = "data"
# Docker's rule, and short enough for names with a dot in front; `Volumes` calls those without a name by 64 digits.
_NAME: Final = re.compile(r"(?![0-9a-f]{64}$)[a-zA-Z0-9][a-zA-Z0-9_.-]{1,199}")


@dataclass(frozen=True, slots=True)
class NamedVolume:
    """A volume; `containers` are the ids of those that have it."""

    name: str
    path: Path  # of what is in it
    created_at: datetime
    labels: Labels = field(default_factory=dict)
    containers: tuple[str, ...] = ()


class NamedVolumes:
    """Owns everything below its root; synchronous, thread-safe."""

    def __init__(self, root: Path, containers: Callable[[str], Sequence[Container]]) -> None:
        """Use `root`, which is made with the first volume; `containers` returns those of a namespace."""
        self._root = root
        self._containers = containers
        self._locks = _NameLocks()
        # What containers take that have no record yet, by namespace and id.
        self._taken: dict[tuple[str, str], set[str]] = {}
        self._staged: set[Path] = set()

    def create(self, ns: str, name: str, labels: Labels) -> str:
        """Make a volume, with a random name for "", and return its name; one that is there stays as it is.

        Raises InvalidArgument for a name or labels that cannot be, ResourceExhausted for a full disk.
        """
        name = name or secrets.token_hex(16)
        check_name(name)
        validate_labels("volume.Labels", labels)
        with self._locks.held(ns, name):
            self._create(ns, name, labels)
        return name

    def use(self, ns: str, container: str, name: str, layers: Sequence[int]) -> Path:
        """Return the directory of a volume for a container that is being made; the volume is made if it is not there.

        An empty one that no other container has starts as the directory `layers` (O_PATH fds, borrowed) make up.
        Called in `taking`. Raises as `create`, and FailedPrecondition as `copy_up`.
        """
        check_name(name)
        with self._locks.held(ns, name):
            folder = self._create(ns, name, {})
            data = folder / _DATA
            if layers and not any(data.iterdir()) and not self._users(ns, name):
                self._fill(folder, layers)
            self._taken[ns, container].add(name)
        return data

    @contextmanager
    def taking(self, ns: str, container: str) -> Iterator[None]:
        """Let nobody remove, in the block, what a container takes that has no record yet."""
        self._taken[ns, container] = set()
        try:
            yield
        finally:
            del self._taken[ns, container]

    def list(self, ns: str) -> list[NamedVolume]:
        """Return the volumes of a namespace, by name."""
        containers = self._containers(ns)
        return [
            _read(folder, self._users(ns, folder.name, containers))
            for folder in sorted(directories(self._root / ns))
            if not folder.name.startswith(".")
        ]

    def has(self, ns: str, name: str) -> bool:
        """Tell whether there is a volume of that name."""
        return bool(_NAME.fullmatch(name)) and (self._root / ns / name).exists()

    def remove(self, ns: str, name: str) -> None:
        """Remove a volume. Raises NotFound, FailedPrecondition while a container has it."""
        check_name(name)
        folder = self._root / ns / name
        rubbish = doomed(folder)
        with self._locks.held(ns, name):
            if not folder.exists():
                raise NotFound(f"volume {name}")
            if users := self._users(ns, name):
                raise FailedPrecondition(f"volume {name} is in use by container {', '.join(users)}")
            folder.rename(rubbish)
        remove(rubbish)

    def sweep(self) -> None:
        """Go on with what was being removed, and remove what was being made."""
        for namespace in directories(self._root):
            for folder in directories(namespace):
                if folder.name.startswith(".") and folder not in self._staged:
                    remove(folder)

    def size(self, ns: str) -> tuple[int, int, int, int]:
        """Return how many volumes there are, how many of them are in use, all bytes and those of unused ones."""
        sizes = [(measure(volume.path).size, bool(volume.containers)) for volume in self.list(ns)]
        used = sum(in_use for _, in_use in sizes)
        return len(sizes), used, sum(size for size, _ in sizes), sum(size for size, in_use in sizes if not in_use)

    def _create(self, ns: str, name: str, labels: Labels) -> Path:
        folder = self._root / ns / name
        if folder.exists():
            return folder
        with naming_full_disk(f"volume {name}"), self._staging(folder) as staged:
            (staged / _DATA).mkdir()
            (staged / _DATA).chmod(0o755)  # whatever the umask is
            with replacing(staged / _MANIFEST) as file:
                document = {"version": 1, "created_at": datetime.now(UTC).isoformat(), "labels": dict(labels)}
                file.write_text(json.dumps(document))
            staged.rename(folder)
            for directory in (folder.parent, self._root, self._root.parent):
                fsync(directory)
        return folder

    def _fill(self, folder: Path, layers: Sequence[int]) -> None:
        """Let an empty volume start as a directory of an image."""
        with naming_full_disk(f"volume {folder.name}"), self._staging(folder) as staged:
            with opened(staged) as fd:
                copy_up(layers, fd)
                syncfs(fd)
            try:
                staged.rename(folder / _DATA)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:  # somebody has put something there by hand: that is what it is
                    raise
            fsync(folder)

    @contextmanager
    def _staging(self, folder: Path) -> Iterator[Path]:
        """Yield a new directory beside a volume's, which is gone after the block unless it has been renamed."""
        staged = doomed(folder)
        self._staged.add(staged)
        try:
            for directory in (self._root, folder.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            staged.mkdir(mode=0o700)
            yield staged
        finally:
            remove(staged)
            self._staged.discard(staged)

    def _users(self, ns: str, name: str, containers: Sequence[Container] | None = None) -> tuple[str, ...]:
        # In this order: the record is there before it is let go.
        taken = {container for (space, container), names in list(self._taken.items()) if space == ns and name in names}
        path = json.dumps(str(self._root / ns / name / _DATA))[:-1].encode()
        whole, below = path + b'"', path + b"/"
        for one in self._containers(ns) if containers is None else containers:
            if one.spec is not None and (whole in one.spec.value or below in one.spec.value):
                taken.add(one.id)
        return tuple(sorted(taken))


class _NameLocks:
    """A lock per volume, which exists only while somebody holds or wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    @contextmanager
    def held(self, ns: str, name: str) -> Iterator[None]:
        key = (ns, name)
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = (lock, users - 1)


def check_name(name: str) -> None:
    """Raise InvalidArgument for what no volume can be called."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"volume name {name[:80]!r}: it must have 2 to 200 letters, digits, '_', '.' and '-',"
            " begin with a letter or digit, and not be one that a volume without a name has"
        )


def _read(folder: Path, containers: tuple[str, ...]) -> NamedVolume:
    try:
        document = json.loads((folder / _MANIFEST).read_bytes())
        created_at = datetime.fromisoformat(document["created_at"])
        labels = dict(document["labels"])
    except (OSError, ValueError, KeyError, TypeError):  # it was damaged; the data is what counts
        created_at, labels = datetime.fromtimestamp(folder.stat().st_mtime, UTC), {}
    return NamedVolume(folder.name, folder / _DATA, created_at, labels, containers)
