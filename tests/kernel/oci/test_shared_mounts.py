"""Containers in a mount namespace that is not their own: the host's, or another's by path."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import forks, runtime, state
from pyctr_shim.oci.checkpoint.choices import Common, Dump
from pyctr_shim.oci.checkpoint.dump import dump
from pyctr_shim.oci.errors import OciError
from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from support.oci_bundle import Lab, eventually, in_user_namespace, is_mounted, make_root, process, wait, with_namespaces
from support.oci_command import Command, detached
from support.patience import DEADLINE

pytestmark = pytest.mark.root

OWN = os.readlink("/proc/self/ns/mnt")
DEVICES = {f"/dev/{name}" for name in ("full", "null", "random", "tty", "urandom", "zero")}  # with a user namespace
LOOK = "readlink /proc/self/ns/mnt; ls /; cat /proc/self/mountinfo"


@contextmanager
def sleeper(*options: str) -> Iterator[int]:
    """Yield the process id of one in namespaces of its own."""
    words = ["unshare", *options, "sh", "-c", "echo ready; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()


@pytest.fixture(params=["private", "shared"])
def other(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process id of one in a mount namespace of its own, whose mounts are nobody else's or its own peers."""
    with sleeper("--mount", f"--propagation={request.param}") as pid:
        yield pid


def places(pid: int | str = "self", below: Path = Path("/")) -> list[str]:
    """Return where something is mounted, as a process sees it."""
    found = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return sorted(path for path in found if Path(path).is_relative_to(below))


def assert_is_the_containers(output: str, namespace: str) -> None:
    """Assert that LOOK has seen the container's root, and all that is mounted in it, in that namespace."""
    found, *lines = output.splitlines()
    assert found == namespace
    assert {"bin", "proc", "tmp"} <= set(lines)
    assert "boot" not in lines
    where = [line.split()[4] for line in lines if " - " in line]
    assert set(where) - DEVICES == {"/", "/dev", "/dev/pts", "/proc", "/sys"}


def test_the_hosts(lab: Lab) -> None:
    ended = lab.run(with_namespaces(lab.spec("sh", "-c", LOOK), mount=None))

    assert_is_the_containers(ended.output, OWN)
    assert not places(below=lab.base)


def test_anothers_by_path(lab: Lab, other: int) -> None:
    """Who is in it keeps his root, and all his mounts."""
    path, root = f"/proc/{other}/ns/mnt", os.stat(f"/proc/{other}/root")
    container = lab.running(with_namespaces(lab.spec("sleep", "1000"), mount=path))

    assert {"/", "/proc", "/sys"} <= set(places(other))
    assert os.path.samestat(os.stat(f"/proc/{other}/root"), root)
    assert_is_the_containers(lab.exec(container, process("sh", "-c", LOOK)).output, os.readlink(path))
    assert str(lab.base / "b1/attached/dev/pts") in places(other, below=lab.base)
    lab.remove(container)

    assert not places(other, below=lab.base)
    assert not places(below=lab.base)


