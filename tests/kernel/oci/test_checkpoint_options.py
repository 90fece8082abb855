"""`pyctr-oci checkpoint` and `restore` with what CRIU does only when it is told to."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyctr_shim.oci.cgroups import mounted
from support.criu import require_criu
from support.oci_bundle import Lab, eventually
from support.oci_command import Command, detached
from support.patience import DEADLINE

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

COUNTS = "i=0; while true; do i=$((i+1)); echo $i; busybox usleep 50000; done"


class Saved:
    """A container that runs, is saved and restored."""

    def __init__(self, lab: Lab, oci: Command, images: Path) -> None:
        self._lab = lab
        self._oci = oci
        self.images = images
        self.bundle = Path()

    @property
    def root(self) -> Path:
        """Its root, on the host."""
        return self.bundle / "rootfs"

    def run(self, script: str, *, files: tuple[str, ...] = (), network: bool = True, **stdio: int) -> None:
        """Start the script, by default with a network of its own.

        `files` are programs of the host that it needs; what they are linked with comes along.
        """
        spec = self._lab.spec("sh", "-c", script)
        capabilities = ["CAP_NET_ADMIN", "CAP_KILL"]
        if not network:
            spec["linux"]["namespaces"].remove({"type": "network"})
        spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
        self.bundle = self._lab.bundle(spec)
        for file in files:
            copy(self.root, file)
        done = self._oci("run", "-d", "--bundle", str(self.bundle), "c1", **detached(**stdio))
        assert done.returncode == 0

    def cgroups(self) -> str:
        """Return what the kernel tells of the cgroups that its first process is in."""
        pid = json.loads(self._oci("state", "c1").stdout)["pid"]
        return Path(f"/proc/{pid}/cgroup").read_text()

    def exec(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program in it and return how that ended."""
        return self._oci("exec", "c1", *arguments)

    def try_to_save(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Save it, or not; return how that went."""
        return self._oci("checkpoint", *options, "--image-path", str(self.images), "c1")

    def refused(self, *options: str) -> str:
        """Try to save it in vain, after which it goes on; return the error."""
        done = self.try_to_save(*options)
        assert done.returncode == 1
        assert self.status() == "running"
        return done.stderr

    def pause(self) -> None:
        """Pause it."""
        assert self._oci("pause", "c1").returncode == 0

    def status(self) -> str:
        """Return its status, or why it has none."""
        return self._oci.status("c1")

    def save(self, *options: str) -> None:
        """Save it, which ends it."""
        done = self.try_to_save(*options)
        assert done.returncode == 0, done.stderr
        assert "does not exist" in self.status()

    def not_restored(self, *options: str) -> str:
        """Try in vain to let it go on; return the error."""
        where = ("--image-path", str(self.images), "--bundle", str(self.bundle))
        done = self._oci("restore", "-d", *options, *where, "c1", stdout=subprocess.DEVNULL)
        assert done.returncode == 1
        assert "does not exist" in self.status()
        return done.stderr

    def restore(self, *options: str) -> None:
        """Let it go on."""
        where = ("--image-path", str(self.images), "--bundle", str(self.bundle))
        assert self._oci("restore", "-d", *options, *where, "c1", **detached()).returncode == 0
        assert self.status() == "running"


@pytest.fixture
def saved(lab: Lab, oci: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saved:
    require_criu(monkeypatch)
    return Saved(lab, oci, tmp_path / "images")


def copy(root: Path, program: str) -> None:
    """Have a program of the host in a root, and its libraries."""
    words = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split()
    for path in {program, *(word for word in words if word.startswith("/"))}:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])


def number(file: Path) -> int:
    """Return the last number in a file, 0 while there is none."""
    words = file.read_text().split() if file.exists() else []
    return int(words[-1]) if words else 0


def goes_on(file: Path) -> None:
    """Wait until higher numbers arrive in a file."""
    before = number(file)
    eventually(lambda: number(file) > before + 3)


def test_file_locks(saved: Saved) -> None:
    saved.run("exec /usr/bin/flock /lock /bin/busybox sleep 1000", files=("/usr/bin/flock",))
    attempt = ("/usr/bin/flock", "-n", "/lock", "/bin/true")
    eventually(lambda: saved.exec(*attempt).returncode == 1)

    assert "file locks" in saved.refused()
    saved.save("--file-locks")
    saved.restore("--file-locks")

    assert saved.exec(*attempt).returncode == 1


def test_what_is_kept_in_the_work_path(saved: Saved, tmp_path: Path) -> None:
    saved.run("exec busybox sleep 1000")
    work = tmp_path / "work"
    work.mkdir()

    saved.save("--work-path", str(work))
    assert "Dumping finished successfully" in (work / "dump.log").read_text()
    assert "dump.log" not in os.listdir(saved.images)
    saved.restore("--work-path", str(work))

    assert "Restore finished successfully" in (work / "restore.log").read_text()


def test_stopped_processes(saved: Saved) -> None:
    """No option: a process that somebody has stopped is saved as one, and can go on when it is continued."""
    saved.run(f"({COUNTS}) > /count & kill -STOP $!; echo $! > /stopped; exec busybox sleep 1000")
    eventually(lambda: number(saved.root / "stopped") > 0)

    saved.save()
    saved.restore()

    count, stopped = saved.root / "count", str(number(saved.root / "stopped"))
    before = number(count)
    assert "State:\tT" in saved.exec("cat", f"/proc/{stopped}/status").stdout
    assert saved.exec("kill", "-CONT", stopped).returncode == 0
    eventually(lambda: number(count) > before + 3)


def test_one_that_is_being_saved_already(saved: Saved, tmp_path: Path, oci: Command) -> None:
    """By whoever asked first: each gets a checkpoint, one after the other."""
    saved.run("exec busybox sleep 1000")
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "checkpoint", "--leave-running"]
    all_images = [str(tmp_path / str(number)) for number in range(5)]

    attempts = [subprocess.Popen([*line, "--image-path", images, "c1"]) for images in all_images]

    assert [attempt.wait(DEADLINE) for attempt in attempts] == [0] * len(attempts)
    for images in all_images:
        assert "inventory.img" in os.listdir(images)


def test_a_paused_container(saved: Saved) -> None:
    saved.run(f"({COUNTS}) > /count")
    goes_on(saved.root / "count")
    saved.pause()

    done = saved.try_to_save("--leave-running")
    assert (done.returncode, saved.status()) == (0, "paused"), done.stderr
    shutil.rmtree(saved.images)
    saved.save()
    saved.restore()

    goes_on(saved.root / "count")


@pytest.fixture
def tcp() -> None:
    """Skip where CRIU cannot save any connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            listener.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        except OSError:
            pytest.skip("this kernel knows SO_PASSCRED of unix sockets alone, and CRIU asks every socket for it")


@pytest.mark.usefixtures("tcp")
def test_connections(saved: Saved) -> None:
    listen = "busybox ip link set lo up; busybox sleep 1000 | busybox nc -l -p 5000 > /heard &"
    saved.run(f"{listen} until ({COUNTS}) | busybox nc 127.0.0.1 5000; do busybox usleep 100000; done")
    goes_on(saved.root / "heard")

    assert "tcp-established" in saved.refused()
    saved.save("--tcp-established")
    saved.restore("--tcp-established")

    goes_on(saved.root / "heard")


@pytest.mark.usefixtures("tcp")
def test_connections_that_nobody_has_accepted(saved: Saved) -> None:
    listen = "busybox ip link set lo up; busybox nc -l -p 5000 & busybox usleep 300000; kill -STOP $!"
    saved.run(f"{listen}; busybox nc 127.0.0.1 5000 < /dev/zero & touch /ready; exec busybox sleep 1000")
    eventually(lambda: "ESTABLISHED" in saved.exec("busybox", "netstat", "-tn").stdout)

    assert "In-flight" in saved.refused("--tcp-established")
    saved.save("--tcp-established", "--tcp-skip-in-flight")
    saved.restore("--tcp-established")


def test_a_removed_file_that_has_another_name(saved: Saved) -> None:
    saved.run("echo kept > /root/a; exec 3</root/a; busybox ln /root/a /root/b; busybox rm /root/a; busybox sleep 1000")
    eventually(lambda: os.listdir(saved.root / "root") == ["b"])

    assert "link-remap" in saved.refused()
    saved.save("--link-remap")
    saved.restore()

    assert saved.exec("cat", "/proc/1/fd/3").stdout == "kept\n"
    assert os.listdir(saved.root / "root") == ["b"]


@pytest.mark.parametrize("options", [(), ("--empty-ns", "network")])
def test_what_is_in_a_network(saved: Saved, options: tuple[str, ...]) -> None:
    saved.run("busybox ip link set lo up; busybox ip address add 192.0.2.7/32 dev lo; exec busybox sleep 1000")
    addresses = ("busybox", "ip", "address")
    eventually(lambda: "192.0.2.7" in saved.exec(*addresses).stdout)

    saved.save(*options)
    saved.restore(*options)

    assert ("192.0.2.7" in saved.exec(*addresses).stdout) == (not options)


def test_sockets_whose_other_end_is_outside(saved: Saved, tmp_path: Path) -> None:
    """By its path, which has to lead to it in the container too, the other end is found again."""
    path = str(tmp_path / "log")
    kind = socket.AF_UNIX, socket.SOCK_DGRAM
    with socket.socket(*kind) as there, socket.socket(*kind) as end:
        there.settimeout(DEADLINE)
        there.bind(path)
        end.connect(path)
        says = "exec 3>&0 < /dev/null; while busybox usleep 50000; do echo here >&3; done"
        saved.run(says, network=False, stdin=end.fileno())
        end.close()
        assert there.recv(100) == b"here\n"

        assert "ext-unix-sk" in saved.refused()
        saved.save("--ext-unix-sk")
        (saved.root / path[1:]).parent.mkdir(parents=True)
        os.link(path, saved.root / path[1:])
        empty(there)
        saved.restore("--ext-unix-sk")

        assert there.recv(100) == b"here\n"


def empty(end: socket.socket) -> None:
    """Take all that has come to a socket."""
    end.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while end.recv(100):
            continue
    end.settimeout(DEADLINE)


@pytest.mark.parametrize("options", [(), ("--shell-job",)])
def test_the_callers_terminal(saved: Saved, options: tuple[str, ...]) -> None:
    """CRIU would set it up as a checkpoint says, and take it away from whoever restores."""
    ours_fd, theirs_fd = os.openpty()
    saved.run("exec busybox sleep 1000", stdout=theirs_fd)

    assert "stdout is a terminal of the caller's" in saved.refused(*options)

    os.close(ours_fd)
    os.close(theirs_fd)


def test_cgroups(saved: Saved) -> None:
    """Limits are those of the spec that it is restored with, in the cgroup of that, whatever was saved."""
    saved.run("exec busybox sleep 1000")
    document = json.loads((saved.bundle / "config.json").read_text())
    document["linux"]["cgroupsPath"] += "-again"
    document["linux"]["resources"] = {"pids": {"limit": 77}}

    saved.save("--manage-cgroups-mode", "soft")
    (saved.bundle / "config.json").write_text(json.dumps(document))
    for mode in ("soft", "full", "strict"):
        assert f"cgroups mode '{mode}'" in saved.not_restored("--manage-cgroups-mode", mode)
    saved.restore("--manage-cgroups-mode", "ignore")

    where = mounted().controllers.get("pids") or mounted().unified
    assert f":{document['linux']['cgroupsPath']}\n" in saved.cgroups()
    assert Path(where + document["linux"]["cgroupsPath"], "pids.max").read_text() == "77\n"


def test_memory_that_is_newer_elsewhere_is_dropped(saved: Saved) -> None:
    saved.run("exec busybox dd if=/dev/urandom of=/dev/null bs=8M")
    first, last = saved.images, saved.images.with_name("last")
    done = saved.try_to_save("--pre-dump")
    if "Tracking memory is not available" in done.stderr:
        pytest.skip("this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY)")
    assert done.returncode == 0, done.stderr
    before = occupied(first)
    assert before > 8 << 20

    saved.images = last
    saved.save("--parent-path", f"../{first.name}", "--auto-dedup")

    assert occupied(first) < before - (4 << 20)
    saved.restore("--auto-dedup")


def occupied(images: Path) -> int:
    """Return how many bytes of disk the memory in a checkpoint takes."""
    return sum(file.stat().st_blocks * 512 for file in images.glob("pages-*.img"))


def test_a_page_server(saved: Saved, tmp_path: Path) -> None:
    saved.run(f"({COUNTS}) > /count")
    goes_on(saved.root / "count")
    pages = tmp_path / "pages"
    pages.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    read_fd, write_fd = os.pipe()
    command = ["criu", "page-server", "--images-dir", str(pages), "--address", "127.0.0.1", "--port", port]
    with subprocess.Popen([*command, "--status-fd", str(write_fd)], pass_fds=[write_fd]) as server:
        os.close(write_fd)
        try:
            assert os.read(read_fd, 1) == b"\0"
            saved.save("--page-server", f"127.0.0.1:{port}")
            assert server.wait(DEADLINE) == 0
        finally:
            os.close(read_fd)
            server.kill()

    taken = [name for name in os.listdir(pages) if name.startswith("page")]
    assert taken
    assert not [name for name in os.listdir(saved.images) if name.startswith("pages-")]
    for name in taken:
        shutil.copy(pages / name, saved.images)
    saved.restore()

    goes_on(saved.root / "count")
