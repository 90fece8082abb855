"""The worker process: what it may do, how it ends, and what it refuses to do for how long."""

import asyncio
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zstandard

from pyctr_sys import capabilities
from pyctr_wire.errors import DataLoss, Internal, InvalidArgument, NotFound, ResourceExhausted, UnknownError
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.mounts import Mount
from pyctrd.diff.differ import Differ
from pyctrd.diff.limits import Limits
from support.layers import END, archive, directory, entry, header, pax, record, symlink
from support.stores import NS
from support.unpacking import TAR, Unpacking

pytestmark = pytest.mark.root

DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
DEADLINE = 30


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An empty directory to unpack into."""
    path = tmp_path / "target"
    path.mkdir()
    return path


def bind(path: Path) -> list[Mount]:
    return [Mount("bind", str(path), "", ("rw", "rbind"))]


def workers() -> list[int]:
    """Return the pids of this process's workers."""
    me = str(os.getpid())
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_worker(path.name) and _parent(path) == me]


def _parent(process: Path) -> str:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_worker(pid: str) -> bool:
    try:
        return b"pyctrd.diff.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


class Pipe:
    """A blob that is still being written: a worker waits for the rest of it."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]:
        return os.dup(self.read_fd), 1 << 30


@contextmanager
def waiting_blob(unpacking: Unpacking) -> Iterator[Pipe]:
    """Let the differ read from a pipe."""
    pipe = Pipe()
    unpacking.differ._content = pipe  # type: ignore[assignment]
    try:
        yield pipe
    finally:
        os.close(pipe.read_fd)
        os.close(pipe.write_fd)


def status_of(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


async def test_a_worker_at_work_has_given_up_everything_else(unpacking: Unpacking, target: Path) -> None:
    """Capabilities, system calls, files of the host; cancelled, it is gone before the caller goes on."""
    with waiting_blob(unpacking) as blob:
        layer = Descriptor(TAR, "sha256:" + "0" * 64, 0)
        applying = asyncio.ensure_future(unpacking.differ.apply(NS, layer, bind(target)))
        os.write(blob.write_fd, archive([entry("first", b"x")])[:1024])
        await eventually((target / "first").exists)
        (pid,) = workers()

        status = status_of(pid)
        kept = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
        mask = f"{sum(1 << capabilities.NAMES.index('CAP_' + name) for name in kept):016x}"
        assert [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [
            "0" * 16, mask, mask, mask, "0" * 16,
        ]  # fmt: skip
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert os.listdir(f"/proc/{pid}/root") == ["target"]
        assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        mount_points = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert sorted(mount_points) == ["/", "/target"]

        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        assert not Path(f"/proc/{pid}").exists()


async def test_a_killed_worker_is_reported(unpacking: Unpacking, target: Path) -> None:
    """With its signal; the next layer gets another worker."""
    with waiting_blob(unpacking):
        layer = Descriptor(TAR, "sha256:" + "0" * 64, 0)
        applying = asyncio.ensure_future(unpacking.differ.apply(NS, layer, bind(target)))
        await eventually(lambda: bool(workers()) and status_of(workers()[0])["Seccomp"] == "2")
        os.kill(workers()[0], 9)
        with pytest.raises(
            Internal, match=r"failed to unpack layer sha256:0+: the worker process was killed by SIGKILL"
        ):
            await applying
    unpacking.differ._content = unpacking.stores.content
    await unpacking.apply(archive([entry("f", b"")]), bind(target))


async def test_a_worker_does_not_outlive_its_daemon(tmp_path: Path, target: Path) -> None:
    """Killed, the daemon takes its workers with it, also one in the middle of a layer and a spare one."""
    program = f"""
import asyncio, os
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.mounts import Mount
from pyctrd.diff.differ import Differ
from pyctrd.offload import Offload
class Blob:
    def open_blob(self, ns, digest):
        return os.dup(0), 1 << 30
async def main():
    differ = Differ(Blob(), Offload(2))
    await differ.warm()
    mounts = [Mount("bind", {str(target)!r}, "", ("rw",))]
    await differ.apply("test", Descriptor({TAR!r}, "sha256:0", 0), mounts)