@pytest.mark.parametrize("joined", [False, True], ids=["host", "path"])
@pytest.mark.parametrize("terminal", [False, True])
def test_execs_are_in_the_containers_root(
    lab: Lab, joined: bool, terminal: bool, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spawned and the forked."""
    spec = with_namespaces(lab.spec("sleep", "1000"), mount=f"/proc/{other}/ns/mnt" if joined else None)
    container = lab.running(spec)
    monkeypatch.setattr(forks, "spawn_into", (lambda _joiner: None) if terminal else forks.spawn_into)

    ended = lab.exec(container, process("sh", "-c", f"{LOOK}; pwd >&2", cwd="/tmp"))

    assert ended.output.splitlines()[-1] == "/tmp"
    output = "\n".join(ended.output.splitlines()[:-1])
    assert_is_the_containers(output, os.readlink(f"/proc/{other}/ns/mnt") if joined else OWN)


def test_what_it_mounts_goes_with_it(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("sh", "-c", "mount -t tmpfs x /tmp && echo ok && sleep 1000"), mount=None)
    spec["process"]["capabilities"] = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}
    container = lab.running(spec)
    eventually(lambda: str(lab.base / "b1/attached/tmp") in places())

    lab.remove(container)

    assert not places(below=lab.base)


def test_masks_and_a_read_only_root(lab: Lab) -> None:
    script = "touch /x; cat /proc/keys | wc -c; echo 1 >/proc/sys/kernel/pid_max; ls /masked | wc -l"
    spec = with_namespaces(lab.spec("sh", "-c", script), mount=None)
    spec["root"]["readonly"] = True
    spec["linux"] |= {"maskedPaths": ["/proc/keys", "/masked"], "readonlyPaths": ["/proc/sys"]}
    bundle = lab.bundle(spec)
    (bundle / "rootfs/masked").mkdir()
    (bundle / "rootfs/masked/secret").touch()

    lines = lab.run(spec, bundle=bundle).output.splitlines()

    assert [line for line in lines if line.isdigit()] == ["0", "0"]
    assert sum("Read-only file system" in line for line in lines) == 2


def test_the_propagation_of_its_mounts_is_the_specs(lab: Lab, other: int) -> None:
    spec = with_namespaces(lab.spec("cat", "/proc/self/mountinfo"), mount=f"/proc/{other}/ns/mnt")
    (lab.base / "source").mkdir()
    mount(str(lab.base / "source"), str(lab.base / "source"), None, MountFlag.BIND)
    mount(None, str(lab.base / "source"), None, MountFlag.SHARED)
    for kind in ("rprivate", "rslave", "rshared"):
        options = ["rbind", kind]
        bind = {"destination": f"/{kind}", "type": "bind", "source": str(lab.base / "source"), "options": options}
        spec["mounts"].append(bind)

    lines = lab.run(spec).output.splitlines()

    kinds = {line.split()[4]: line.partition(" - ")[0].split()[6:] for line in lines}
    assert [[word.partition(":")[0] for word in kinds[f"/{name}"]] for name in ("rprivate", "rslave", "rshared")] == [
        [],
        ["master"],
        ["shared"],
    ]


@pytest.mark.parametrize("joined", [False, True], ids=["host", "path"])
def test_a_root_that_is_mounted_already_stays(lab: Lab, joined: bool, other: int) -> None:
    """It is the caller's, who unmounts it."""
    spec = with_namespaces(lab.spec("ls", "/"), mount=f"/proc/{other}/ns/mnt" if joined else None)
    bundle = lab.bundle(spec, root=False)
    (bundle / "rootfs").mkdir()
    mount(str(make_root(lab.base / "elsewhere")), str(bundle / "rootfs"), None, MountFlag.BIND)

    assert "bin" in lab.run(spec, bundle=bundle).output.split()

    assert is_mounted(bundle / "rootfs")
    assert (bundle / "rootfs/bin/busybox").exists()
    umount2(str(bundle / "rootfs"), MNT_DETACH)


@pytest.mark.parametrize("options", [["rbind", "rshared"], ["rbind"]], ids=["rshared", "shared root"])
@pytest.mark.parametrize("joined", [None, "", "path"], ids=["host", "own", "path"])
def test_what_it_shows_of_the_host_stays_mounted_there(
    lab: Lab, options: list[str], joined: str | None, other: int
) -> None:
    spec = with_namespaces(lab.spec("ls", "/shown/disk"), mount=f"/proc/{other}/ns/mnt" if joined else joined)
    if options == ["rbind"]:
        spec["linux"]["rootfsPropagation"] = "shared"
    source = lab.base / "source"
    (source / "disk").mkdir(parents=True)
    mount(str(source), str(source), None, MountFlag.BIND)
    for kind in (MountFlag.PRIVATE, MountFlag.SHARED):  # with nobody yet, also where the machine's root is shared
        mount(None, str(source), None, kind)
    mount("x", str(source / "disk"), "tmpfs", 0)
    (source / "disk/file").touch()
    spec["mounts"].append({"destination": "/shown", "type": "bind", "source": str(source), "options": options})
    bundle, root = lab.bundle(spec, root=False), make_root(lab.base / "elsewhere")
    snapshot = (runtime.RootfsMount("bind", str(root), "", ("rbind", "rw")),)

    assert lab.run(spec, bundle=bundle, rootfs=snapshot).output == "file\n"

    assert (source / "disk/file").exists()
    assert places(below=lab.base) == [str(source), str(source / "disk")]


def test_a_snapshot_as_root(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("sh", "-c", LOOK), mount=None)
    bundle, root = lab.bundle(spec, root=False), make_root(lab.base / "elsewhere")
    snapshot = (runtime.RootfsMount("bind", str(root), "", ("rbind", "rw")),)

    assert_is_the_containers(lab.run(spec, bundle=bundle, rootfs=snapshot).output, OWN)

    assert not places(below=lab.base)
    assert (root / "bin/busybox").exists()


def test_a_namespace_without_the_directory_is_refused(lab: Lab) -> None:
    """Another container's, which sees nothing of the host's."""
    neighbour = lab.running()
    seen = places(neighbour.pid)
    spec = with_namespaces(lab.spec("true"), mount=f"/proc/{neighbour.pid}/ns/mnt")
    bundle = lab.bundle(spec)

    with pytest.raises(OciError, match=r"linux.namespaces: mount: the host's /.*/attached is not to be seen there"):
        lab.create(spec, bundle=bundle)

    assert places(neighbour.pid) == seen
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json", "rootfs"]


def test_a_namespace_with_another_directory_there_is_refused(lab: Lab) -> None:
    """Whoever removes ours would leave the root in it."""
    with sleeper("--mount") as other:
        path = f"/proc/{other}/ns/mnt"
        spec = with_namespaces(lab.spec("true"), mount=path)
        bundle = lab.bundle(spec)
        cover = f"mount -t tmpfs x {lab.base} && mkdir -p {bundle}/attached"
        subprocess.run(["nsenter", f"--mount={path}", "sh", "-c", cover], check=True, timeout=DEADLINE)

        with pytest.raises(OciError, match="attached is not to be seen there"):
            lab.create(spec, bundle=bundle)

        assert places(other, below=bundle) == []
    assert sorted(path.name for path in bundle.iterdir()) == ["config.json", "rootfs"]


def test_what_is_no_mount_namespace_is_refused_before_hooks_run(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("true"), mount="/proc/self/ns/net")
    spec["hooks"] = {"createRuntime": [{"path": "/bin/touch", "args": ["touch", str(lab.base / "hook")]}]}

    with pytest.raises(OciError, match=r"linux.namespaces: mount: .*Invalid argument"):
        lab.create(spec)

    assert not (lab.base / "hook").exists()


def test_one_that_outlives_its_first_process_keeps_its_masks(lab: Lab) -> None:
    """It cannot be deleted yet, and nothing of it is taken down before it can."""
    script = "sleep 1000 & echo $! >/pid; exit 0"
    spec = with_namespaces(lab.spec("sh", "-c", script), mount=None, pid=None)
    spec["linux"]["maskedPaths"] = ["/masked"]
    bundle = lab.bundle(spec)
    (bundle / "rootfs/masked").mkdir()
    (bundle / "rootfs/masked/secret").touch()
    container = lab.running(spec, bundle=bundle)
    wait(container.pidfd)
    left = int((bundle / "rootfs/pid").read_text())

    with pytest.raises(OciError, match="cannot be removed"):
        container.delete()

    assert os.listdir(f"/proc/{left}/root/masked") == []
    os.kill(left, signal.SIGKILL)


def test_a_user_namespace_with_the_mount_namespace_that_it_owns(lab: Lab, oci: Command) -> None:
    with sleeper("--user", "--mount") as owner:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{owner}/{kind}").write_text("0 0 1000\n")
        path = f"/proc/{owner}/ns/mnt"
        spec = with_namespaces(lab.spec("sh", "-c", LOOK), mount=path, user=f"/proc/{owner}/ns/user")

        ended = oci("run", "--bundle", str(lab.bundle(spec)), "c1")

        assert ended.stderr == ""
        assert_is_the_containers(ended.stdout, os.readlink(path))
        assert not places(owner, below=lab.base)


def test_a_user_namespace_with_the_hosts_mounts_is_refused(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("true"), mount=None, user="/proc/self/ns/user")

    with pytest.raises(OciError, match="a user namespace needs a mount namespace, a new one or its own"):
        lab.create(spec)


@pytest.mark.parametrize("path", [None, "/proc/self/ns/mnt"])
def test_a_new_user_namespace_needs_a_new_one(lab: Lab, path: str | None) -> None:
    spec = with_namespaces(lab.spec("true"), mount=path)

    with pytest.raises(OciError, match="a new user namespace needs a new mount namespace"):
        lab.create(spec, **in_user_namespace(lab, spec))


@pytest.mark.parametrize("change", [{"rootfsPropagation": "unbindable"}, {"mounts": ["runbindable"]}])
def test_what_cannot_be_taken_along_is_refused(lab: Lab, change: dict[str, Any]) -> None:
    spec = with_namespaces(lab.spec("true"), mount=None)
    spec["linux"] |= {name: value for name, value in change.items() if name != "mounts"}
    spec["mounts"][0]["options"] += change.get("mounts", [])

    with pytest.raises(OciError, match="unbindable needs a new mount namespace"):
        lab.create(spec)


def test_no_checkpoint_of_one(lab: Lab) -> None:
    container = lab.running(with_namespaces(lab.spec("sleep", "1000"), mount=None))
    record = state.read(container.state_directory)

    with pytest.raises(OciError, match="without a mount namespace of its own cannot be saved"):
        dump(record, Dump(common=Common(images=str(lab.base / "images"))))

    assert not (lab.base / "images").exists()


@pytest.mark.parametrize("joined", [False, True], ids=["host", "path"])
def test_the_command_leaves_nothing(lab: Lab, oci: Command, joined: bool, other: int) -> None:
    """Create, start, exec and delete, each by a process of its own."""
    spec = with_namespaces(lab.spec("sleep", "1000"), mount=f"/proc/{other}/ns/mnt" if joined else None)
    bundle = lab.bundle(spec)

    assert oci("create", "--bundle", str(bundle), "c1", **detached()).returncode == 0
    assert oci("start", "c1").returncode == 0
    output = oci("exec", "c1", "sh", "-c", LOOK).stdout
    assert oci.status("c1") == "running"
    assert oci("delete", "--force", "c1").returncode == 0

    assert_is_the_containers(output, os.readlink(f"/proc/{other}/ns/mnt") if joined else OWN)
    assert not places(other, below=lab.base)
    assert not places(below=lab.base)
    assert (bundle / "rootfs/bin/busybox").exists()
    assert not list(oci.root.iterdir())
