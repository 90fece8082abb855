"""An earlier version is replaced by this one, and this one by an earlier: containers and sessions do not notice."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from support.containers import Containers
from support.daemon_process import DEADLINE, DaemonProcess
from support.kept_versions import CURRENT, KEPT, Environment, Version

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

*OLDER, NEWEST = KEPT
ALL = [NEWEST, *(pytest.param(version, marks=pytest.mark.full) for version in OLDER)]
LOOP = 'while read -r line; do echo "got $line"; [ "$line" = end ] && exit 43; done; exit 9'


@contextmanager
def running(environment: Environment) -> Iterator[tuple[DaemonProcess, Containers]]:
    with DaemonProcess(python=environment.python) as daemon, Containers(daemon) as containers:
        yield daemon, containers


class Session:
    """An attached `ctr run` whose program answers each line."""

    def __init__(self, containers: Containers, id: str) -> None:
        daemon = containers.daemon
        command = ["ctr", "--address", str(daemon.address), "run", "--rm", "--rootfs", str(containers.rootfs), id]
        self._process = subprocess.Popen(
            [*command, "/bin/busybox", "sh", "-c", LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def ends_with(self) -> int:
        assert self.says("end") == "got end"
        self._process.communicate()
        return self._process.wait(DEADLINE)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("version", ALL, ids=lambda version: version.name)
def test_containers_and_sessions_outlive_the_change_both_ways(version: Version, tmp_path: Path) -> None:
    """Old shims under the new daemon, new shims under the old one, and every exit is told exactly."""
    environment = Environment(tmp_path / "environment")
    environment.install(version)
    with running(environment) as (daemon, containers):
        sessions = [Session(containers, "attached-to-old")]
        try:
            assert sessions[0].says("one") == "got one"
            containers.run("old", "sleep", "1000")
            waiting = containers.future("Wait", tasks_pb2.WaitRequest(container_id="old"), timeout=DEADLINE * 4)

            environment.install(CURRENT)
            daemon.upgrade()

            assert sessions[0].says("two") == "got two"
            containers.exec("old", "e1", "sh", "-c", "exit 17")
            assert containers.wait("old", "e1").status == 17
            containers.run("new", "sleep", "1000")
            containers.run("later", "sh", "-c", "sleep 1000 & wait")
            containers.kill("old")
            assert waiting.result().exit_status == 137
            sessions.append(Session(containers, "attached-to-new"))
            assert sessions[1].says("one") == "got one"

            environment.install(version)
            if version.schema < CURRENT.schema:
                assert_refused(daemon)
                environment.install(CURRENT)
            else:
                daemon.upgrade()

            assert sessions[0].says("three") == "got three"
            assert sessions[1].says("two") == "got two"
            containers.exec("new", "e2", "sh", "-c", "exit 18")
            assert containers.wait("new", "e2").status == 18
            containers.kill("new")
            assert containers.wait("new").status == 137

            assert [session.ends_with() for session in sessions] == [43, 43]

            daemon.restart()
            containers.close()
            containers.kill("later")
            assert containers.wait("later").status == 137
        finally:
            for session in sessions:
                session.close()


def test_what_is_installed_may_change_when_an_upgrade_is_done(tmp_path: Path) -> None:
    """The program that serves by then needs nothing of it."""
    environment = Environment(tmp_path / "environment")
    environment.install(CURRENT)
    with running(environment) as (daemon, containers):
        containers.run("old", "sleep", "1000")
        daemon.upgrade()
        environment.uninstall()

        assert daemon.ctr("images", "ls")
        containers.run("new", "sleep", "1000")
        for id in ("old", "new"):
            containers.exec(id, "e1", "sh", "-c", "exit 17")
            assert containers.wait(id, "e1").status == 17
            containers.kill(id)
            assert containers.wait(id).status == 137


def assert_refused(daemon: DaemonProcess) -> None:
    """The older program does not open what it does not know: the newer one goes on, and says so."""
    before = daemon.pid
    done = subprocess.run([*daemon.command, "upgrade"], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode != 0
    assert "what is installed now knows schemas up to version 1, the database has version 2" in done.stderr
    assert daemon.pid == before
