"""Bundles: what the daemon and a container's shim share, and all that either needs to find the other again.

    <state>/tasks/<namespace>/<id>/   0700
      config.json   the container's spec, byte for byte              written by the daemon, before the shim exists
      task.json     what the daemon must know again after a restart   (Manifest)
      lock          flock held by the shim for its whole life         written by the shim
      shim.json     its pid and addresses
      asleep        there while the shim sleeps: what its processes are
      exits/        a record per ended process: init.json, exec-<exec id>.json
      spool/        events that no daemon has acknowledged
      state.json    the OCI runtime's own record
      attached/     where it attaches the root in a mount namespace that is not the container's own
      runtime.json  instead of it, what the shim knows of a container that another OCI runtime has made
      runtime/      and where that runtime keeps its state
      execs/        a record per registered exec: <exec id>.json      (StdioNames)   written by the daemon
      started       its modification time is when the first process was started    written by the daemon
      buried        there once a lost shim's container has been cleaned up   written by the daemon

    and, with a shim of another make, instead of `lock`, `shim.json`, `asleep` and `spool`:
      bootstrap.json   what it has told of itself, and the pid of the container   (OtherShim)   written by the daemon
      log           what it has to say
      streams/      FIFOs, if the container's streams are ours to keep              written by the daemon
      streams.json  the pid of the process that has them, and where clients attach; streams.lock, which it holds

A bundle appears complete (it is renamed into place) and disappears at once (renamed to a dot name, then removed).
A name with a dot in front is rubbish that the next start sweeps; its exit record still answers a Delete whose
answer a crash swallowed. On tmpfs nothing here outlives the machine, so nothing is fsynced.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pyctr_wire.errors import AlreadyExists
from pyctrd.core.tasks import Exit, Status
from pyctrd.core.values import dataclass

T = TypeVar("T")
VERSION: Final = 1

_MAX_RECORD: Final = 1 << 20  # bytes; a JSON file of ours is far below
_ROOTS: Final = ("rootfs", "attached")  # where a container's files are seen while it is there
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class StdioNames(NamedTuple):
    """A process's streams as its client named them."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


NO_STDIO: Final = StdioNames()


class Manifest(NamedTuple):
    """What `task.json` holds; `request` is the digest of the Create call, so that its retry is recognised."""

    namespace: str
    id: str
    runtime: str
    instance: str
    created_at_ns: int
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    request: str = ""
    shim: str = ""
    """The program of a shim of another make, "" for ours."""

    @property
    def names(self) -> StdioNames:
        """The streams of the first process."""
        return StdioNames(self.stdin, self.stdout, self.stderr, self.terminal)


class ShimAddress(NamedTuple):
    """What `shim.json` holds: where the live shim listens, and its pid for people and for SIGKILL."""

    pid: int
    address: str
    attach: str


class OtherShim(NamedTuple):
    """What `bootstrap.json` holds; no address while it is being started.

    `version` is the task service's, `init` the pid of the container's first process once that is made.
    """

    version: int = 0
    address: str = ""
    protocol: str = "ttrpc"
    pid: int = 0
    start_ticks: int = 0
    init: int = 0

    @property
    def path(self) -> str:
        """The path of its socket."""
        return self.address.removeprefix("unix://")


