"""Real ctr programs save containers and restore them, on a daemon that allows it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support.criu import require_criu
from support.ctr_client import DEBIANS, Ctr, namespace_with, program
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import Footprint
from support.images import BuiltImage, busybox_with_applets

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.timeout(180),
    pytest.mark.skipif(DEBIANS is None, reason="ctr is not installed (Debian: containerd)"),
]

IMAGE: Final[BuiltImage] = busybox_with_applets()
NAME: Final = "example.com/busybox:v1"
SAVED: Final = "example.com/saved:v1"
WRITE: Final = "echo $i > /tmp/next; busybox mv /tmp/next /tmp/count"
COUNT: Final = f"mkdir -p /tmp; i=0; while true; do i=$((i+1)); {WRITE}; sleep 0.05; done"


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with pytest.MonkeyPatch.context() as patch:
        require_criu(patch)
        with DaemonProcess(config="[checkpoint]\nenabled = true\n") as daemon:
            yield daemon


@pytest.fixture(params=["1.6", "2"])
def ctr(request: pytest.FixtureRequest, daemon: DaemonProcess) -> Iterator[Ctr]:
    """A ctr program with an image; what it makes beside that is gone afterwards."""
    with namespace_with(daemon, NAME, IMAGE) as namespace:
        ctr = Ctr(daemon, program(request.param), namespace)
        before = Footprint(daemon)
        yield ctr
        for name in names(ctr) - {NAME}:
            ctr("images", "rm", "--sync", name)
        before.assert_unchanged()
        ctr("images", "rm", "--sync", NAME)


def names(ctr: Ctr) -> set[str]:
    """Return the names of all images."""
    return set(ctr("images", "ls", "-q").split())


def run(ctr: Ctr, id: str) -> None:
    """Run a container that counts, without streams of ours."""
    ctr("run", "--detach", "--null-io", NAME, id, "sh", "-c", COUNT)
    wait_until(lambda: counted(ctr, id) > 3, "the container counts")


def counted(ctr: Ctr, id: str) -> int:
    """Return how far a container has counted."""
    path = Path(f"/proc/{next(row[1] for row in ctr.rows('tasks', 'ls') if row[0] == id)}/root/tmp/count")
    wait_until(lambda: path.exists() and path.read_text().strip().isdigit(), "the container has written down a number")
    return int(path.read_text().strip() or 0)


def goes_on(ctr: Ctr, id: str, before: int) -> None:
    """Wait until a container has counted further."""
    wait_until(lambda: counted(ctr, id) > before, "the container counts on")


def status(ctr: Ctr, id: str) -> str:
    return next(row[2] for row in ctr.rows("tasks", "ls") if row[0] == id)


def remove(ctr: Ctr, id: str) -> None:
    ctr.run("tasks", "rm", "--force", id)
    ctr("containers", "rm", id)


def test_a_container_is_saved_as_an_image_and_restored(ctr: Ctr) -> None:
    run(ctr, "c1")

    ctr("containers", "checkpoint", "--task", "--rw", "--image", "c1", SAVED)

    before = counted(ctr, "c1")
    goes_on(ctr, "c1", before)
    remove(ctr, "c1")
    ctr("containers", "restore", "--rw", "--live", "c1", SAVED)
    assert status(ctr, "c1") == "RUNNING"
    goes_on(ctr, "c1", before)
    # CVE-2026-50195: no name but the one that was asked for.
    assert names(ctr) == {NAME, SAVED}
    remove(ctr, "c1")


def test_a_task_is_saved_and_ends(ctr: Ctr) -> None:
    run(ctr, "c1")

    image = ctr("tasks", "checkpoint", "--exit", "c1").strip()

    wait_until(lambda: status(ctr, "c1") == "STOPPED", "the task has ended")
    assert names(ctr) == {NAME, image}
    assert os.listdir(ctr.daemon.root / "checkpoints") == []
    remove(ctr, "c1")


def test_a_task_is_saved_in_a_directory(ctr: Ctr, tmp_path: Path) -> None:
    run(ctr, "c1")

    ctr("tasks", "checkpoint", "--image-path", str(tmp_path / "images"), "c1")

    assert {"inventory.img", "descriptors.json"} <= set(os.listdir(tmp_path / "images"))
    goes_on(ctr, "c1", counted(ctr, "c1"))
    remove(ctr, "c1")
