"""The daemon of an ordinary user: containers whose root is that user, and a user who is nobody else by it."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys import user_namespace
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.images import busybox_with_applets, write_archive
from support.layers import archive, directory, entry
from support.ordinary_user import FUSE, UNIFIED, OrdinaryUser, pid_of, status_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

BELOW = archive(
    [
        *(directory(name) for name in ("layers", "layers/merged", "layers/hidden", "layers/hidden/sub")),
        *(entry(f"layers/{name}", b"below") for name in ("merged/gone", "merged/kept", "hidden/old", "hidden/sub/old")),
    ]
)
ABOVE = archive(
    [
        directory("layers"),
        directory("layers/merged"),
        entry("layers/merged/.wh.gone", b""),
        directory("layers/hidden"),
        entry("layers/hidden/.wh..wh..opq", b""),
        entry("layers/hidden/new", b"above"),
    ]
)
needs_fuse = pytest.mark.skipif(
    shutil.which("fuse-overlayfs") is None or not FUSE.exists(), reason="needs fuse-overlayfs and /dev/fuse"
)
FUSE_OVERLAYFS = ("--snapshotter", "fuse-overlayfs")


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    with OrdinaryUser() as one:
        write_archive(one.home / "demo.tar", {"docker.io/library/demo:demo": busybox_with_applets(BELOW, ABOVE)})
        yield one


@pytest.fixture(scope="module")
def daemon(user: OrdinaryUser) -> Iterator[DaemonProcess]:
    with user.daemon(user.with_fuse()) as one:
        user.pyctr("image", "import", str(user.home / "demo.tar"))
        yield one
        for container in user.pyctr("ps", "-aq", "--no-trunc").split():
            user.pyctr("rm", "-f", container)


@pytest.fixture
def box(user: OrdinaryUser, daemon: DaemonProcess) -> Iterator[str]:
    """A running container that leaves a file and a line in its log."""
    script = "echo started; echo x >/root-file; exec sleep 1000"
    name = user.pyctr("run", "-d", "demo:demo", "sh", "-c", script).strip()
    yield name
    user.pyctr("rm", "-f", name)


def test_a_containers_root_is_the_user(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    """On this machine: the processes, and what they leave on disk."""
    wait_until(lambda: user.pyctr("logs", box) == "started\n", "the log has the line")
    assert user.pyctr("exec", box, "id", "-u") == "0\n"
    pid = pid_of(user.pyctr("inspect", box))
    assert status_of(pid)["Uid"].split() == [str(user.uid)] * 4
    # Those of containers that were removed stay until the next collection.
    files = (daemon.root / "snapshots").glob("*/*/fs/root-file")
    written = max(files, key=lambda file: file.stat().st_mtime_ns)
    assert (written.stat().st_uid, written.stat().st_gid) == (user.uid, user.gid)


def test_other_users_of_a_container_have_the_granted_ids(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    user.pyctr("exec", box, "sh", "-c", "mkdir -m 777 /t")
    user.pyctr("exec", "--user", "1000:1000", box, "sh", "-c", "echo x >/t/file; id -u >>/t/file")

    (written,) = (daemon.root / "snapshots").glob("*/*/fs/t/file")

    assert written.read_text() == "x\n1000\n"
    assert written.stat().st_uid == user.host_id(1000)


def test_its_life(user: OrdinaryUser, daemon: DaemonProcess) -> None:
    name = user.pyctr(
        "run", "-d", "--name", "life", "demo:demo", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"
    )
    assert user.pyctr("ps", "--format", "{{.Names}}").split() == ["life"]
    assert "sleep" in user.pyctr("top", "life")

    user.pyctr("stop", "life")

    assert user.pyctr("inspect", "--format", "{{.State.ExitCode}}", "life") == "3\n"
    user.pyctr("start", "life")
    user.pyctr("kill", "life")
    assert user.pyctr("wait", "life") == "137\n"
    user.pyctr("rm", "life")
    assert name.strip() not in user.pyctr("ps", "-aq", "--no-trunc")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--network", "none", "-t"),
        ("--snapshotter", "native", "--read-only"),
        pytest.param(FUSE_OVERLAYFS, marks=needs_fuse),
        pytest.param((*FUSE_OVERLAYFS, "--read-only"), marks=needs_fuse),
    ],
)
@pytest.mark.full
def test_options(user: OrdinaryUser, daemon: DaemonProcess, options: tuple[str, ...]) -> None:
    """/dev, /proc, /sys and a volume are as ever."""
    script = (
        "echo x >/dev/null && head -c 3 /dev/zero | wc -c && ls /proc/1 /sys/class >/dev/null && touch /v/x && echo ok"
    )

    out = user.pyctr("run", "--rm", "-v", "/v", *options, "demo:demo", "sh", "-c", script)

    assert out.split() == ["3", "ok"]


@pytest.mark.parametrize(
    ("snapshotter", "kind"),
    [
        ("overlayfs", "overlay"),
        pytest.param("native", "", marks=pytest.mark.full),
        pytest.param("fuse-overlayfs", "fuse.fuse-overlayfs", marks=needs_fuse),
    ],
)
def test_what_a_layer_hides_stays_hidden(
    user: OrdinaryUser, daemon: DaemonProcess, snapshotter: str, kind: str
) -> None:
    """Whether an image's layer does, or a container that is started again."""
    name = user.pyctr("run", "-d", "--snapshotter", snapshotter, "demo:demo", "sleep", "1000").strip()
    show = ("exec", name, "sh", "-c", "cd /layers; find . -type f | sort")
    assert user.pyctr(*show).split() == ["./hidden/new", "./merged/kept"]
    mounts = user.pyctr("exec", name, "cat", "/proc/mounts")
    (shown,) = [line.split()[2] for line in mounts.splitlines() if line.split()[1] == "/"]
    assert shown == kind or not kind

    script = "cd /layers; rm merged/kept; rm -r hidden; mkdir hidden; echo x >hidden/last; chown 1000 hidden/last"
    user.pyctr("exec", name, "sh", "-c", script)
    user.pyctr("stop", "-t", "0", name)
    user.pyctr("start", name)

    assert user.pyctr(*show).split() == ["./hidden/last"]
    assert user.pyctr("exec", name, "stat", "-c", "%u", "/layers/hidden/last") == "1000\n"
    user.pyctr("rm", "-f", name)


