"""User namespaces for root's daemon: who a container's users are on this machine, and who its files belong to."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ctr_client import Ctr, program
from support.daemon_process import DaemonProcess
from support.images import busybox_with_applets, write_archive
from support.ordinary_user import OrdinaryUser, pid_of, status_of
from support.pyctr_command import Pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FIRST = 300_000
SHOW = "stat -c %u:%g /bin/busybox /etc/hello / && id -u && cat /proc/self/uid_map"


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    with DaemonProcess(config=f'[userns]\nremap = "{FIRST}:65536"\n') as daemon:
        archive = write_archive(daemon.base / "demo.tar", {"docker.io/library/demo:demo": busybox_with_applets()})
        command = Pyctr(daemon)
        command("image", "import", str(archive))
        yield command
        for container in command("ps", "-aq", "--no-trunc").split():
            command("rm", "-f", container)


@pytest.fixture(params=["overlayfs", "native"])
def snapshotter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def started(pyctr: Pyctr, *options: str) -> tuple[str, int]:
    """Return the id of a running container and its pid."""
    name = pyctr("run", "-d", "--network", "none", *options, "demo:demo", "sleep", "1000").strip()
    return name, pid_of(pyctr("inspect", name))


def test_root_is_nobody_here(pyctr: Pyctr, snapshotter: str) -> None:
    name, pid = started(pyctr, "--snapshotter", snapshotter)
    try:
        assert status_of(pid)["Uid"].split() == [str(FIRST)] * 4
        assert status_of(pid)["Gid"].split() == [str(FIRST)] * 4
        lines = pyctr("exec", name, "sh", "-c", SHOW).splitlines()
        assert lines[:4] == ["0:0", "0:0", "0:0", "0"]
        assert lines[4].split() == ["0", str(FIRST), "65536"]
        pyctr("exec", name, "sh", "-c", "echo x >/new; chown 7:8 /etc/hello; cp -p /etc/hello /copy; mkdir -m 777 /t")
        pyctr("exec", "--user", "1000", name, "touch", "/t/file")

        (upper,) = [path.parent for path in (pyctr.daemon.root / "snapshots").glob("*/*/fs/new")]

        owners = {name: (upper / name).stat().st_uid - FIRST for name in ("new", "etc/hello", "copy", "t/file")}
        assert owners == {"new": 0, "etc/hello": 7, "copy": 7, "t/file": 1000}
        assert (upper / "copy").stat().st_gid == FIRST + 8
        assert upper.stat().st_uid == FIRST
    finally:
        pyctr("rm", "-f", name)


def test_layers_stay_as_they_are(pyctr: Pyctr) -> None:
    """Containers with other maps, and with none, share them."""
    for options, root in (((), 0), (("--userns", "500000:1000"), 0), (("--userns", "host"), 0)):
        lines = pyctr.box(*options, "demo:demo", "sh", "-c", SHOW).splitlines()
        assert lines[:4] == ["0:0", "0:0", "0:0", str(root)]
    layers = list((pyctr.daemon.root / "snapshots/overlayfs").glob("*/fs/bin/busybox"))
    assert [path.stat().st_uid for path in layers] == [0]


def test_out_of_it_and_other_users_by_the_container(pyctr: Pyctr) -> None:
    name, pid = started(pyctr, "--userns", "host")
    assert status_of(pid)["Uid"].split()[0] == "0"
    pyctr("rm", "-f", name)
    with OrdinaryUser() as granted:
        name, pid = started(pyctr, "--userns", granted.name)
        assert status_of(pid)["Uid"].split()[0] == str(granted.first)
        pyctr("rm", "-f", name)


@pytest.mark.full
def test_it_starts_again(pyctr: Pyctr) -> None:
    """From the labels of its snapshot, also with another daemon."""
    name, _ = started(pyctr)
    pyctr("exec", name, "sh", "-c", "echo kept >/file")
    pyctr("kill", name)
    pyctr("wait", name)
    pyctr.daemon.restart()

    pyctr("start", name)

    assert pyctr("exec", name, "sh", "-c", "cat /file; stat -c %u /file /etc/hello").split() == ["kept", "0", "0"]
    pyctr("rm", "-f", name)


@pytest.mark.full
def test_volumes_are_shared_by_containers_with_other_users(pyctr: Pyctr) -> None:
    """On disk they belong to whom they would belong to without all this."""
    pyctr.box("-v", "shared:/v", "demo:demo", "sh", "-c", "echo x >/v/file; chown 5 /v/file")
    for options in (("--userns", "host"), ("--userns", "500000:1000"), ()):
        out = pyctr.box(*options, "-v", "shared:/v", "demo:demo", "sh", "-c", "stat -c %u /v /v/file; echo y >>/v/file")
        assert out.split() == ["0", "5"]
    (file,) = pyctr.daemon.root.rglob("file")
    assert file.stat().st_uid == 5
    pyctr("volume", "rm", "shared")


@pytest.mark.full
def test_its_files_of_etc_are_its_roots(pyctr: Pyctr) -> None:
    script = "stat -c %u /etc/hosts /etc/hostname; echo 1.2.3.4 other >>/etc/hosts; grep -c other /etc/hosts"
    assert pyctr.box("demo:demo", "sh", "-c", script).split() == ["0", "0", "1"]


@pytest.mark.parametrize(
    "options",
    [
        ("--network", "host"),
        ("--device", "/dev/zero:/dev/nothing"),
        ("--init", "-t", "--read-only", "--memory", "64m", "--tmpfs", "/t"),
    ],
)
@pytest.mark.full
def test_options(pyctr: Pyctr, options: tuple[str, ...]) -> None:
    script = "ls /sys/class /dev/pts >/dev/null && head -c 3 /dev/zero | wc -c"
    assert pyctr("run", "--rm", "--network", "none", *options, "demo:demo", "sh", "-c", script).split() == ["3"]


def test_what_is_roots_here_stays_out_of_reach(pyctr: Pyctr, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    for script, error in {
        "cat /s": "Permission denied",
        "chmod 666 /s": "Operation not permitted",
        "mknod /disk b 254 0": "Operation not permitted",
        "echo x >/proc/sys/kernel/panic": "Read-only file system",
    }.items():
        done = pyctr.run("run", "--rm", "--network", "none", "-v", f"{secret}:/s", "demo:demo", "sh", "-c", script)
        assert done.returncode != 0
        assert error in done.stderr, (script, done.stderr)


@pytest.mark.peer
@pytest.mark.parametrize("version", ["1.6", "2"])
@pytest.mark.parametrize("labels", [(), ("--remap-labels",)], ids=["chown", "labels"])
@pytest.mark.full
def test_ctr(pyctr: Pyctr, version: str, labels: tuple[str, ...]) -> None:
    """It changes the owners itself, or leaves that to the snapshotter."""
    if version == "1.6" and labels:
        pytest.skip("containerd 1.6's client mounts the root itself, and knows no id-mapped layers")
    ctr = Ctr(pyctr.daemon, program(version), "default")
    maps = ("--uidmap", "0:400000:65536", "--gidmap", "0:400000:65536", *labels)

    out = ctr("run", "--rm", *maps, "docker.io/library/demo:demo", "c", "sh", "-c", SHOW)

    assert out.split() == ["0:0", "0:0", "0:0", "0", "0", "400000", "65536"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--privileged",), "--privileged: root of a user namespace is not privileged; add --userns host"),
        (("--userns", "0:10"), "'0:10': the ids must begin above 0"),
        (("--userns", "1:x"), "'1:x' is not UID:SIZE, the name of a user, or host"),
        (
            ("--userns", "nobody-here"),
            "/etc/subuid grants nobody-here no ids: add a line such as nobody-here:100000:65536",
        ),
    ],
)
def test_what_cannot_be_is_named(pyctr: Pyctr, options: tuple[str, ...], message: str) -> None:
    done = pyctr.run("run", "--rm", "--network", "none", *options, "demo:demo", "true")

    assert done.returncode == 125
    assert message in done.stderr


def test_a_configuration_that_names_nobody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[userns]\nremap = "nobody-here"\n')
    command = [sys.executable, "-m", "pyctrd", "config", "check", str(tmp_path / "c.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "userns.remap: /etc/subuid grants nobody-here no ids" in done.stderr