asyncio.run(main())
"""
    daemon = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert daemon.stdin is not None
    try:
        daemon.stdin.write(archive([entry("first", b"x")])[:1024])
        daemon.stdin.flush()
        await eventually((target / "first").exists)
        children = {
            pid for path in Path(f"/proc/{daemon.pid}/task").glob("*/children") for pid in path.read_text().split()
        }
        assert children
    finally:
        daemon.kill()
        daemon.wait()
    daemon.stdin.close()
    await eventually(lambda: not any(_is_worker(pid) for pid in children))


async def test_a_spare_worker_that_died_is_not_used(unpacking: Unpacking, target: Path) -> None:
    """Nobody notices."""
    await unpacking.differ.warm()
    await eventually(lambda: len(workers()) == 1)  # once it has executed its program
    (pid,) = workers()
    os.kill(pid, 9)
    await eventually(lambda: status_of(pid)["State"].startswith("Z"))
    await unpacking.apply(archive([entry("f", b"")]), bind(target))
    assert (target / "f").exists()


async def test_no_worker_is_left_when_the_differ_is_closed(unpacking: Unpacking, target: Path) -> None:
    """Also the spare one ends."""
    await unpacking.apply(archive([entry("f", b"")]), bind(target))
    await eventually(lambda: len(workers()) == 1)
    unpacking.differ.close()
    assert workers() == []


LIMITS = Limits(max_bytes=8 << 20, max_ratio=10, free_bytes=1 << 20)
ZEROS = bytes(4 << 20)


@pytest.mark.parametrize(
    ("suffix", "blob"),
    [
        ("+gzip", gzip.compress(header(size=b"%011o\0" % len(ZEROS)) + ZEROS + END)),
        ("+gzip", b"".join(gzip.compress(ZEROS[: 1 << 20]) for _ in range(20))),
        ("+zstd", zstandard.compress(header(size=b"%011o\0" % len(ZEROS)) + ZEROS + END)),
        ("+zstd", b"".join(zstandard.compress(ZEROS[: 1 << 20]) for _ in range(20))),
        ("", header(size=b"%011o\0" % (9 << 20)) + ZEROS + ZEROS + ZEROS),
        ("", pax(record(b"GNU.sparse.map", b"0,0") + record(b"GNU.sparse.size", b"9000000")) + header() + END),
    ],
    ids=["gzip", "gzip members", "zstd", "zstd frames", "too large", "holes"],
)
async def test_decompression_bombs(unpacking: Unpacking, target: Path, suffix: str, blob: bytes) -> None:
    """Refused when they pass what a blob of their size may have, not when the disk is full."""
    unpacking.differ = Differ(unpacking.stores.content, unpacking.offload, LIMITS)

    with pytest.raises(ResourceExhausted, match=r"failed to unpack layer sha256:.* bytes"):
        await unpacking.apply(blob, bind(target), TAR + suffix)

    assert sum(path.lstat().st_blocks for path in target.rglob("*")) * 512 <= 2 << 20


async def test_zstd_windows_are_limited(unpacking: Unpacking, target: Path) -> None:
    """A frame that wants gigabytes of memory is refused."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30)
    blob = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = blob.compress(archive([entry("f", b"x" * 100)])) + blob.flush()

    with pytest.raises(InvalidArgument, match="zstd"):
        await unpacking.apply(data, bind(target), TAR + "+zstd")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize("media_type", [f"{TAR}+gzip", f"{TAR}+zstd", f"{DOCKER}.gzip", f"{DOCKER}.zstd", DOCKER])
async def test_a_layer_under_another_ones_media_type(
    unpacking: Unpacking, target: Path, compress: Callable[[bytes], bytes], media_type: str
) -> None:
    """Its bytes tell what it is compressed with."""
    layer = archive([entry("f", b"text")])

    applied = await unpacking.apply(compress(layer), bind(target), media_type)

    assert applied == Descriptor(TAR, f"sha256:{hashlib.sha256(layer).hexdigest()}", len(layer))
    assert (target / "f").read_text() == "text"


DAMAGED = {
    "gzip cut short": ("+gzip", gzip.compress(archive([entry("f", os.urandom(100000))]))[:-20]),
    "gzip with a wrong checksum": ("+gzip", gzip.compress(b"x" * 100)[:-8] + bytes(8)),
    "no gzip": ("+gzip", b"x" * 512),
    "gzip, then something else": ("+gzip", gzip.compress(archive([])) + b"garbage"),
    "zstd cut short": ("+zstd", zstandard.compress(archive([entry("f", b"x" * 100000)]))[:-3]),
    "no zstd": ("+zstd", b"x" * 512),
    "gzip that is not called so": ("", gzip.compress(archive([entry("f", b"")]))),
    "no archive": ("", b"x" * 512),
    "cut short": ("", archive([entry("f", b"x" * 10000)])[:2000]),
}