def test_containers_live_on_without_the_daemon(user: OrdinaryUser, daemon: DaemonProcess) -> None:
    """The next daemon enters the user namespace of those that it finds, or it could not end all of their processes."""
    name = user.pyctr("run", "-d", "--user", "1000", "demo:demo", "sleep", "1000").strip()
    pid = pid_of(user.pyctr("inspect", name))

    daemon.kill()
    assert status_of(pid)["State"][0] in "SR"
    daemon.start()

    assert user.pyctr("ps", "-q", "--no-trunc").split() == [name]
    assert user.pyctr("exec", name, "id", "-u") == "1000\n"
    assert os.readlink(f"/proc/{daemon.pid}/ns/user") == os.readlink(f"/proc/{pid}/ns/user")
    shim = int(json.loads(next(daemon.state.glob(f"tasks/*/{name}/shim.json")).read_text())["pid"])
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of a container whose shim is gone")
    user.pyctr("rm", "-f", name)


@pytest.mark.full
def test_containers_whose_shim_and_daemon_are_gone_are_buried(user: OrdinaryUser, daemon: DaemonProcess) -> None:
    name = user.pyctr("run", "-d", "--user", "1000", "demo:demo", "sleep", "1000").strip()
    pid = pid_of(user.pyctr("inspect", name))
    shim = int(json.loads(next(daemon.state.glob(f"tasks/*/{name}/shim.json")).read_text())["pid"])
    daemon.kill()
    os.kill(shim, signal.SIGKILL)

    daemon.start()

    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the container")
    user.pyctr("rm", "-f", name)


