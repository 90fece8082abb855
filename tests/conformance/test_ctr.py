"""Real ctr programs, Debian's 1.6 and one of containerd 2, run containers; also with the daemon killed in between."""

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support.ctr_client import DEBIANS, Ctr, leaving_nothing, namespace_with, program
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import cgroup_value
from support.images import BuiltImage, busybox_with_applets
from support.registry_process import running_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.timeout(180),  # a daemon takes seconds to start on a loaded machine
    pytest.mark.skipif(DEBIANS is None, reason="ctr is not installed (Debian: containerd)"),
]

IMAGE: Final[BuiltImage] = busybox_with_applets()
NAME: Final = "example.com/busybox:v1"


@pytest.fixture(scope="module")
def namespace(daemon: DaemonProcess) -> Iterator[str]:
    """A namespace with the image in it."""
    with namespace_with(daemon, NAME, IMAGE, "overlayfs", "native") as namespace:
        yield namespace


@pytest.fixture(params=["1.6", "2"])
def ctr(request: pytest.FixtureRequest, daemon: DaemonProcess, namespace: str) -> Iterator[Ctr]:
    """A ctr program that finds nothing but the image, and leaves nothing else."""
    with leaving_nothing(Ctr(daemon, program(request.param), namespace)) as ctr:
        yield ctr


@pytest.fixture(params=["1.6", "2", "1.6, daemon killed in between"])
def any_ctr(request: pytest.FixtureRequest, daemon: DaemonProcess, namespace: str) -> Iterator[Ctr]:
    version, _, killing = request.param.partition(", ")
    with leaving_nothing(Ctr(daemon, program(version), namespace, killing=bool(killing))) as ctr:
        yield ctr


def pid_of(ctr: Ctr, id: str) -> int:
    """Return the pid of a task's first process."""
    return next(int(row[1]) for row in ctr.rows("tasks", "ls") if row[0] == id)


def status_of(ctr: Ctr, id: str) -> str | None:
    """Return what `ctr tasks ls` calls a task's status, None if there is no task."""
    return next((row[2] for row in ctr.rows("tasks", "ls") if row[0] == id), None)


def remove(ctr: Ctr, id: str) -> None:
    """End and remove a container that runs."""
    ctr("tasks", "kill", "--signal", "SIGKILL", id)
    wait_until(lambda: status_of(ctr, id) == "STOPPED", "the task has ended")
    ctr.next_daemon()
    ctr.run("tasks", "rm", id)  # ctr's own status is that of the container
    ctr("containers", "rm", id)