@pytest.mark.parametrize(("suffix", "blob"), DAMAGED.values(), ids=DAMAGED.keys())
async def test_damaged_blobs(unpacking: Unpacking, target: Path, suffix: str, blob: bytes) -> None:
    """Named, and taken for what they are."""
    with pytest.raises(InvalidArgument, match="failed to unpack layer sha256:"):
        await unpacking.apply(blob, bind(target), TAR + suffix)


@pytest.mark.parametrize("suffix", ["+gzip", "+zstd"])
async def test_a_blob_damaged_on_disk(unpacking: Unpacking, target: Path, suffix: str) -> None:
    """F20: told apart from an archive that never was good, and dropped, so that it is fetched again."""
    compress: dict[str, Callable[[bytes], bytes]] = {"+gzip": gzip.compress, "+zstd": zstandard.compress}
    blob = compress[suffix](archive([entry("f", os.urandom(1000))]))
    digest = unpacking.stores.content.write_blob(NS, "ref", blob)
    path = unpacking.stores.blob_file(digest)
    path.chmod(0o600)
    path.write_bytes(blob[:10] + bytes([blob[10] ^ 255]) + blob[11:])
    layer = Descriptor(TAR + suffix, digest, len(blob))
    with pytest.raises(DataLoss, match=f"content {digest} is damaged, pull it again"):
        await unpacking.differ.apply(NS, layer, bind(target))
    with pytest.raises(NotFound):
        await unpacking.differ.apply(NS, layer, bind(target))


async def test_what_was_asked_for_must_be_there(unpacking: Unpacking, target: Path) -> None:
    """A blob, a media type, a directory."""
    with pytest.raises(NotFound):
        await unpacking.differ.apply(NS, Descriptor(TAR, "sha256:" + "0" * 64, 0), bind(target))
    with pytest.raises(UnknownError, match="no processor for media-type"):
        await unpacking.apply(b"", bind(target), "application/octet-stream")
    with pytest.raises(UnknownError, match="No such file or directory"):
        await unpacking.apply(archive([]), bind(target / "nowhere"))


async def test_a_place_with_a_nul_in_its_name_is_not_there(unpacking: Unpacking, target: Path) -> None:
    with pytest.raises(UnknownError, match="No such file"):
        await unpacking.differ.diff(NS, [Mount("bind", "a\0b", "", ("rbind",))], bind(target))


async def test_a_full_disk(unpacking: Unpacking, target: Path) -> None:
    """ResourceExhausted, with the entry's name; also on a mount that only the worker sees."""
    tmpfs = [Mount("tmpfs", "tmpfs", "", ("size=64k",))]
    with pytest.raises(ResourceExhausted, match="entry 'f': No space left on device"):
        await unpacking.apply(archive([entry("f", bytes(1 << 20))]), tmpfs)


async def test_cve_2026_17106_directories_that_move_while_a_layer_is_unpacked(
    unpacking: Unpacking, tmp_path: Path, target: Path
) -> None:
    """Somebody swaps a directory for a symlink all the time: nothing ever lands where it leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "d").mkdir()
    (target / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one, other in (("d", "kept"), ("link", "d"), ("d", "link"), ("kept", "d")):
                with suppress(OSError):  # the worker has put something there
                    os.rename(target / one, target / other)

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        layer = [
            item for n in range(1500) for item in (directory("d"), entry(f"d/f{n}", b"x"), entry(f"d/{n}/f", b"x"))
        ]
        with suppress(InvalidArgument, UnknownError):  # it may fail; it may not escape
            await unpacking.apply(archive(layer), bind(target))
    finally:
        stop.set()
        racer.join()
    assert list(outside.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["/outside/file", "link/file", "link/../file", "up/file"])
async def test_cve_2025_47290_entries_that_want_out(
    unpacking: Unpacking, tmp_path: Path, target: Path, name: str
) -> None:
    """Symlinks to the host's directories lead to directories of the layer's own."""
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = [symlink("outside", str(outside)), symlink("link", str(outside)), symlink("up", "../" * 30 + str(outside))]
    await unpacking.apply(archive([*layer, entry(name, b"x")]), bind(target))

    assert list(outside.iterdir()) == []
    assert any(path.read_bytes() == b"x" for path in target.rglob("file"))
