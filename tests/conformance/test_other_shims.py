"""containerd's own shims for runc, 1.6's and 2.3's, under our daemon: by path, by name, by configuration.

Each container asks for its shim; what ctr prints, what the kernel shows, and who outlives whom.
"""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from google.protobuf import any_pb2

from pyctr_wire.containerd.events import task_pb2
from support import peers
from support.ctr_client import Ctr
from support.daemon_process import DEADLINE, DaemonProcess, command_lines, wait_until
from support.engines import make_root
from support.footprint import cgroup_value, cgroups_below, remove_cgroup

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]

SHIM: Final = "containerd-shim-runc-v2"
IDS: Final = ("c1", "c2", "stays", "gone", "here", "there", "g1")
SOCKETS: Final = Path("/run/containerd/s")
PATH: Final = "--env=PATH=/bin"  # there is no image to say so
UNTIL_TERM: Final = 'trap "exit 5" TERM; while :; do sleep 0.1; done'


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("image") / "rootfs")


@pytest.fixture(scope="module", params=[pytest.param("1.6", marks=pytest.mark.full), "2.3"])
def program(request: pytest.FixtureRequest) -> Path:
    """The shim's program: Debian's, or the newer one."""
    if request.param != "1.6":
        return peers.find(SHIM, request.param)
    debians = Path("/usr/bin", SHIM)
    if not debians.exists():
        pytest.skip(f"{SHIM} is not installed (Debian: containerd)")
    return debians


@pytest.fixture(scope="module")
def daemon(program: Path) -> Iterator[DaemonProcess]:
    """A daemon that finds the program in its $PATH too, by another name."""
    with DaemonProcess() as daemon:
        folder = daemon.base / "bin"
        folder.mkdir()
        (folder / "containerd-shim-another-v7").symlink_to(program)
        daemon.stop()
        daemon.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
        (daemon.base / "config.toml").write_text(f'[runtimes."io.containerd.runc.v2"]\nshim = "{program}"\n')
        daemon.start()
        yield daemon


@pytest.fixture
def ctr(daemon: DaemonProcess) -> Iterator[Ctr]:
    """Debian's ctr in a namespace of its own; nothing of a shim, a container or a cgroup may be left in the end."""
    namespace = f"shims-{uuid.uuid4().hex[:8]}"
    ctr = Ctr(daemon, str(peers.find("ctr")), namespace)
    try:
        yield ctr
        assert ctr("containers", "ls", "-q").split() == []
    finally:
        for id in ctr.run("containers", "ls", "-q").stdout.split():
            ctr.run("tasks", "rm", "--force", id)
            ctr.run("containers", "rm", id)
    folder = daemon.state / "tasks" / namespace
    wait_until(lambda: not list(folder.glob("*")), lambda: f"bundles go, but {list(folder.glob('*'))}")
    wait_until(lambda: shims_of(namespace) == [], lambda: f"shims end, but {shims_of(namespace)}")
    assert [id for id in IDS if socket_of(ctr, id).exists()] == []
    wait_until(lambda: cgroups_below(namespace) == [], lambda: f"cgroups go, but {cgroups_below(namespace)}")
    remove_cgroup(namespace)


@pytest.fixture
def runtime(program: Path) -> str:
    return str(program)