class ExitRecord(NamedTuple):
    """How a process ended, and which pid it had."""

    pid: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle directory and what its manifest says.

    Paths of what is read at a start are put together as text: pathlib takes longer than to read a file does.
    """

    path: Path
    manifest: Manifest

    def shim(self) -> ShimAddress | None:
        """Return where the shim listens, or None if it never got that far."""
        return _read(
            f"{self.path}/shim.json",
            lambda record: ShimAddress(int(record["pid"]), str(record["address"]), str(record.get("attach", ""))),
        )

    def attachment(self) -> ShimAddress | None:
        """Return who has the container's streams: its shim, or our process beside one of another make."""
        if not self.manifest.shim:
            return self.shim()
        return _read(
            f"{self.path}/streams.json", lambda record: ShimAddress(int(record["pid"]), "", str(record["attach"]))
        )

    def other_shim(self) -> OtherShim | None:
        """Return what is known of the bundle's shim of another make; None if it was never started."""
        return _read(f"{self.path}/bootstrap.json", partial(_typed, OtherShim))

    def write_other_shim(self, shim: OtherShim) -> None:
        """Note what is known of it now."""
        _write(f"{self.path}", "bootstrap.json", json.dumps(shim._asdict()).encode())

    def note_init(self, pid: int) -> None:
        """Note that the container has a first process now."""
        shim = self.other_shim()
        if shim is not None:
            self.write_other_shim(shim._replace(init=pid))

    def forget_other_shim(self) -> None:
        """Note that it was not started."""
        (self.path / "bootstrap.json").unlink(missing_ok=True)

    def asleep(self) -> dict[str, tuple[int, Status]] | None:
        """Return pid and status of each process by exec id, "" for init; None unless the shim sleeps."""
        return _read(
            f"{self.path}/asleep",
            lambda record: {str(exec_id): (int(pid), Status(status)) for exec_id, (pid, status) in record.items()},
        )

    def exits(self) -> dict[str, ExitRecord]:
        """Return the recorded exits by exec id, "" for init."""
        found: dict[str, ExitRecord] = {}
        for name in _names(f"{self.path}/exits"):
            read = _read(f"{self.path}/exits/{name}", _named_exit) if name.endswith(".json") else None
            if read is not None:
                found[read[0]] = read[1]
        return found

    def exit_of(self, exec_id: str) -> ExitRecord | None:
        """Return the recorded exit of one process, "" for init; None if there is none."""
        read = _read(f"{self.path}/exits/{_record_name(exec_id)}", _named_exit)
        return read[1] if read is not None else None

    def write_exit(self, exec_id: str, pid: int, ended: Exit) -> None:
        """Record the end of a process whose shim could not."""
        folder = self.path / "exits"
        folder.mkdir(mode=0o700, exist_ok=True)
        record = {
            "container": self.manifest.id,
            "exec_id": exec_id,
            "pid": pid,
            "exit_status": ended.exit_status,
            "signal": ended.signal,
            "exited_at_ns": (ended.exited_at - _EPOCH) // timedelta(microseconds=1) * 1000,
            "oom_killed": ended.oom_killed,
            "reason": ended.reason,
        }
        _write(f"{folder}", _record_name(exec_id), json.dumps(record).encode())

    def write_exec(self, exec_id: str, names: StdioNames) -> None:
        """Note that the shim has this exec, so that its end can be told even if the shim is lost."""
        data = json.dumps(names._asdict()).encode()
        try:
            _write(f"{self.path}/execs", f"{exec_id}.json", data)
        except FileNotFoundError:
            (self.path / "execs").mkdir(mode=0o700, exist_ok=True)
            _write(f"{self.path}/execs", f"{exec_id}.json", data)

    def forget_exec(self, exec_id: str) -> None:
        """Take the note back, and the record of its end, if its shim has not done that."""
        for name in (f"execs/{exec_id}.json", f"exits/{_record_name(exec_id)}"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.path}/{name}")

    def execs(self) -> dict[str, StdioNames]:
        """Return the execs that have been noted, by id."""
        found: dict[str, StdioNames] = {}
        for name in _names(f"{self.path}/execs"):
            path = f"{self.path}/execs/{name}"
            names = _read(path, partial(_typed, StdioNames)) if name.endswith(".json") else None
            if names is not None:
                found[name.removesuffix(".json")] = names
        return found

    def spooled(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and marshalled envelope of each event that no daemon has acknowledged, oldest first."""
        for name in _names(f"{self.path}/spool"):
            if name.isascii() and name.isdigit():
                yield int(name), (self.path / "spool" / name).read_bytes()

    def recorded_pid(self) -> int:
        """Return the init pid in the OCI runtime's record, 0 if it has none yet."""
        if self.manifest.shim:
            other = self.other_shim()
            return other.init if other is not None else 0
        for name in ("state.json", "runtime.json"):
            pid = _read(f"{self.path}/{name}", lambda record: int(record.get("pid", 0)))
            if pid is not None:
                return pid
        return 0

    def recorded_cgroup(self) -> str:
        """Return the cgroup in our OCI runtime's record: its path, or SLICE:PREFIX:NAME of a scope; "" without one."""
        return _read(f"{self.path}/state.json", lambda record: str(record.get("cgroup", ""))) or ""

    def mark_started(self) -> None:
        """Note that the first process is started now: its process is older, made for it to be created."""
        with suppress(OSError):  # on a full disk it counts as started when it was created
            os.close(os.open(f"{self.path}/started", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))

    def started_at(self) -> datetime:
        """Return when the first process was started; or its task created, if a crash came between."""
        try:
            moment = os.stat(f"{self.path}/started").st_mtime_ns
        except OSError:
            moment = self.manifest.created_at_ns
        return _EPOCH + timedelta(microseconds=moment // 1000)

    @property
    def buried(self) -> bool:
        """Whether a lost shim's container has been cleaned up."""
        return (self.path / "buried").exists()

    def mark_buried(self) -> None:
        """Note that nothing of the container is left but this bundle."""
        (self.path / "buried").touch(mode=0o600)

    def try_lock(self) -> int | None:
        """Return a locked fd that keeps any shim from starting here, or None if a live shim holds the lock."""
        lock_fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            return None
        return lock_fd


class Bundles:
    """The directory of all bundles; nobody else creates or removes anything in it."""

    def __init__(self, state: Path) -> None:
        """Use `<state>/tasks`, made if it is not there."""
        self._root = state / "tasks"
        self._root.mkdir(mode=0o711, exist_ok=True)

    def create(self, manifest: Manifest, spec: bytes) -> Bundle:
        """Make a complete bundle; raises AlreadyExists if there is one of that id."""
        folder = f"{self._root}/{manifest.namespace}"
        staging = f"{folder}/{_retired_name(manifest)}"
        try:
            os.mkdir(staging, 0o700)
        except FileNotFoundError:
            os.makedirs(folder, 0o711, exist_ok=True)
            os.mkdir(staging, 0o700)
        path = Path(folder, manifest.id)
        try:
            _write_new(f"{staging}/config.json", spec)
            _write_new(f"{staging}/task.json", _manifest_json(manifest))
            # A crash before this line leaves a dot name, which the next start sweeps.
            os.rename(staging, path)
        except OSError as error:
            self.remove(Path(staging))
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise AlreadyExists(f"bundle of task {manifest.id}") from error
            raise
        return Bundle(path, manifest)

    def retire(self, bundle: Bundle) -> Bundle:
        """Take the bundle's name away, so that the id is free, and return it under the name that it has now."""
        retired = bundle.path.with_name(_retired_name(bundle.manifest))
        os.rename(bundle.path, retired)
        return Bundle(retired, bundle.manifest)

    def list(self) -> tuple[list[Bundle], list[Bundle], list[Path]]:
        """Return the bundles, the retired ones, and directories that are neither."""
        whole: list[Bundle] = []
        retired: list[Bundle] = []
        rubbish: list[Path] = []
        for folder in _folders(self._root):
            for text in _folders(folder):
                path, manifest = Path(text), _read_manifest(text)
                if manifest is None:
                    rubbish.append(path)
                elif path.name.startswith("."):
                    retired.append(Bundle(path, manifest))
                else:
                    whole.append(Bundle(path, manifest))
        return whole, retired, rubbish

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a retired bundle; raises OSError if something is mounted or left where its root was.

        Never descends into that: what a failed unmount left there is a container's files.
        """
        for name in _ROOTS:
            with suppress(FileNotFoundError):
                os.rmdir(f"{path}/{name}")
        _remove_tree(str(path))


def _remove_tree(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(path)


def _names(path: str) -> list[str]:
    """Return the names in a directory that may not be there, in order, without those of files half written."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _folders(path: Path | str) -> list[str]:
    return [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]


def _manifest_json(manifest: Manifest) -> bytes:
    record = {"version": VERSION, **manifest._asdict()}
    if not manifest.shim:  # an older daemon that may come back takes no field that it does not know
        del record["shim"]
    return json.dumps(record).encode()


def _read_manifest(path: str) -> Manifest | None:
    manifest = _read(f"{path}/task.json", _manifest)
    if manifest is None:
        return None
    # A copy that somebody has made is no second bundle: whoever buried it would end the container of the first.
    folder, _, name = path.rpartition("/")
    known = name in (manifest.id, _retired_name(manifest)) and folder.endswith(f"/{manifest.namespace}")
    return manifest if known else None


def _manifest(record: dict[str, Any]) -> Manifest | None:
    return _typed(Manifest, record) if record.pop("version", None) == VERSION else None


def _retired_name(manifest: Manifest) -> str:
    return f".{manifest.id}.{manifest.instance}"


def _typed(kind: Callable[..., T], record: dict[str, Any]) -> T:
    """Return a record as a named tuple; raises TypeError if it is none."""
    types = kind.__annotations__
    for name, value in record.items():
        if type(value) is not types.get(name):
            raise TypeError(f"{name}: {value!r}")
    return kind(**record)


def _read(path: Path | str, make: Callable[[dict[str, Any]], T]) -> T | None:
    """Return what `make` makes of a JSON object from a regular file of sane size, None if there is no such thing.

    Whoever wrote the file may have been cut off, or be somebody else: none of that is to stop the daemon.
    """
    record = _read_json(path)
    if record is None:
        return None
    try:
        return make(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def _read_json(path: Path | str) -> dict[str, Any] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        record = json.loads(os.read(fd, _MAX_RECORD))
    except (ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
    return record if isinstance(record, dict) else None


def _record_name(exec_id: str) -> str:
    return f"exec-{exec_id}.json" if exec_id else "init.json"


def _named_exit(record: dict[str, Any]) -> tuple[str, ExitRecord]:
    return str(record["exec_id"]), ExitRecord(int(record["pid"]), _exit(record))


def _exit(record: dict[str, Any]) -> Exit:
    return Exit(
        exit_status=int(record["exit_status"]),
        exited_at=_EPOCH + timedelta(microseconds=int(record["exited_at_ns"]) // 1000),
        signal=int(record.get("signal", 0)),
        oom_killed=bool(record.get("oom_killed", False)),
        reason=str(record.get("reason", "exited")),
    )


def _write_new(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _write(folder: str, name: str, data: bytes) -> None:
    """Write a file, whole or not at all. Raises FileNotFoundError without its folder."""
    temporary = f"{folder}/.{name}"
    try:
        _write_new(temporary, data)
    except FileExistsError:  # an earlier daemon did not get to its end
        os.unlink(temporary)
        _write_new(temporary, data)
    os.rename(temporary, f"{folder}/{name}")
