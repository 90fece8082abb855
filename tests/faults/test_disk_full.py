"""F15: a file system is full, each alone; what is there goes on, ends and is removed; then all is well again."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from pyctr_sys.mount import MNT_DETACH, mount, umount2
from support.containers import Containers
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.footprint import unchanged
from support.images import busybox_with_applets, image, write_archive

pytestmark = pytest.mark.root

# Room for the image, its layer unpacked, a database, its copies and the reserve.
_SIZE: Final = 40 << 20
_BLOCK: Final = bytes(1 << 20)


class SmallDisk:
    """A file system of its own below a daemon's directory."""

    def __init__(self, path: Path) -> None:
        """Make it at `path`."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        mount("tmpfs", str(path), "tmpfs", 0, f"size={_SIZE},mode=755")
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no block free."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (len(_BLOCK), 4096, 1):
                try:
                    while True:
                        file.write(_BLOCK[:size])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink()

    def close(self) -> None:
        """Unmount it. Raises OSError: EBUSY if somebody uses it."""
        umount2(str(self.path), 0)

    def detach(self) -> None:
        """Unmount it when nobody uses it any more."""
        umount2(str(self.path), MNT_DETACH)


@contextmanager
def daemon_on_small_disk(place: str) -> Iterator[tuple[DaemonProcess, SmallDisk]]:
    """Run a daemon of whose directories one, such as root/content, is a small disk."""
    with DaemonProcess() as daemon:
        daemon.stop()
        disk = SmallDisk(daemon.base / place)
        try:
            daemon.start()
            with unchanged(daemon):
                yield daemon, disk
        finally:
            if daemon.process is not None:
                daemon.stop()
            disk.close()


def pyctr(daemon: DaemonProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyctr", "--address", str(daemon.address), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)


def done(daemon: DaemonProcess, *arguments: str) -> str:
    """Run a command that must succeed and return what it prints."""
    found = pyctr(daemon, *arguments)
    assert found.returncode == 0, f"{' '.join(arguments)}: {found.stderr}\n{daemon.log_text()[-4000:]}"
    return found.stdout.strip()


def refused_or_done(daemon: DaemonProcess, *arguments: str) -> bool:
    """Run a command that may need room: it succeeds, or says why not. Return whether it succeeded."""
    found = pyctr(daemon, *arguments)
    assert found.returncode == 0 or "No space left" in found.stderr or "disk" in found.stderr, found.stderr
    return found.returncode == 0


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = {
        "example.com/busybox:v1": busybox_with_applets(),
        "example.com/other:v1": image({"file": os.urandom(1 << 20)}),
    }
    return write_archive(tmp_path_factory.mktemp("image") / "archive.tar", images)


@pytest.mark.parametrize(
    ("place", "restarted"),
    [("state", False), ("state", True), ("root", False), ("root", True), ("root/content", False),
     ("root/snapshots", False), ("root/logs", False)],
    ids=lambda value: value if isinstance(value, str) else ("daemon restarted" if value else "daemon up"),
)  # fmt: skip
def test_what_is_there_can_be_ended_and_removed(archive: Path, place: str, restarted: bool) -> None:
    with daemon_on_small_disk(place) as (daemon, disk):
        done(daemon, "image", "import", str(archive))
        done(daemon, "run", "-d", "--network", "none", "--name", "steady", "example.com/busybox:v1", "sleep", "1000")
        done(daemon, "run", "-d", "--network", "none", "--name", "brief", "example.com/busybox:v1",
             "sh", "-c", "read x; exit 7")  # fmt: skip

        disk.fill()
        if restarted:
            daemon.restart()
        assert set(done(daemon, "ps", "--format", "{{.Names}}").split()) >= {"steady"}
        assert done(daemon, "wait", "brief") == "7"
        made = refused_or_done(daemon, "run", "-d", "--network", "none", "--name", "more", "example.com/busybox:v1",
                               "sleep", "1000")  # fmt: skip
        refused_or_done(daemon, "exec", "steady", "true")
        disk.fill()
        done(daemon, "stop", "-t", "0", "steady")
        assert done(daemon, "wait", "steady") == "137"
        disk.fill()
        done(daemon, "rm", "steady", "brief")
        if made or "more" in done(daemon, "ps", "-a", "--format", "{{.Names}}"):
            done(daemon, "rm", "-f", "more")
        disk.fill()
        done(daemon, "image", "rm", "example.com/other:v1")
        disk.fill()
        done(daemon, "gc")

        disk.free()
        assert done(daemon, "run", "--rm", "--network", "none", "example.com/busybox:v1", "echo", "works") == "works"
        done(daemon, "image", "rm", "example.com/busybox:v1")
        done(daemon, "gc")
        assert done(daemon, "ps", "-a", "-q") == ""
        assert done(daemon, "content", "ls", "-q") == ""
        assert not list((daemon.state / "tasks").glob("*/*"))


def test_log_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    """The container never waits for its log; a line says how many are missing, and the rest is written again."""
    with DaemonProcess() as daemon, unchanged(daemon), Containers(daemon) as containers:
        disk = SmallDisk(daemon.base / "logs")
        log = disk.path / "c.log"
        script = (
            "busybox seq 101 110; read x </gate; busybox seq 100001 190000; echo x >/done; read x </last; echo the end"
        )
        gate, last = containers.gate("gate"), containers.gate("last")
        try:
            containers.define("c", "sh", "-c", script)
            containers.create("c", stdout=f"json-file://{log}", stderr=f"json-file://{log}")
            containers.start("c")
            wait_until(lambda: '"110' in log.read_text(), "it writes")

            disk.fill()
            gate.open()
            wait_until((containers.rootfs / "done").exists, "the container goes on")
            disk.free()
            wait_until(lambda: "log lines dropped" in log.read_text(), "what is missing is counted")
            last.open()
            assert containers.wait("c").status == 0
            wait_until(lambda: "the end" in log.read_text(), "the rest is written")

            lines = [json.loads(line)["log"] for line in log.read_text().splitlines()]
            (marker,) = [line for line in lines if "log lines dropped" in line]
            dropped = int(marker.removeprefix("[pyctr: ").split()[0])
            assert "No space left" in marker
            assert len(lines) - 1 + dropped == 10 + 90_000 + 1
            containers.remove("c")
        finally:
            disk.detach()