def run(ctr: Ctr, runtime: str, rootfs: Path, id: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a container in the foreground and remove it; `words` may begin with options."""
    options = [word for word in words if word.startswith("--")]
    command = [word for word in words if not word.startswith("--")]
    return ctr.run("run", "--rm", PATH, "--runtime", runtime, *options, "--rootfs", str(rootfs), id, *command)


def started(ctr: Ctr, runtime: str, rootfs: Path, id: str, script: str = UNTIL_TERM) -> int:
    """Run a container in the background and return its pid."""
    ctr("run", "--detach", PATH, "--runtime", runtime, "--rootfs", str(rootfs), id, "sh", "-c", script)
    return next(int(row[1]) for row in ctr.rows("tasks", "ls") if row[0] == id)


def status_of(ctr: Ctr, id: str) -> str:
    return next((row[2] for row in ctr.rows("tasks", "ls") if row[0] == id), "")


def shim_of(pid: int) -> int:
    """Return the shim of a container's first process: its parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def shims_of(namespace: str) -> list[str]:
    """Return the command lines of the shims of a namespace."""
    return [" ".join(words) for words in command_lines() if words[1:3] == ["-namespace", namespace]]


def socket_of(ctr: Ctr, id: str) -> Path:
    """Return where the shim of a container, or of a group, listens: containerd's rule, which such shims follow."""
    return SOCKETS / hashlib.sha256(f"{ctr.daemon.address}/{ctr.namespace}/{id}".encode()).hexdigest()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.parametrize("by", ["path", "name", "configuration"])
def test_run_prints_and_exits_as_the_program_does(ctr: Ctr, program: Path, rootfs: Path, by: str) -> None:
    names = {"path": str(program), "name": "io.containerd.another.v7", "configuration": "io.containerd.runc.v2"}

    done = run(ctr, names[by], rootfs, "c1", "sh", "-c", f"echo out; echo err >&2; cat /proc/self/cgroup; exit {7}")

    assert done.returncode == 7
    assert done.stdout.splitlines()[0] == "out"
    assert done.stderr.splitlines()[-1] == "err"


def test_it_is_that_shim(ctr: Ctr, runtime: str, rootfs: Path, program: Path) -> None:
    """Its program is the parent of the container, and what it was started with is containerd's."""
    pid = started(ctr, runtime, rootfs, "c1")
    shim = shim_of(pid)
    assert socket_of(ctr, "c1").is_socket()
    assert os.path.samefile(f"/proc/{shim}/exe", program)
    environment = Path(f"/proc/{shim}/environ").read_bytes().decode().split("\0")
    assert f"TTRPC_ADDRESS={ctr.daemon.address}.ttrpc" in environment
    words = Path(f"/proc/{shim}/cmdline").read_bytes().decode().split("\0")
    assert words[1:7] == ["-namespace", ctr.namespace, "-id", "c1", "-address", str(ctr.daemon.address)]
    ctr("tasks", "kill", "c1")
    wait_until(lambda: status_of(ctr, "c1") == "STOPPED", "it has ended")
    assert ctr.run("tasks", "rm", "c1").returncode == 0
    assert not is_alive(shim)
    ctr("containers", "rm", "c1")


def test_what_cannot_be_run_is_named(ctr: Ctr, runtime: str, rootfs: Path) -> None:
    done = run(ctr, runtime, rootfs, "c1", "nowhere")

    assert done.returncode == 1
    assert "OCI runtime create failed: runc create failed: unable to start container process" in done.stderr
    assert 'exec: "nowhere": executable file not found in $PATH' in done.stderr


def test_a_container_lives_and_survives_daemons(ctr: Ctr, runtime: str, rootfs: Path, daemon: DaemonProcess) -> None:
    """Exec, pause, metrics, ps; the daemon killed, one container ending meanwhile; kill, delete, events."""
    pids = {id: started(ctr, runtime, rootfs, id) for id in ("stays", "gone")}
    done = ctr.run("tasks", "exec", "--exec-id", "e1", "stays", "sh", "-c", "echo in; exit 3")
    assert (done.stdout, done.returncode) == ("in\n", 3)
    ctr("tasks", "pause", "stays")
    assert status_of(ctr, "stays") == "PAUSED"
    assert cgroup_value(pids["stays"], "freezer", "freezer.state", "cgroup.freeze") in ("FROZEN", "1")
    daemon.kill()
    os.kill(pids["gone"], signal.SIGTERM)
    wait_until(lambda: not is_alive(pids["gone"]), "one ends while there is no daemon")
    daemon.start()
    assert status_of(ctr, "stays") == "PAUSED"
    ctr("tasks", "resume", "stays")
    assert [status_of(ctr, id) for id in ("stays", "gone")] == ["RUNNING", "STOPPED"]
    assert "exit with non-zero exit code 5" in ctr.run("tasks", "rm", "gone").stderr
    assert "memory.usage_in_bytes" in ctr("tasks", "metrics", "stays")
    assert str(pids["stays"]) in ctr("tasks", "ps", "stays").split()

    with ctr.background("events") as watching:
        output = watching.stdout
        assert output is not None

        def hears() -> bool:
            ctr("namespaces", "label", ctr.namespace, "color=green")
            return bool(select.select([output.fileno()], [], [], 1)[0])

        wait_until(hears, "it hears of a label")
        done = ctr.run("tasks", "exec", "--exec-id", "e2", "stays", "sh", "-c", "echo again; exit 4")
        assert (done.stdout, done.returncode) == ("again\n", 4)
        ctr("tasks", "kill", "--signal", "SIGTERM", "stays")
        wait_until(lambda: status_of(ctr, "stays") == "STOPPED", "it has ended")
        daemon.restart(signal.SIGTERM)
        assert "exit with non-zero exit code 5" in ctr.run("tasks", "rm", "stays").stderr
        assert watching.wait(DEADLINE) is not None  # its daemon has gone
        told = [line.split(maxsplit=6) for line in output if "/tasks/" in line and '"stays"' in line]
    topics = [words[-2] for words in told]
    assert topics == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit"]
    assert [json.loads(words[-1]).get("exit_status") for words in told][2:] == [4, 5]
    ctr("containers", "rm", *pids)


def test_a_killed_shim_is_buried_by_its_own_program(
    ctr: Ctr, runtime: str, rootfs: Path, daemon: DaemonProcess
) -> None:
    """Its container ends with it, with a status that no program has given: here with a daemon, there without one."""
    pids = {id: started(ctr, runtime, rootfs, id) for id in ("here", "there")}
    os.kill(shim_of(pids["here"]), signal.SIGKILL)
    wait_until(lambda: status_of(ctr, "here") == "STOPPED", "it is buried")
    assert not is_alive(pids["here"])
    shim = shim_of(pids["there"])
    daemon.kill()
    os.kill(shim, signal.SIGKILL)
    assert is_alive(pids["there"])
    daemon.start()
    wait_until(lambda: status_of(ctr, "there") == "STOPPED", "it is buried, too")
    wait_until(lambda: not is_alive(pids["there"]), "and has ended")

    for id in pids:
        assert "exit with non-zero exit code 255" in ctr.run("tasks", "rm", id).stderr
    ctr("containers", "rm", *pids)


@pytest.mark.full
def test_a_stopped_shim_delays_nobody_else(ctr: Ctr, runtime: str, rootfs: Path, daemon: DaemonProcess) -> None:
    pid = started(ctr, runtime, rootfs, "c1")
    shim = shim_of(pid)
    os.kill(shim, signal.SIGSTOP)
    try:
        assert "did not answer" in ctr.run("tasks", "kill", "c1").stderr
        assert run(ctr, runtime, rootfs, "c2", "sh", "-c", "exit 6").returncode == 6
        daemon.restart()
        assert status_of(ctr, "c1") in ("RUNNING", "CREATED", "UNKNOWN")
    finally:
        os.kill(shim, signal.SIGCONT)
    wait_until(lambda: status_of(ctr, "c1") == "RUNNING", "it answers again")
    wait_until(lambda: ctr.run("tasks", "kill", "c1").returncode == 0, "it takes signals again")
    wait_until(lambda: status_of(ctr, "c1") == "STOPPED", "it has ended")
    ctr.run("tasks", "rm", "c1")
    ctr("containers", "rm", "c1")


@pytest.mark.full
def test_a_terminal(ctr: Ctr, runtime: str, rootfs: Path) -> None:
    words = ("run", "--rm", PATH, "--tty", "--runtime", runtime, "--rootfs", str(rootfs), "c1", "sh")
    with ctr.terminal(*words) as terminal:
        terminal.expect("# ")
        terminal.type("tty\r")
        terminal.expect("/dev/pts/0\r")
        terminal.type("while [ \"$(stty size 2>&1)\" != '31 97' ]; do sleep 0.1; done; echo si'z'ed\r")
        terminal.expect("sized\r")
        terminal.type("exit 8\r")
        assert terminal.wait() == 8


@pytest.mark.full
def test_containers_of_a_group_share_a_shim(ctr: Ctr, runtime: str, rootfs: Path, daemon: DaemonProcess) -> None:
    """The end of one leaves the other alone, also after the daemon was killed; the last one takes the shim along."""
    group = ("--annotation", "io.containerd.runc.v2.group=g1")
    for id in ("one", "two", "three"):
        ctr("run", "--detach", PATH, *group, "--runtime", runtime, "--rootfs", str(rootfs), id, "sh", "-c", UNTIL_TERM)
    pids = {row[0]: int(row[1]) for row in ctr.rows("tasks", "ls")}
    assert len({shim_of(pid) for pid in pids.values()}) == 1
    ctr("tasks", "rm", "--force", "one")
    assert [is_alive(pids[id]) for id in ("two", "three")] == [True, True]
    daemon.restart()
    ctr("tasks", "rm", "--force", "two")
    assert is_alive(pids["three"])
    assert ctr("tasks", "exec", "--exec-id", "e", "three", "echo", "here") == "here\n"
    ctr("tasks", "rm", "--force", "three")
    ctr("containers", "rm", *pids)


def test_an_older_shim_publishes_by_our_program(ctr: Ctr) -> None:
    """As shims from before containerd 1.4 do: the binary of -publish-binary, with an event on its standard input."""
    event = any_pb2.Any()
    event.Pack(task_pb2.TaskOOM(container_id="c1"), "")
    publisher = str(Path(sys.executable).with_name("pyctrd"))
    words = ["-address", str(ctr.daemon.address), "publish", "-topic", "/tasks/oom", "-namespace", ctr.namespace]

    with ctr.background("events", "namespace==" + ctr.namespace) as watching:
        output = watching.stdout
        assert output is not None

        def arrives() -> bool:
            subprocess.run([publisher, *words], input=event.SerializeToString(), check=True, timeout=2 * DEADLINE)
            return bool(select.select([output.fileno()], [], [], 1)[0])

        wait_until(arrives, "an event arrives")
        line = output.readline()
    assert line.split()[-2:] == ["/tasks/oom", '{"container_id":"c1"}']


def test_pyctr_run_says_what_it_cannot_do(daemon: DaemonProcess, runtime: str) -> None:
    command = [sys.executable, "-m", "pyctr", "--address", str(daemon.address), "run", "--runtime", runtime, "x", "y"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)

    assert done.returncode != 0
    assert "a shim of another make, which cannot be attached to" in done.stderr
