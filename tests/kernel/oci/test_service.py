"""A container that is a service of systemd's: `pyctr-oci` hands on its sockets, and passes on that it is ready."""

import array
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from support.oci_bundle import Lab, eventually, is_mounted, needs_systemd
from support.oci_command import Command, detached
from support.patience import DEADLINE

pytestmark = pytest.mark.root


class Manager:
    """Stands for systemd: a socket for notifications."""

    def __init__(self, path: str) -> None:
        self.environment = {**os.environ, "NOTIFY_SOCKET": path}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE)
        self._socket.bind(path.replace("@", "\0"))

    def next(self) -> str:
        """Return what it is told next; a barrier is passed."""
        text, messages, _, _ = self._socket.recvmsg(1000, 1000)
        for _, _, data in messages:
            fds = array.array("i")
            fds.frombytes(data)
            for fd in fds:
                os.close(fd)
        return text.decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = f"{tmp_path}/manager" if request.param == "path" else f"@{tmp_path}"
    made = Manager(path)
    yield made
    made.close()


def tell(container: Path, text: str) -> None:
    """Send what a service in a container would: busybox has nothing that does. Returns once there is room for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE)
        client.connect(str(container / "notify/notify.sock"))
        client.send(text.encode())


def await_barrier(container: Path) -> None:
    """Return when the barrier that is sent has fallen."""
    read_fd, write_fd = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(str(container / "notify/notify.sock"))
        socket.send_fds(client, [b"BARRIER=1"], [write_fd])
    os.close(write_fd)
    assert select.select([read_fd], [], [], DEADLINE)[0]
    os.close(read_fd)


def service(lab: Lab) -> Path:
    """Return the bundle of a container that shows what it has been given, and goes on."""
    return lab.bundle(lab.spec("sh", "-c", "echo $NOTIFY_SOCKET; stat -c %F:%a $NOTIFY_SOCKET; exec sleep 1000"))


GIVEN = "/run/notify/notify.sock\nsocket:777\n"


def test_a_detached_one_is_watched_itself_once_it_is_ready(lab: Lab, oci: Command, manager: Manager) -> None:
    bundle, output = service(lab), lab.base / "output"
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", "-d", "--bundle", str(bundle), "c1"]

    with output.open("wb") as file, subprocess.Popen(line, env=manager.environment, stdout=file) as run:
        eventually(lambda: output.read_text() == GIVEN)
        tell(oci.root / "c1", "STATUS=soon")
        assert run.poll() is None
        refused = oci("checkpoint", "--image-path", str(lab.base / "images"), "c1")
        assert "cannot checkpoint a container with $NOTIFY_SOCKET" in refused.stderr
        tell(oci.root / "c1", "READY=1\nSTATUS=here")

        pid = oci.pid("c1")
        assert manager.next() == f"READY=1\nMAINPID={pid}"
        assert manager.next() == "BARRIER=1"
        assert run.wait(DEADLINE) == 0


def test_one_in_the_foreground_is_watched_by_its_runtime(lab: Lab, oci: Command, manager: Manager) -> None:
    bundle, output = service(lab), lab.base / "output"
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", "--bundle", str(bundle), "c1"]

    with (
        output.open("wb") as file,
        subprocess.Popen(line, env=manager.environment, stdout=file, stderr=subprocess.PIPE, text=True) as run,
    ):
        eventually(lambda: output.read_text() == GIVEN)
        tell(oci.root / "c1", "READY=1")
        assert manager.next() == f"READY=1\nMAINPID={run.pid}"
        assert manager.next() == "BARRIER=1"
        for number in range(600):  # more than a socket holds
            tell(oci.root / "c1", f"STATUS={number}")
        await_barrier(oci.root / "c1")
        assert run.poll() is None
        tell(oci.root / "c1", "STOPPING=1")
        os.kill(oci.pid("c1"), signal.SIGKILL)
        assert run.wait(DEADLINE) == 137
        assert run.stderr is not None
        assert run.stderr.read() == ""

    assert not list(oci.root.iterdir())


def test_a_manager_that_is_gone_does_no_harm(lab: Lab, oci: Command, manager: Manager) -> None:
    bundle, output = service(lab), lab.base / "output"
    manager.environment["NOTIFY_SOCKET"] = "/nowhere"
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", "-d", "--bundle", str(bundle), "c1"]

    with (
        output.open("wb") as file,
        subprocess.Popen(line, env=manager.environment, stdout=file, stderr=subprocess.PIPE, text=True) as run,
    ):
        eventually(lambda: output.read_text() == GIVEN)
        tell(oci.root / "c1", "READY=1")
        assert run.wait(DEADLINE) == 0
        assert run.stderr is not None
        os.set_blocking(run.stderr.fileno(), False)  # the container has it, too
        assert run.stderr.readline() == "pyctr-oci: $NOTIFY_SOCKET: No such file or directory\n"

    assert oci.status("c1") == "running"


def test_what_the_container_mounts_on_its_socket_stays_inside(lab: Lab, oci: Command, manager: Manager) -> None:
    """And so nobody removes through it."""
    script = "mkdir /kept; touch /kept/file; mount -o bind /kept /run/notify && echo mounted; exec sleep 1000"
    spec = lab.spec("sh", "-c", script)
    spec["linux"]["rootfsPropagation"] = "shared"
    spec["process"]["capabilities"] = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}
    mount(str(lab.base), str(lab.base), None, MountFlag.BIND)
    mount(None, str(lab.base), None, MountFlag.SHARED)
    bundle, output = lab.bundle(spec), lab.base / "output"

    with output.open("wb") as file:
        started = oci("create", "--bundle", str(bundle), "c1", env=manager.environment, stdout=file, stderr=file)
        assert started.returncode == 0, output.read_text()
    assert oci("start", "c1").returncode == 0
    eventually(lambda: output.read_text() == "mounted\n")

    assert not is_mounted(oci.root / "c1/notify")
    assert oci("delete", "--force", "c1").returncode == 0
    assert (bundle / "rootfs/kept/file").exists()
    assert not list(oci.root.iterdir())
    umount2(str(lab.base), MNT_DETACH)


def test_who_starts_a_created_one_waits_for_it(lab: Lab, oci: Command, manager: Manager) -> None:
    bundle = service(lab)
    assert oci("create", "--bundle", str(bundle), "c1", env=manager.environment, **detached()).returncode == 0
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "start", "c1"]

    with subprocess.Popen(line, env=manager.environment) as start:
        eventually(lambda: oci.status("c1") == "running")
        again = oci("start", "c1", env=manager.environment)
        assert again.stderr == "pyctr-oci: cannot start an already running container\n"
        tell(oci.root / "c1", "READY=1")
        assert manager.next() == f"READY=1\nMAINPID={oci.pid('c1')}"
        assert manager.next() == "BARRIER=1"
        assert start.wait(DEADLINE) == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_one_that_ends_before_it_is_ready_is_not_waited_for(lab: Lab, oci: Command, manager: Manager) -> None:
    one, other = lab.bundle(lab.spec("true")), lab.bundle(lab.spec("true"))

    assert oci("run", "-d", "--bundle", str(one), "c1", env=manager.environment, **detached()).returncode == 0
    assert oci("run", "--bundle", str(other), "c2", env=manager.environment).returncode == 0

    assert (oci.root / "c1/notify/notify.sock").exists()
    assert oci("delete", "c1").returncode == 0
    assert not list(oci.root.iterdir())


def test_without_a_manager_there_is_no_socket(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sh", "-c", "echo -$NOTIFY_SOCKET$LISTEN_FDS-; ls /run"))

    assert oci("run", "--bundle", str(bundle), "c1").stdout == "--\n"


@pytest.mark.parametrize("preserved", [0, 1])
def test_sockets_are_handed_on_and_other_descriptors_behind_them(lab: Lab, oci: Command, preserved: int) -> None:
    script = "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4; ls /proc/self/fd | wc -l; cat <&5"
    bundle = lab.bundle(lab.spec("sh", "-c", f"{script} 2>/dev/null; true"))
    runtime = f"{sys.executable} -m pyctr_shim.oci --root {oci.root} run --preserve-fds {preserved}"
    for name in ("one", "two", "three"):
        (lab.base / name).write_text(f"{name}\n")
    redirections = f"3<{lab.base}/one 4<{lab.base}/two 5<{lab.base}/three"
    line = f"LISTEN_FDS=2 LISTEN_PID=$$ exec {runtime} --bundle {bundle} c1 {redirections}"

    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, timeout=2 * DEADLINE)

    words = ended.stdout.split()
    assert words[:4] == ["2", "1", "one", "two"]
    assert words[5:] == ["three"][:preserved]


def test_sockets_of_another_process_are_not_ours(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sh", "-c", "echo -$LISTEN_FDS-"))
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}

    assert oci("run", "--bundle", str(bundle), "c1", env=environment).stdout == "--\n"


def test_sockets_that_are_not_there_are_named(lab: Lab, oci: Command) -> None:
    line = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {sys.executable} -m pyctr_shim.oci --root {oci.root} run --bundle /x c1"

    refused = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=2 * DEADLINE)

    assert refused.stderr == "pyctr-oci: $LISTEN_FDS: fd 3: Bad file descriptor\n"


@needs_systemd
@pytest.mark.parametrize("detached", [False, True], ids=["foreground", "detached"])
def test_systemd_starts_one_and_knows_when_it_is_ready(lab: Lab, oci: Command, detached: bool) -> None:
    script = "sleep 1; /usr/bin/systemd-notify --ready && exec sleep 1000"
    spec = lab.spec("sh", "-c", script)
    spec["mounts"].append({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]})
    bundle = lab.bundle(spec)
    for name in ("lib", "lib64"):
        (bundle / "rootfs" / name).symlink_to(f"usr/{name}")
    unit = f"pyctr-test-{uuid.uuid4().hex[:12]}"
    run = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", "--bundle", str(bundle)]
    run += ["--detach"] if detached else []

    try:
        command = ["systemd-run", "--unit", unit, "--service-type=notify", *run, "c1"]
        subprocess.run(command, check=True, timeout=10 * DEADLINE)

        assert systemctl("show", "-P", "ActiveState", unit) == "active"
        main = int(systemctl("show", "-P", "MainPID", unit))
        assert (main == oci.pid("c1")) is detached
        assert oci("kill", "c1", "KILL").returncode == 0
        eventually(lambda: systemctl("show", "-P", "ActiveState", unit) in {"failed", "inactive"})
    finally:
        subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False)


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=True, timeout=DEADLINE)
    return done.stdout.strip()
