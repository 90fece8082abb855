"""`pyctr` against a real daemon: what containers have beside their own file system."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import images
from support.daemon_process import wait_until
from support.pyctr_command import Pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PROGRAMS = ("sh", "cat", "echo", "grep", "sleep", "true")


def test_mounts(pyctr: Pyctr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    out = pyctr.box(
        "-v", f"{tmp_path}:/rw", "-v", f"{tmp_path}:/ro:ro", "--tmpfs", "/scratch:size=1m", "--read-only",
        "--mount", f"type=bind,source={tmp_path}/file,target=/deep/in/file,readonly",
        "demo", "sh", "-c",
        "cat /ro/file /deep/in/file; echo new > /rw/new; echo x > /scratch/x && cat /scratch/x;"
        " for i in /ro/x /deep/in/file /x; do (echo no > $i) 2>/dev/null || echo refused; done",
    ).splitlines()  # fmt: skip
    assert out == ["of the host", "of the host", "x", "refused", "refused", "refused"]
    assert (tmp_path / "new").read_text() == "new\n"
    made = tmp_path / "made" / "for" / "it"
    name = pyctr("create", "--network", "host", "-v", f"{made}:/x:ro", "demo", "true").strip()
    assert made.is_dir()
    (inspected,) = json.loads(pyctr("inspect", name))
    assert inspected["Mounts"] == [
        {"Type": "bind", "Source": str(made), "Destination": "/x", "RW": False, "Propagation": "rprivate"}
    ]
    pyctr("rm", name)


def test_network_files(pyctr: Pyctr, name: str) -> None:
    """They are the container's own: kept over restarts, also of the daemon, written or read-only, and gone with it."""
    show = "cat /etc/hostname; grep box /etc/hosts; echo 10.0.0.1 mine >>/etc/hosts"
    pyctr("run", "-d", "--network", "none", "--hostname", "box.lan", "--name", name, "demo", "sleep", "1000")
    assert pyctr("exec", name, "sh", "-c", show) == "box.lan\n127.0.1.1\tbox.lan box\n"
    assert "no name server" in pyctr("exec", name, "cat", "/etc/resolv.conf")
    files = pyctr.daemon.root / "network/default"
    pyctr.daemon.restart()
    pyctr("restart", "-t", "0", name)
    assert pyctr("exec", name, "sh", "-c", "grep -c mine /etc/hosts") == "1\n"
    assert len(list(files.glob("*/*"))) == 3
    pyctr("rm", "-f", name)
    wait_until(lambda: not files.exists(), "the files of a removed container are gone")
    refused = pyctr.box("--read-only", "demo", "sh", "-c", "cat /etc/hostname; (echo >/etc/hosts) 2>&1 || true")
    assert re.fullmatch(r"[0-9a-f]{12}\n.*Read-only file system\n", refused)
    mine = Path("/etc/passwd")
    assert pyctr.box("-v", f"{mine}:/etc/hostname:ro", "demo", "cat", "/etc/hostname") == mine.read_text()
    host = pyctr("run", "--rm", "--network", "host", "demo", "cat", "/etc/hosts", "/etc/hostname")
    assert host == Path("/etc/hosts").read_text() + socket.gethostname() + "\n"


