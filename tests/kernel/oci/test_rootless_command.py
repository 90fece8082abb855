"""`pyctr-oci` for one who is not root."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon_process import wait_until
from support.oci_bundle import make_root, plain_spec
from support.ordinary_user import OrdinaryUser, status_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    with OrdinaryUser() as one:
        yield one


class Command:
    """The command as a user runs it, on a bundle of that user's."""

    def __init__(self, user: OrdinaryUser, bundle: Path) -> None:
        self.user, self.bundle = user, bundle

    def __call__(self, *arguments: str, detached: bool = False) -> "subprocess.CompletedProcess[str]":
        """Run it; if `detached`, with streams that do not keep a pipe of ours open in the container."""
        command = [sys.executable, "-m", "pyctr_shim.oci", *arguments]
        if detached:
            command = ["sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh", *command]
        return self.user.run(*command, cwd=self.bundle)

    def good(self, *arguments: str, detached: bool = False) -> str:
        done = self(*arguments, detached=detached)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def configure(self, maps: list[dict[str, int]] | None, *args: str, **changes: Any) -> None:
        """Write a config.json with a user namespace of these maps, or none."""
        spec = plain_spec(*args)
        spec["process"] |= changes
        if maps:
            spec["linux"]["namespaces"].append({"type": "user"})
            spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = maps
        (self.bundle / "config.json").write_text(json.dumps(spec))


@pytest.fixture
def oci(user: OrdinaryUser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    bundle = user.home / f"bundle{os.urandom(4).hex()}"
    make_root(bundle / "rootfs")
    for directory, names, files in os.walk(bundle):
        for name in (".", *names, *files):
            os.lchown(os.path.join(directory, name), user.uid, user.gid)
    command = Command(user, bundle)
    yield command
    for name in command("list", "-q").stdout.split():
        command("delete", "--force", name)


def granted(user: OrdinaryUser) -> list[dict[str, int]]:
    return [
        {"containerID": 0, "hostID": user.uid, "size": 1},
        {"containerID": 1, "hostID": user.first, "size": 65535},
    ]


def test_as_one_id_and_without_any_help(oci: Command) -> None:
    """What `spec --rootless` writes takes no grant and no newuidmap."""
    oci.good("spec", "--rootless")
    spec = json.loads((oci.bundle / "config.json").read_text())
    spec["process"] |= {
        "args": ["sh", "-c", "id -u; echo x >/file; ls /sys/class >/dev/null && cat /proc/self/uid_map"],
        "terminal": False,
    }
    spec["root"]["readonly"] = False
    (oci.bundle / "config.json").write_text(json.dumps(spec))

    lines = oci.good("run", "c1").splitlines()

    assert lines[0] == "0"
    assert lines[1].split() == ["0", str(oci.user.uid), "1"]
    assert (oci.bundle / "rootfs/file").stat().st_uid == oci.user.uid


def test_the_whole_life(oci: Command) -> None:
    oci.configure(granted(oci.user), "sleep", "1000", user={"uid": 1000, "gid": 1000})
    pid_file = oci.bundle / "pid"

    oci.good("create", "--pid-file", str(pid_file), "c2", detached=True)
    pid = int(pid_file.read_text())
    oci.good("start", "c2")

    assert status_of(pid)["Uid"].split() == [str(oci.user.host_id(1000))] * 4
    assert json.loads(oci.good("state", "c2"))["status"] == "running"
    assert oci.good("exec", "c2", "id", "-u") == "1000\n"
    assert oci.good("exec", "--user", "0:0", "c2", "id", "-u") == "0\n"
    assert json.loads(oci.good("ps", "--format", "json", "c2")) == [pid]
    assert "c2" in oci.good("list")
    oci.good("kill", "c2", "KILL")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of init")
    oci.good("delete", "c2")
    assert not any((oci.user.runtime / "pyctr/oci").iterdir())


@pytest.mark.parametrize("option", [(), ("--rootless", "true"), ("--rootless", "auto")])
def test_without_a_user_namespace_it_is_refused(oci: Command, option: tuple[str, ...]) -> None:
    oci.configure(None, "true")
    done = oci(*option, "run", "c3")
    assert done.returncode == 1
    assert (
        done.stderr == "pyctr-oci: linux.namespaces: whoever is not root needs a new user namespace for a container\n"
    )


def test_ids_that_nobody_granted_are_refused(oci: Command) -> None:
    oci.configure([{"containerID": 0, "hostID": 0, "size": 10}], "true")
    done = oci("run", "c4")
    assert done.returncode == 1
    assert (
        "pyctr-oci: linux.uidMappings, linux.gidMappings: newuidmap: uid range [0-10) -> [0-10) not allowed"
        in done.stderr
    )


@pytest.mark.full
def test_limits_are_refused(oci: Command) -> None:
    oci.configure(granted(oci.user), "true")
    spec = json.loads((oci.bundle / "config.json").read_text())
    spec["linux"]["resources"] = {"memory": {"limit": 1 << 26}}
    (oci.bundle / "config.json").write_text(json.dumps(spec))
    done = oci("run", "c5")
    assert done.returncode == 1
    assert "linux.resources.memory.limit: no cgroup has been delegated to this user" in done.stderr


@pytest.mark.full
def test_false_leaves_it_to_the_caller(oci: Command) -> None:
    """Who cannot do without enters nothing, and the kernel says no."""
    oci.configure(granted(oci.user), "true")
    done = oci("--rootless", "false", "run", "c6")
    assert done.returncode == 1
    assert "ermi" in done.stderr
