"""`pyctr checkpoint` and `pyctr start --checkpoint`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.criu import require_criu
from support.daemon_process import wait_until
from support.pyctr_command import Pyctr, running_pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done"


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    with pytest.MonkeyPatch.context() as patch:
        require_criu(patch)
        with running_pyctr(["sh", "sleep"], "[checkpoint]\nenabled = true\n") as command:
            yield command


def last(pyctr: Pyctr, name: str) -> int:
    """Return the last number that a container has written."""
    words = pyctr("logs", name).split()
    return int(words[-1]) if words else 0


def test_a_container_is_stopped_and_goes_on(pyctr: Pyctr, tmp_path: Path) -> None:
    images = tmp_path / "images"
    pyctr("run", "--detach", "--network", "none", "--name", "counter", "demo", "sh", "-c", COUNT)
    wait_until(lambda: last(pyctr, "counter") > 3, "it counts")

    pyctr("checkpoint", "counter", str(images))

    assert pyctr.state("counter") == "exited"
    before = last(pyctr, "counter")
    assert "container counter is not running" in pyctr.run("checkpoint", "counter", str(tmp_path / "more")).stderr
    pyctr("start", "--checkpoint", str(images), "counter")
    wait_until(lambda: last(pyctr, "counter") > before, "it counts on")
    numbers = [int(word) for word in pyctr("logs", "counter").split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "must be stopped to be restored" in pyctr.run("start", "--checkpoint", str(images), "counter").stderr
    pyctr("rm", "--force", "counter")


def test_a_container_may_go_on_meanwhile(pyctr: Pyctr, tmp_path: Path) -> None:
    pyctr("run", "--detach", "--network", "none", "--name", "counter", "demo", "sh", "-c", COUNT)
    wait_until(lambda: last(pyctr, "counter") > 3, "it counts")

    pyctr("checkpoint", "--leave-running", "counter", str(tmp_path / "images"))

    assert "inventory.img" in os.listdir(tmp_path / "images")
    assert "is not empty" in pyctr.run("checkpoint", "counter", str(tmp_path / "images")).stderr
    before = last(pyctr, "counter")
    wait_until(lambda: last(pyctr, "counter") > before, "it counts on")
    pyctr("rm", "--force", "counter")