@pytest.fixture
def image_with_volume(pyctr: Pyctr, tmp_path: Path) -> Iterator[str]:
    """An image, in the namespace `kept`, that declares its directory /data a volume; it has a file in it."""
    built = images.image(
        {"bin/busybox": Path("/bin/busybox").read_bytes(), "data/given": b"of the image\n"},
        config={"Entrypoint": ["/bin/busybox"], "Volumes": {"/data": {}}},
    )
    archive = images.write_archive(tmp_path / "image.tar", {"docker.io/library/volumes:1": built})
    name = pyctr("-n", "kept", "image", "import", str(archive)).strip()
    yield name
    pyctr("-n", "kept", "image", "rm", name)
    pyctr("namespace", "rm", "kept")


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_volumes(pyctr: Pyctr, image_with_volume: str, tmp_path: Path, snapshotter: str) -> None:
    """A volume starts as what the image has, is written by restarts, and goes with --rm, rm -v or when it is told."""

    def run(*arguments: str) -> str:
        return pyctr("-n", "kept", *arguments)

    make = ("--network", "none", "--snapshotter", snapshotter)
    folder = pyctr.daemon.root / "volumes/kept"
    assert run("run", "--rm", *make, image_with_volume, "cat", "/data/given") == "of the image\n"
    wait_until(lambda: not folder.exists(), "the volume of a container with --rm is gone")
    append = ("sh", "-c", "/bin/busybox echo more >>/data/given; /bin/busybox cat /data/given; echo >/mine/x")
    run("run", "--name", "one", "-v", "/mine", *make, image_with_volume, *append)
    run("start", "-a", "one")
    assert run("logs", "one").splitlines() == ["of the image", "more", "of the image", "more", "more"]
    assert sorted(run("volume", "ls", "--format", "{{.Target}} {{.Used}}").splitlines()) == ["/data yes", "/mine yes"]
    assert "Volumes" in run("df")
    (volume, *_) = run("volume", "ls", "-q").split()
    assert "in use" in pyctr.run("-n", "kept", "volume", "rm", volume).stderr
    run("rm", "-v", "one")
    assert not folder.exists()
    run("create", "--name", "two", "-v", "/mine", *make, image_with_volume, "true")
    run("rm", "two")
    assert len(run("volume", "ls", "-q").split()) == 2
    run("volume", "rm", run("volume", "ls", "-q").split()[0])
    assert len(run("volume", "prune").split()) == 1
    assert not folder.exists()
    (tmp_path / "mine").mkdir()
    assert run("run", "--rm", "-v", f"{tmp_path}/mine:/data", *make, image_with_volume, "ls", "/data") == ""


def test_volumes_with_names(pyctr: Pyctr, image_with_volume: str) -> None:
    """Any container can have one; it outlives them, the daemon's end and `prune` without -a, and is kept from `rm`."""

    def run(*arguments: str) -> str:
        return pyctr("-n", "kept", *arguments)

    def make(*arguments: str) -> str:
        return run("run", "--network", "none", *arguments)

    assert run("volume", "create", "--label", "a=b", "data") == "data\n"
    assert make("--rm", "-v", "data:/data", image_with_volume, "cat", "/data/given") == "of the image\n"
    make("--name", "one", "-v", "data:/data", image_with_volume, "sh", "-c", "/bin/busybox echo more >>/data/given")
    assert "in use by container" in pyctr.run("-n", "kept", "volume", "rm", "data").stderr
    pyctr.daemon.restart()
    look = "/bin/busybox cat /x/given; /bin/busybox touch /x/y 2>/dev/null || /bin/busybox echo refused"
    shown = make("--rm", "--mount", "source=data,target=/x,readonly", image_with_volume, "sh", "-c", look)
    assert shown == "of the image\nmore\nrefused\n"
    (found,) = json.loads(run("volume", "inspect", "data"))
    assert (found["Labels"], len(found["Containers"]), found["Anonymous"]) == ({"a": "b"}, 1, False)
    assert (Path(found["Mountpoint"]) / "given").exists()
    assert run("volume", "ls", "--format", "{{.Name}} {{.Used}}") == "data yes\n"
    (inspected,) = json.loads(run("inspect", "one"))
    (mount,) = inspected["Mounts"]
    assert (mount["Type"], mount["Name"], mount["Destination"], mount["RW"]) == ("volume", "data", "/data", True)
    assert mount["Source"] == found["Mountpoint"]
    run("rm", "-v", "one")
    assert make("--rm", "-v", "fresh:/data:nocopy", image_with_volume, "ls", "/data") == ""
    assert run("volume", "prune") == ""
    with pyctr.terminal("-n", "kept", "volume", "prune", "--all") as tty:
        tty.expect("Remove 2 volumes")
        tty.type("n\n")
        assert tty.wait() == 1
    assert "still has 2 volumes" in pyctr.run("namespace", "rm", "kept").stderr
    assert sorted(run("volume", "prune", "--all").split()) == ["data", "fresh"]
    assert not list((pyctr.daemon.root / "named_volumes/kept").iterdir())
    for bad, message in (("x:/data", "volume name 'x'"), ("data:/x:rshared", "ro, rw and nocopy")):
        refused = pyctr.run("-n", "kept", "run", "--network", "none", "-v", bad, image_with_volume, "true")
        assert refused.returncode == 125
        assert message in refused.stderr