@pytest.mark.full
def test_an_upgrade_stays_in_the_namespace(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    namespace = os.readlink(f"/proc/{daemon.pid}/ns/user")
    done = user.run(sys.executable, "-m", "pyctrd", "upgrade")
    assert done.returncode == 0, done.stderr
    daemon.adopt(int(done.stdout.rpartition("pid ")[2]))

    assert os.readlink(f"/proc/{daemon.pid}/ns/user") == namespace
    assert user.pyctr("exec", box, "id", "-u") == "0\n"


@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpu").exists(), reason="cgroups of version 2 may be delegated here")
@pytest.mark.parametrize(("option", "value", "field"), [("--memory", "64m", "memory.limit")])
def test_limits_that_nobody_would_keep_are_refused(
    user: OrdinaryUser, daemon: DaemonProcess, option: str, value: str, field: str
) -> None:
    done = user.run(sys.executable, "-m", "pyctr", "run", "--rm", option, value, "demo:demo", "true")

    assert done.returncode == 125
    assert f"linux.resources.{field}: no cgroup has been delegated to this user" in done.stderr
    assert "pyctr check rootless" in done.stderr


# Attacks.


_TRIES = {
    "cat /s": "Permission denied",
    "chown 0 /s": "Operation not permitted",
    "mknod /disk b 254 0": "Operation not permitted",
    "echo x >/sys/fs/cgroup/x": "Read-only file system",
    "echo 1 >/proc/sys/kernel/panic": "Read-only file system",
    "mkdir /m; mount -t tmpfs none /m": "permission denied",
}


@pytest.mark.parametrize(("options", "count"), [((), 6), (("--privileged",), 3)])
def test_a_containers_root_is_not_the_machines(
    user: OrdinaryUser, daemon: DaemonProcess, options: tuple[str, ...], count: int
) -> None:
    """Nor with `--privileged`: such a container may do to itself what it likes, and no more than that."""
    secret = user.base / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    tries = dict(list(_TRIES.items())[:count])
    script = "".join(f"({one}) && echo done: '{one}'\n" for one in tries)
    done = user.run(sys.executable, "-m", "pyctr", "run", "--rm", *options, "-v", f"{secret}:/s", "demo:demo",
                    "sh", "-c", f"({script}) 2>&1; true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == count, done.stdout
    for line, error in zip(done.stdout.splitlines(), tries.values(), strict=True):
        assert error in line
    assert secret.stat().st_uid == 0


def test_nobody_else_gets_at_the_daemon(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    """Neither another user, nor a container of another user's that is shown all directories."""
    for path in (daemon.state, daemon.root):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert path.stat().st_uid == user.uid
    # As if the directories let him through: what is left is the sockets' own protection.
    attach = next((daemon.state / "s").glob("*.attach"))
    with OrdinaryUser() as other, opened(user.runtime, daemon.state, daemon.state / "s"):
        connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        for path in (daemon.address, Path(f"{daemon.address}.ttrpc"), attach):
            done = other.run(sys.executable, "-c", connect, str(path))
            assert "PermissionError" in done.stderr, path
        listing = other.run("sh", "-c", f"cat {daemon.state}/tasks/default/*/config.json {daemon.root}/metadata.db")
        assert "Permission denied" in listing.stderr
        assert listing.stdout == ""


@contextlib.contextmanager
def opened(*directories: Path) -> Iterator[None]:
    """Let everybody through directories."""
    for one in directories:
        one.chmod(0o711)
    yield
    for one in directories:
        one.chmod(0o700)


@pytest.mark.full
def test_a_containers_other_users_get_at_no_socket(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    """Who broke out of the root's ids alone would still not be the daemon's user."""
    connect = (
        "import os, socket, sys; os.setresuid(*[int(sys.argv[2])] * 3);"
        " socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    attach = next((daemon.state / "s").glob("*.attach"))
    with opened(user.runtime, daemon.state, daemon.state / "s"):
        for path in (daemon.address, attach):
            done = subprocess.run(
                [sys.executable, "-c", connect, str(path), str(user.host_id(1000))],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "PermissionError" in done.stderr


def test_root_may_use_it(user: OrdinaryUser, daemon: DaemonProcess, box: str) -> None:
    """As anything on this machine; what it attaches to is the user's shim, which looks at who comes."""
    command = [sys.executable, "-m", "pyctr", "--address", str(daemon.address), "run", "--rm", "-i", "demo:demo", "cat"]
    done = subprocess.run(command, input="typed\n", capture_output=True, text=True, timeout=4 * DEADLINE, check=False)

    assert (done.returncode, done.stdout) == (0, "typed\n"), done.stderr


# With a cgroup.


@pytest.mark.skipif(not UNIFIED.exists(), reason="needs the hierarchy of version 2 beside those of version 1")
@pytest.mark.full
def test_a_delegated_cgroup_is_where_everything_is() -> None:
    """Seen without those of version 1, which have all controllers here: what is left is to find, to stop and to end."""
    with OrdinaryUser() as other:
        path = f"/{other.name}"
        here = UNIFIED / other.name
        with other.daemon(other.delegated()) as own:
            other.pyctr("image", "from-host", "demo", "sh", "sleep", "cat")
            name = other.pyctr("run", "-d", "--user", "1000", "demo", "sleep", "1000").strip()
            pid = pid_of(other.pyctr("inspect", name))
            assert unified(own.pid) == f"{path}/daemon"
            assert unified(pid) == f"{path}/default/{name}"
            shim = json.loads(next(own.state.glob(f"tasks/*/{name}/shim.json")).read_text())["pid"]
            assert unified(shim) == f"{path}/shims"
            assert other.pyctr("exec", name, "cat", "/proc/self/cgroup").endswith("0::/\n")
            other.pyctr("pause", name)
            assert (here / f"default/{name}/cgroup.freeze").read_text() == "1\n"
            own.restart()
            other.pyctr("unpause", name)
            done = other.run(sys.executable, "-m", "pyctr", "run", "--rm", "--memory", "64m", "demo", "true")
            assert "linux.resources.memory.limit: writing" in done.stderr
            done = other.run(sys.executable, "-m", "pyctr", "run", "--rm", "demo", "sh", "-c", "echo >/sys/fs/cgroup/x")
            assert "ead-only file system" in done.stderr
            other.pyctr("rm", "-f", name)
            assert not (here / f"default/{name}").exists()


def unified(pid: int) -> str:
    """Return a process's cgroup of version 2."""
    (line,) = [one for one in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if one.startswith("0::")]
    return line.removeprefix("0::")


# What it takes.


def test_check_finds_everything(user: OrdinaryUser) -> None:
    done = user.run(sys.executable, "-m", "pyctr", "check", "rootless")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok    ids that /etc/subuid grants: {65536} ids" in done.stdout
    assert "ok    a user namespace: can be entered" in done.stdout
    assert "MISS" not in done.stdout


@needs_fuse
def test_a_device_that_is_for_root_alone_is_named() -> None:
    """Before a container is made that could not start."""
    check = (sys.executable, "-m", "pyctr", "check", "rootless")
    with OrdinaryUser() as one:
        hers, roots = one.with_fuse(), one.with_fuse(0o600)
        usable, checked = (one.run(*check, wrapper=wrapper) for wrapper in (hers, roots))
        with one.daemon(roots):
            one.pyctr("image", "from-host", "demo", "true")
            run = one.run(sys.executable, "-m", "pyctr", "run", "--rm", *FUSE_OVERLAYFS, "demo", "true")

    assert f"ok    fuse-overlayfs: {shutil.which('fuse-overlayfs')}\nok    /dev/fuse: can be used\n" in usable.stdout
    assert "note  /dev/fuse: this user may not use it\n      remedy: sudo chmod 666 /dev/fuse" in checked.stdout
    assert run.returncode == 125
    assert "snapshotter not loaded: fuse-overlayfs: this user may not use /dev/fuse: chmod 666" in run.stderr


def test_who_has_no_program_for_it_is_told_how_to_get_it(user: OrdinaryUser) -> None:
    """Nothing is missing by that: there is overlayfs."""
    programs = user.base / "programs"
    programs.mkdir()
    for program in ("sh", *user_namespace.MAPPERS):
        (programs / program).symlink_to(str(shutil.which(program)))

    done = user.run("env", f"PATH={programs}", sys.executable, "-m", "pyctr", "check", "rootless")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "note  fuse-overlayfs: not there\n      remedy: sudo apt-get install fuse-overlayfs\n" in done.stdout


def test_who_is_granted_no_ids_is_told_how_to_get_them() -> None:
    with OrdinaryUser(), OrdinaryUser(granted=0) as poor:  # the remedy leaves others their ids
        checked = poor.run(
            sys.executable, "-m", "pyctr", "check", "rootless", environment={"XDG_RUNTIME_DIR": "/nowhere"}
        )
        started = poor.run(sys.executable, "-m", "pyctrd")

    assert checked.returncode == 1
    assert "MISS  ids that /etc/subuid grants: none" in checked.stdout
    assert f"remedy: sudo usermod --add-subuids {poor.first}-" in checked.stdout
    assert f"MISS  a user namespace: /etc/subuid grants {poor.name} no ids" in checked.stdout
    assert "MISS  XDG_RUNTIME_DIR: /nowhere: No such file" in checked.stdout
    assert started.returncode == 1
    assert started.stderr == (
        f"pyctrd: /etc/subuid grants {poor.name} no ids; it needs root, or a user namespace, and"
        " `pyctr check rootless` says what that takes\n"
    )