def namespace_of(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_run_returns_what_the_program_says(ctr: Ctr) -> None:
    done = ctr.run("run", "--rm", NAME, "c", "sh", "-c", "echo out; echo err >&2; exit 7")

    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_run_reads_input(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"line\n" * 100_000)

    with (tmp_path / "input").open("rb") as file:
        done = ctr.run("run", "--rm", NAME, "c", "wc", "-l", stdin=file)

    assert (done.stdout, done.returncode) == ("100000\n", 0), done.stderr


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        (["--env", "COLOR=green"], "echo $COLOR", "green"),
        (["--cwd", "/etc"], "pwd", "/etc"),
        (["--read-only"], "touch /x || echo refused", "refused"),
        (["--seccomp"], "grep Seccomp: /proc/self/status", "Seccomp:\t2"),
        (["--cap-drop", "CAP_CHOWN"], "chown 1 /etc/hello || echo refused", "refused"),
        (["--privileged"], "grep CapEff /proc/self/status", None),
        (["--label", "a=b", "--annotation", "c=d"], "ls /proc/self/fd | wc -l", "4"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_run_options(ctr: Ctr, options: list[str], script: str, expected: str | None) -> None:
    output = ctr("run", "--rm", *options, NAME, "c", "sh", "-c", f"exec 2>/dev/null; {script}").strip()

    if expected is None:
        own = re.search(r"CapPrm:\s(\w+)", Path("/proc/self/status").read_text())
        assert own is not None
        assert output.split() == ["CapEff:", own[1]]
    else:
        assert output == expected


def test_run_in_the_hosts_network(ctr: Ctr) -> None:
    script = ("sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net")

    inside = ctr("run", "--rm", NAME, "c", *script).split()
    outside = ctr("run", "--rm", "--net-host", NAME, "c", *script).split()

    assert inside[0] != namespace_of("self", "net")
    assert inside[1:] == ["lo"]
    assert outside == [namespace_of("self", "net"), *sorted(os.listdir("/sys/class/net"))]


def test_run_with_mounts(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")

    output = ctr(
        "run", "--rm",
        "--mount", f"type=bind,src={tmp_path},dst=/read,options=rbind:ro",
        "--mount", f"type=bind,src={tmp_path},dst=/write,options=rbind:rw",
        "--mount", "type=tmpfs,src=tmpfs,dst=/scratch,options=size=64k",
        NAME, "c", "sh", "-c",
        "cat /read/file; touch /read/x || echo refused; echo back >/write/y;"
        " dd if=/dev/zero of=/scratch/z bs=1k count=100 || echo full",
    )  # fmt: skip

    assert output.splitlines() == ["from the host", "refused", "full"]
    assert (tmp_path / "y").read_text() == "back\n"
    assert not (tmp_path / "x").exists()


def test_run_with_limits(ctr: Ctr) -> None:
    ctr("run", "-d", "--null-io", "--memory-limit", "33554432", "--cpus", "0.5", NAME, "c", "sleep", "1000")
    pid = pid_of(ctr, "c")

    assert cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max") == "33554432"
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        assert cgroup_value(pid, "cpu", "", "cpu.max") == "50000 100000"
    else:
        assert cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "") == "50000"
        assert cgroup_value(pid, "cpu", "cpu.cfs_period_us", "") == "100000"
    assert "33554432" in ctr("tasks", "metrics", "c")
    remove(ctr, "c")


def test_run_in_namespaces_of_another_container(any_ctr: Ctr) -> None:
    ctr = any_ctr
    ctr("run", "-d", "--null-io", NAME, "first", "sleep", "1000")
    pid = pid_of(ctr, "first")

    ctr.next_daemon()

    joined = [f"--with-ns={name}:/proc/{pid}/ns/{kind}" for name, kind in (("pid", "pid"), ("network", "net"))]
    script = "for kind in pid net uts; do readlink /proc/self/ns/$kind; done; cat /proc/1/cmdline"
    output = ctr("run", "--rm", *joined, NAME, "second", "sh", "-c", script).splitlines()

    assert output[:2] == [namespace_of(pid, "pid"), namespace_of(pid, "net")]
    assert output[2] != namespace_of(pid, "uts")
    assert output[3] == "sleep\x001000\x00"
    ctr.next_daemon()
    remove(ctr, "first")


def test_run_in_anothers_mount_namespace(any_ctr: Ctr) -> None:
    """Its root is attached there, and gone with it; whoever was there keeps his own."""
    ctr = any_ctr
    words = ["unshare", "--mount", "sh", "-c", "echo ready; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            path, mounts = f"/proc/{other.pid}/ns/mnt", Path(f"/proc/{other.pid}/mountinfo")
            ctr("run", "-d", "--null-io", f"--with-ns=mount:{path}", NAME, "c", "sleep", "1000")
            ctr.next_daemon()

            script = "readlink /proc/self/ns/mnt; ls /; cut -d' ' -f5 /proc/self/mountinfo"
            output = ctr("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", script).split()
            assert output[0] == os.readlink(path)
            assert {"bin", "/", "/proc", "/dev/shm"} <= set(output)
            assert "boot" not in output
            assert "/c/attached/dev/shm " in mounts.read_text()
            remove(ctr, "c")

            assert "/attached" not in mounts.read_text()
        finally:
            other.kill()


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_run_in_a_user_namespace(ctr: Ctr, snapshotter: str) -> None:
    maps = ("--uidmap", "0:100000:1000", "--gidmap", "0:200000:1000", "--snapshotter", snapshotter)
    script = "cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /bin/busybox; touch /new && stat -c %u:%g /new"

    output = ctr("run", "--rm", *maps, NAME, "c", "sh", "-c", script).splitlines()

    assert [line.split() for line in output[:2]] == [["0", "100000", "1000"], ["0", "200000", "1000"]]
    assert output[2:] == ["0:0", "0:0"]


def until_size(size: str) -> str:
    """Return a command that says "resized" once its terminal has a size; ctr sets the first one after the start."""
    return f"until [ \"$(stty size 2>/dev/null)\" = '{size}' ]; do sleep 0.1; done; echo re''sized\n"


def test_run_on_a_terminal(ctr: Ctr) -> None:
    with ctr.terminal("run", "--rm", "-t", NAME, "c", "sh") as terminal:
        terminal.expect("# ")
        terminal.type("tty; echo $((6 * 7))\n")
        assert "/dev/pts/0" in terminal.expect("42")
        terminal.type(until_size("31 97"))
        terminal.expect("resized")
        terminal.type(until_size("11 53"))
        terminal.resize_until((11, 53), "resized")
        terminal.type("sh -c 'echo sle''eping; exec sleep 1000'\n")
        terminal.expect("sleeping")
        terminal.type("\x03")
        terminal.expect("# ")
        terminal.type("exit 9\n")
        assert terminal.wait() == 9


def test_life_of_a_task(any_ctr: Ctr) -> None:
    """Every command about a task in turn; a daemon that has just been started knows all that the one before did."""
    ctr = any_ctr
    ctr("run", "-d", "--null-io", "--label", "color=green", NAME, "c", "sleep", "1000")
    pid = pid_of(ctr, "c")
    assert status_of(ctr, "c") == "RUNNING"

    ctr.next_daemon()
    assert ctr("tasks", "exec", "--exec-id", "e", "c", "echo", "from an exec") == "from an exec\n"
    assert ctr("tasks", "exec", "--exec-id", "e", "--user", "1:2", "c", "id").startswith("uid=1 gid=2")
    assert ctr.run("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "exit 5").returncode == 5
    assert "not found" in ctr.run("tasks", "exec", "--exec-id", "e", "c", "nonsense").stderr
    ctr.next_daemon()
    with ctr.terminal("tasks", "exec", "--tty", "--exec-id", "e", "c", "sh", "-c", "tty; exit 6") as terminal:
        terminal.expect("/dev/pts/0")
        assert terminal.wait() == 6

    ctr("tasks", "pause", "c")
    ctr.next_daemon()
    assert status_of(ctr, "c") == "PAUSED"
    ctr("tasks", "resume", "c")
    ctr.next_daemon()
    assert status_of(ctr, "c") == "RUNNING"

    assert "cpu" in ctr("tasks", "metrics", "c")
    assert json.loads(ctr("tasks", "metrics", "--format", "json", "c"))
    assert [row[0] for row in ctr.rows("tasks", "ps", "c")] == [str(pid)]
    assert pid_of(ctr, "c") == pid
    assert "must be stopped before deletion: running" in ctr.run("tasks", "rm", "c").stderr

    remove(ctr, "c")
    ctr.next_daemon()
    assert status_of(ctr, "c") is None


def test_records_of_a_container(any_ctr: Ctr) -> None:
    ctr = any_ctr
    ctr("run", "-d", "--null-io", "--label", "color=green", "--env", "A=b", NAME, "c", "sleep", "1000")
    ctr.next_daemon()

    assert ["c", NAME, "io.containerd.runc.v2"] in ctr.rows("containers", "ls")
    info = json.loads(ctr("containers", "info", "c"))
    assert info["Labels"]["color"] == "green"
    assert (info["Image"], info["Snapshotter"], info["SnapshotKey"]) == (NAME, "overlayfs", "c")
    assert "A=b" in info["Spec"]["process"]["env"]
    ctr("containers", "label", "c", "color=", "size=big")
    ctr.next_daemon()
    assert ctr("containers", "ls", "-q", "labels.size==big").split() == ["c"]
    labels = json.loads(ctr("containers", "info", "c"))["Labels"]
    assert "color" not in labels
    assert ["c", "Active"] in [[row[0], row[-1]] for row in ctr.rows("snapshots", "ls")]
    assert "c" in [row[0] for row in ctr.rows("snapshots", "usage")]
    assert ctr.run("containers", "rm", "c").returncode != 0
    assert ctr("containers", "ls", "-q").split() == ["c"]

    remove(ctr, "c")
    assert ctr("containers", "ls", "-q") == ""
    assert ctr.run("containers", "info", "c").returncode != 0


def test_a_task_after_the_other_in_one_container(any_ctr: Ctr, tmp_path: Path) -> None:
    """Created apart from its tasks; what one has written the next one finds."""
    ctr = any_ctr
    (tmp_path / "script").write_text("echo x >>/file; exit $(wc -l </file)")
    mount = f"type=bind,src={tmp_path},dst=/mnt,options=rbind:ro"
    ctr("containers", "create", "--mount", mount, NAME, "c", "sh", "/mnt/script")

    for number in (1, 2, 3):
        ctr.next_daemon()
        assert ctr.run("tasks", "start", "--null-io", "c").returncode == number

    ctr("containers", "rm", "c")


def test_execs_are_signalled_apart_from_the_task(ctr: Ctr) -> None:
    ctr("run", "-d", "--null-io", NAME, "c", "sleep", "1000")
    with ctr.background("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "echo up; exec sleep 1000") as exec:
        assert exec.stdout is not None
        assert exec.stdout.readline() == "up\n"
        ctr("tasks", "kill", "--exec-id", "e", "--signal", "SIGUSR1", "c")
        assert exec.wait(60) == 128 + 10
    assert status_of(ctr, "c") == "RUNNING"

    ctr("tasks", "exec", "--detach", "--exec-id", "other", "c", "sleep", "1000")
    wait_until(lambda: len(ctr.rows("tasks", "ps", "c")) == 2, "the exec runs")
    ctr("tasks", "kill", "--all", "--signal", "SIGKILL", "c")
    wait_until(lambda: status_of(ctr, "c") == "STOPPED", "the task has ended")
    ctr.run("tasks", "rm", "c")
    ctr("containers", "rm", "c")


def test_rm_by_force(ctr: Ctr) -> None:
    ctr("run", "-d", "--null-io", NAME, "c", "sleep", "1000")

    ctr.run("tasks", "rm", "--force", "c")

    assert status_of(ctr, "c") is None
    ctr("containers", "rm", "c")


def test_attach(any_ctr: Ctr, tmp_path: Path) -> None:
    """The client that began it ends, another one goes on, and its status is the task's."""
    ctr = any_ctr
    script = 'while read line; do echo "got $line"; [ "$line" = end ] && exit 8; done'
    with ctr.background("run", "--fifo-dir", str(tmp_path), NAME, "c", "sh", "-c", script) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write("one\n")
        first.stdin.flush()
        assert first.stdout.readline() == "got one\n"
        first.kill()

    ctr.next_daemon()
    with ctr.background("tasks", "attach", "c") as second:
        assert second.stdin is not None
        assert second.stdout is not None
        second.stdin.write("two\nend\n")
        second.stdin.flush()
        assert [second.stdout.readline() for _ in range(2)] == ["got two\n", "got end\n"]
        assert second.wait(60) == 8

    wait_until(lambda: status_of(ctr, "c") in ("STOPPED", None), "the task has ended")
    ctr.run("tasks", "rm", "c")
    ctr("containers", "rm", "c")


def test_signals_to_ctr_reach_the_task(ctr: Ctr) -> None:
    script = "trap 'echo forwarding' WINCH; trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    with ctr.background("run", "--rm", NAME, "c", "sh", "-c", script) as process:
        output = process.stdout
        assert output is not None
        assert output.readline() == "up\n"

        def forwards() -> bool:
            # It does not say when it begins to; this signal would do nothing to itself.
            process.send_signal(signal.SIGWINCH)
            return bool(select.select([output], [], [], 0.5)[0])

        wait_until(forwards, "ctr passes signals on")
        process.terminate()
        assert set(output.read().split()) == {"forwarding", "bye"}
        assert process.wait(60) == 3


def test_a_program_that_cannot_be_run_leaves_nothing(ctr: Ctr) -> None:
    done = ctr.run("run", "--rm", NAME, "c", "nonsense")

    assert done.returncode != 0
    assert 'exec: "nonsense": executable file not found in $PATH' in done.stderr
    assert ctr("containers", "ls", "-q") == ctr("tasks", "ls", "-q") == ""


def test_events_of_a_container(ctr: Ctr, tmp_path: Path) -> None:
    output = tmp_path / "events"
    with ctr.background("events") as events, output.open("w") as file:
        stream = events.stdout
        assert stream is not None
        # ctr does not say when it has subscribed: so something happens until it shows.
        probe = iter(range(1000))
        os.set_blocking(stream.fileno(), False)

        def told() -> str:
            file.write(stream.read() or "")
            file.flush()
            return output.read_text()

        def subscribed() -> bool:
            ctr("leases", "create", "--id", f"l{next(probe)}")
            ctr("snapshots", "prepare", "probe")
            ctr("snapshots", "rm", "probe")
            return "/snapshot/remove" in told()

        wait_until(subscribed, "ctr shows an event")
        ctr("run", "--rm", NAME, "c", "true")
        wait_until(lambda: "/containers/delete" in told(), "the container's end is told")
        ctr("leases", "rm", *ctr("leases", "ls", "-q").split())

    topics = [line.split()[5] for line in output.read_text().splitlines()]
    # Who subscribes soon after the daemon's start is told of earlier ends first.
    topics = topics[topics.index("/snapshot/remove") :]
    wanted = [
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
    ]
    assert [topic for topic in topics if topic in wanted] == wanted


def test_an_image_leaves_and_comes_back(any_ctr: Ctr, tmp_path: Path) -> None:
    ctr, other = any_ctr, "example.com/other:v2"
    ctr("images", "tag", NAME, other)
    ctr.next_daemon()
    ctr("images", "export", str(tmp_path / "archive.tar"), other)
    ctr("images", "rm", "--sync", other)
    assert other not in ctr("images", "ls", "-q").split()
    ctr.next_daemon()
    ctr("images", "import", str(tmp_path / "archive.tar"))
    ctr.next_daemon()

    assert [row[2] for row in ctr.rows("images", "ls") if row[0] == other] == [IMAGE.digest]
    assert ctr("run", "--rm", other, "c", "cat", "/etc/hello") == "hello\n"
    ctr("images", "rm", "--sync", other)


def test_an_image_goes_to_a_registry_and_comes_back(any_ctr: Ctr, tmp_path: Path) -> None:
    ctr = any_ctr
    with running_registry(tmp_path) as address:
        name = f"{address}/test/busybox:v1"
        ctr("images", "push", "--plain-http", name, NAME)
        ctr.next_daemon()
        ctr("images", "pull", "--plain-http", name)
        ctr.next_daemon()
        assert [row[2] for row in ctr.rows("images", "ls") if row[0] == name] == [IMAGE.digest]
        assert ctr("run", "--rm", name, "c", "cat", "/etc/hello") == "hello\n"
        ctr("images", "rm", "--sync", name)


def test_stores(any_ctr: Ctr, tmp_path: Path) -> None:
    """Content, leases, snapshots and namespaces: what a command did, the next daemon knows."""
    ctr = any_ctr
    layer, *_ = (line[0] for line in ctr.rows("content", "ls") if "containerd.io/uncompressed" in line[-1])
    ctr("content", "label", layer, "color=green")
    ctr.next_daemon()
    assert ctr("content", "ls", "-q", "labels.color==green").split() == [layer]
    ctr("content", "label", layer, "color=")

    assert ctr("leases", "create", "--id", "mine", "a=b").strip() == "mine"
    ctr.next_daemon()
    assert ctr("leases", "ls", "-q").split() == ["mine"]
    ctr("leases", "rm", "--sync", "mine")

    (base,) = (row[0] for row in ctr.rows("snapshots", "ls") if row[-1] == "Committed" and len(row) == 2)
    assert ctr("snapshots", "prepare", "--target", str(tmp_path), "key", base).startswith("mount -t overlay")
    ctr("snapshots", "label", "key", "containerd.io/gc.root=now")
    ctr.next_daemon()
    assert json.loads(ctr("snapshots", "info", "key"))["Parent"] == base
    ctr("snapshots", "rm", "key")

    name = f"{ctr.namespace}-other"
    ctr("namespaces", "create", name, "a=b")
    ctr.next_daemon()
    assert [name, "a=b"] in ctr.rows("namespaces", "ls")
    ctr("namespaces", "rm", name)
    assert name not in ctr("namespaces", "ls", "-q").split()
    assert ["io.containerd.runtime.v2", "task", "linux/amd64", "ok"] in ctr.rows("plugins", "ls")
