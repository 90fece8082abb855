"""A state directory that outlived its boot, as one on a disk does: nothing in it that names a process is believed."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys.pidfd import start_ticks
from pyctr_wire.containerd.types.task import task_pb2
from support.containers import Containers, hierarchies
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import unchanged

pytestmark = pytest.mark.root


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any container."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def end_everything(containers: Containers, *ids: str) -> None:
    """End daemon, shims and containers as a reboot does."""
    pids = [containers.shim_pid(id) for id in ids]
    pids += [json.loads((containers.bundles / id / "state.json").read_text())["pid"] for id in ids]
    containers.daemon.kill()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "all have ended")
    for path in (hierarchy / containers.group / id for hierarchy in hierarchies() for id in ids):
        if path.exists():
            path.rmdir()


def say_another_boot(daemon: DaemonProcess) -> None:
    (daemon.state / "boot_id").write_text("00000000-0000-0000-0000-000000000000\n")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("torn", [(), ("shim.json", "state.json", "asleep")])
def test_pids_of_an_earlier_boot_are_nobodys(stranger: "subprocess.Popen[bytes]", torn: tuple[str, ...]) -> None:
    """Whoever has them now stays; the container's end is unknown; files that the power cut emptied change nothing."""
    with DaemonProcess() as daemon, unchanged(daemon), Containers(daemon) as containers:
        containers.run("web", "sleep", "1000")
        containers.run("over", "sh", "-c", "exit 7")
        containers.wait("over")
        containers.exec("web", "more", "sleep", "1000")
        bundle = containers.bundles / "web"
        end_everything(containers, "web", "over")
        say_another_boot(daemon)
        change(bundle / "state.json", pid=stranger.pid, start_ticks=start_ticks(stranger.pid))
        change(bundle / "shim.json", pid=stranger.pid)
        (bundle / "exits").mkdir(exist_ok=True)
        for name in torn:
            (bundle / name).write_bytes(b"")

        daemon.start()

        assert stranger.poll() is None
        assert containers.status("over") == task_pb2.STOPPED
        assert containers.delete("over").status == 7
        if torn:  # that there ever was a task, nothing tells
            assert containers.status("web") is None
        else:
            assert containers.status("web") == task_pb2.STOPPED
            assert containers.wait("web").status == 255
            assert containers.wait("web", "more").status == 255
            assert json.loads((bundle / "exits/init.json").read_text())["reason"] == "lost in a reboot"
            assert containers.delete("web").status == 255
        containers.create("web")
        containers.start("web")
        assert stranger.poll() is None


def test_the_next_start_of_the_same_boot_finds_what_runs() -> None:
    with DaemonProcess() as daemon, unchanged(daemon), Containers(daemon) as containers:
        say_another_boot(daemon)
        daemon.restart()
        pid = containers.run("web", "sleep", "1000")

        daemon.restart()

        assert containers.status("web") == task_pb2.RUNNING
        os.kill(pid, 0)
