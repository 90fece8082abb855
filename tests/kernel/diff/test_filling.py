"""Layers that are large enough for a second process, which fills small files."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyctr_sys import capabilities
from pyctr_wire.errors import ResourceExhausted
from pyctrd.core.mounts import Mount
from support.layers import archive, directory, entry, hard_link, pax, record, symlink
from support.unpacking import Unpacking

pytestmark = pytest.mark.root

DEADLINE = 30
# Makes any layer large enough, and is too large itself to be filled by the second process.
BALLAST = entry("ballast", os.urandom(1 << 20))

PROGRAM = """
import os, sys
from pyctrd.diff import cage
from pyctrd.diff.filling import Filler
from pyctrd.diff.worker import _lock_in
filler = Filler(lambda: _lock_in(cage.MAKING_FILES, 1 << 20))
print("forked", flush=True)
sys.stdin.readline()
try:
    filler.wait()
except (RuntimeError, OSError) as error:
    print(type(error).__name__, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory to unpack into."""
    path = tmp_path / "target"
    path.mkdir()
    return path


def bind(path: Path) -> list[Mount]:
    return [Mount("bind", str(path), "", ("rw", "rbind"))]


@contextmanager
def worker() -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process that has forked its second one, and the pid of that."""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "forked\n"
            yield process, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        finally:
            process.kill()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


async def test_content_owner_mode_attributes_and_times(unpacking: Unpacking, target: Path) -> None:
    """All are as the layer says, in batches and at their ends, for empty files and for the largest small ones."""
    contents = {f"d{n % 7}/f{n}": os.urandom(n * 37 % 5000) for n in range(300)}
    contents |= {"empty": b"", "largest": os.urandom(64 << 10), "larger": os.urandom((64 << 10) + 1)}
    files = [
        entry(name, data, mode=0o600 + n % 64, uid=n % 3, gid=n % 2, mtime=1000 + n)
        for n, (name, data) in enumerate(contents.items())
    ]
    files.append(entry("set", b"x", mode=0o6755, uid=3, gid=4, mtime=7))

    await unpacking.apply(archive([BALLAST, *(directory(f"d{n}") for n in range(7)), *files]), bind(target))

    contents["set"] = b"x"
    for info, _ in files:
        path = target / info.name
        status = path.lstat()
        assert path.read_bytes() == contents[info.name]
        found = status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime
        assert found == (info.mode, info.uid, info.gid, info.mtime), info.name


async def test_extended_attributes(unpacking: Unpacking, target: Path) -> None:
    """They reach the file, those that steer overlayfs excepted."""
    records = record(b"SCHILY.xattr.user.kept", b"v") + record(b"SCHILY.xattr.trusted.overlay.opaque", b"y")
    await unpacking.apply(
        archive([BALLAST])[: (1 << 20) + 512] + pax(records) + archive([entry("f", b"x")]), bind(target)
    )

    assert os.listxattr(target / "f") == ["user.kept"]
    assert os.getxattr(target / "f", "user.kept") == b"v"


async def test_what_comes_later_in_the_layer_wins(unpacking: Unpacking, target: Path) -> None:
    """Also over a file that waits for its content: replaced, deleted, linked, or hidden by a symlink."""
    layer = [
        BALLAST,
        entry("again", b"old"), entry("again", b"new"),
        entry("gone/f", b"x"), entry("gone", b"a file now"),
        entry("link", b"x"), symlink("link", "again"),
        entry("file", b"data", mode=0o600, uid=1, mtime=1000),
        hard_link("name", "file", mode=0o640, uid=2, mtime=2000),
        entry("last", b"x"), entry("last", None), entry("last/f", b"y"),
    ]  # fmt: skip
    await unpacking.apply(archive(layer), bind(target))

    assert (target / "again").read_bytes() == b"new"
    assert (target / "gone").read_bytes() == b"a file now"
    assert (target / "link").is_symlink()
    assert (target / "last/f").read_bytes() == b"y"
    status = (target / "file").stat()
    assert (target / "file").samefile(target / "name")
    assert (target / "file").read_bytes() == b"data"
    assert (status.st_mode & 0o7777, status.st_uid, status.st_mtime) == (0o640, 2, 2000)


async def test_a_full_disk(unpacking: Unpacking) -> None:
    """The entry that did not fit is named, though others have been made since."""
    tmpfs = [Mount("tmpfs", "tmpfs", "", ("size=1600k",))]
    files = [entry(f"f{n}", bytes(60 << 10)) for n in range(50)]
    with pytest.raises(ResourceExhausted, match=r"entry 'f\d+': No space left on device"):
        await unpacking.apply(archive([BALLAST, *files]), tmpfs)


def test_it_is_locked_in_like_the_worker() -> None:
    """Capabilities, system calls, and no file but its socket."""
    with worker() as (process, pid):
        kept = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
        mask = f"{sum(1 << capabilities.NAMES.index('CAP_' + name) for name in kept):016x}"
        eventually(lambda: status_of(pid)["Seccomp"] == "2")

        status = status_of(pid)
        assert [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [
            "0" * 16, mask, mask, mask, "0" * 16,
        ]  # fmt: skip
        assert status["NoNewPrivs"] == "1"
        (link,) = Path(f"/proc/{pid}/fd").iterdir()
        assert link.readlink().name.startswith("socket:")
        assert process.poll() is None


def test_it_ends_with_its_worker() -> None:
    """Even if that is killed."""
    with worker() as (process, pid):
        process.kill()
        process.wait(DEADLINE)
        eventually(lambda: not Path(f"/proc/{pid}").exists() or status_of(pid)["State"].startswith("Z"))


def test_its_end_is_noticed() -> None:
    """A worker whose second process has been killed reports an error instead of a layer with empty files."""
    with worker() as (process, pid):
        os.kill(pid, 9)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() in ("RuntimeError\n", "BrokenPipeError\n", "ConnectionResetError\n")
