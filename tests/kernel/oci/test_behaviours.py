"""What other runtimes' users rely on: behaviours that runc's and crun's own tests are about, where no suite here is."""

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import runtime
from pyctr_shim.oci.cgroups import files, mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from support.oci_bundle import Lab, Spec, in_user_namespace, process, read_all, wait, with_namespaces

pytestmark = pytest.mark.root


@pytest.mark.parametrize("in_exec", [False, True])
@pytest.mark.parametrize(
    ("env", "seen"),
    [
        (["HOME=/override"], "HOME=/override"),
        (["HOME="], "HOME=/root"),
        (["HOME=/override", "HOME="], "HOME=/root"),
        (["ONE=two", "ONE="], "HOME=/root ONE="),
        (["ONE=two", "ONE=three"], "HOME=/root ONE=three"),
        (["LINE=\n"], "HOME=/root LINE="),
        (["X=a=b"], "HOME=/root X=a=b"),
    ],
)
def test_a_variable_is_there_once_and_home_always(lab: Lab, env: list[str], seen: str, in_exec: bool) -> None:
    document = process("env", env=["PATH=/bin", *env])
    spec = lab.spec("true")
    spec["process"] = document

    ended = lab.exec(lab.running(), document) if in_exec else lab.run(spec)

    assert sorted(ended.output.split()) == sorted([*seen.split(), "PATH=/bin"])


def with_mount(spec: Spec, destination: str, kind: str, *options: str, source: str = "") -> Spec:
    spec["mounts"].append(
        {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}
    )
    return spec


@pytest.mark.parametrize(
    ("before", "options", "mode"),
    [
        (None, ["mode=0444"], "444"),
        (0o755, ["mode=0444"], "444"),
        (0o710, [], "710"),
        (0o710, ["mode=0410"], "410"),
        (0o7777, ["nosuid", "rprivate"], "7777"),
    ],
)
def test_the_mode_of_a_tmpfs(lab: Lab, before: int | None, options: list[str], mode: str) -> None:
    """Its own, or that of the directory that it covers."""
    spec = with_mount(lab.spec("stat", "-c", "%a", "/tmp/place"), "/tmp/place", "tmpfs", *options)
    bundle = lab.bundle(spec)
    if before is not None:
        (bundle / "rootfs/tmp/place").mkdir()
        (bundle / "rootfs/tmp/place").chmod(before)

    assert lab.run(spec, bundle=bundle).output.strip() == mode


def _here(bundle: Path) -> Spec:
    return {"source": ".", "destination": "/tmp/bind", "options": ["bind"]}


def _relative(bundle: Path) -> Spec:
    return {"source": "../shared", "destination": "tmp//bind/", "type": "bind", "options": ["rbind", "ro"]}


def _by_a_link_inside(bundle: Path) -> Spec:
    (bundle / "rootfs/tmp/link").symlink_to("/tmp/bind")
    (bundle / "rootfs/tmp/bind").mkdir()
    return {"source": str(bundle.parent / "shared"), "destination": "/tmp/link", "type": "bind", "options": []}


def _by_a_link_that_climbs(bundle: Path) -> Spec:
    (bundle / "rootfs/tmp/link").symlink_to("../../../../../../tmp/bind")
    return {"source": str(bundle.parent / "shared"), "destination": "/tmp/link", "type": "bind", "options": ["bind"]}


@pytest.mark.parametrize("item", [_here, _relative, _by_a_link_inside, _by_a_link_that_climbs])
def test_where_a_bind_mount_comes_from_and_goes_to(lab: Lab, item: Any) -> None:
    (lab.base / "shared").mkdir()
    (lab.base / "shared/config.json").touch()
    spec = lab.spec("ls", "/tmp/bind/config.json")
    bundle = lab.bundle(spec)
    spec["mounts"].append(item(bundle))
    (bundle / "config.json").write_text(json.dumps(spec))

    assert lab.run(spec, bundle=bundle).output == "/tmp/bind/config.json\n"


def _socket(path: Path) -> None:
    fd = os.open(path.parent, os.O_PATH)  # by a path that is short enough
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{fd}/{path.name}")
    os.close(fd)


@pytest.mark.parametrize(
    ("make", "kind"), [(Path.touch, "regular empty file"), (os.mkfifo, "fifo"), (_socket, "socket")]
)
def test_what_is_no_directory_can_be_bind_mounted(lab: Lab, make: Any, kind: str) -> None:
    source = lab.base / "thing"
    make(source)
    spec = with_mount(lab.spec("stat", "-c", "%F", "/run/deep/thing"), "/run/deep/thing", "bind", source=str(source))

    assert lab.run(spec).output.strip() == kind


@pytest.mark.parametrize(
    ("destination", "kind", "options", "shown"),
    [
        ("/mnt", "tmpfs", ["ro", "nodev", "nosuid", "mode=755"], "ro,nosuid,nodev"),
        ("/mnt", "tmpfs", ["noexec", "strictatime", "size=4k"], "rw,noexec"),
        ("/mnt", "ramfs", ["nosuid"], "rw,nosuid"),
        ("/mnt", "proc", ["hidepid=invisible"], "hidepid=invisible"),
        ("/mnt", "mqueue", ["nosuid", "noexec", "nodev"], "rw,nosuid,nodev,noexec"),
        ("/dev/shm", "tmpfs", ["nosuid", "size=64k"], "size=64k"),
    ],
)
def test_file_systems_and_their_options(lab: Lab, destination: str, kind: str, options: list[str], shown: str) -> None:
    spec = with_mount(lab.spec("grep", f" {destination} {kind}", "/proc/mounts"), destination, kind, *options)

    assert shown in lab.run(spec).output


def test_all_namespaces_of_another_container_save_the_mounts(lab: Lab) -> None:
    first = with_namespaces(lab.spec("sleep", "999"), time="")
    first["linux"]["timeOffsets"] = {"monotonic": {"secs": 7000, "nanosecs": 5}, "boottime": {"secs": 1300}}
    other = lab.running(first, **in_user_namespace(lab, first))
    names = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts", "user": "user", "time": "time"}
    spec = lab.spec("sh", "-c", "cat /proc/self/uid_map /proc/self/timens_offsets; ps | grep -c '[s]leep 999'")
    options = in_user_namespace(lab, spec)
    for name in ("uidMappings", "gidMappings"):
        del spec["linux"][name]
    with_namespaces(spec, **{kind: f"/proc/{other.pid}/ns/{name}" for kind, name in names.items()})
    (options["bundle"] / "config.json").write_text(json.dumps(spec))

    output = lab.run(spec, **options).output.split("\n")

    assert output[0].split() == ["0", "100000", "1000"]
    assert [line.split() for line in output[2:4]] == [["monotonic", "7000", "5"], ["boottime", "1300", "0"]]
    assert output[4] == "1"


def test_a_user_namespace_and_another_that_is_not_its_own(lab: Lab) -> None:
    """Both by path, when the container that they come from is gone."""
    places = {"user": lab.base / "user", "network": lab.base / "net"}
    first = with_namespaces(lab.spec("sleep", "1000"))
    other = lab.running(first, **in_user_namespace(lab, first))
    plain = lab.running()
    for place, source in ((places["user"], f"{other.pid}/ns/user"), (places["network"], f"{plain.pid}/ns/net")):
        place.touch()
        mount(f"/proc/{source}", str(place), None, MountFlag.BIND)
    inodes = [place.stat().st_ino for place in places.values()]
    lab.remove(other)
    spec = lab.spec("sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")
    spec["mounts"] = [item for item in spec["mounts"] if item["type"] != "sysfs"]  # not to be had in this netns
    options = in_user_namespace(lab, spec)
    for name in ("uidMappings", "gidMappings"):
        del spec["linux"][name]
    with_namespaces(spec, **{kind: str(place) for kind, place in places.items()})
    (options["bundle"] / "config.json").write_text(json.dumps(spec))

    try:
        output = lab.run(spec, **options).output
    finally:
        for place in places.values():
            umount2(str(place), MNT_DETACH)

    assert output.split() == [f"user:[{inodes[0]}]", f"net:[{inodes[1]}]"]


@pytest.mark.parametrize("in_exec", [False, True])
def test_a_user_namespace_in_which_root_is_nobody(lab: Lab, in_exec: bool) -> None:
    spec = lab.spec("sh", "-c", "id -u; id -g; cat /proc/self/uid_map")
    document = spec["process"]
    document["user"] = {"uid": 1000, "gid": 1000}
    if in_exec:
        spec["process"] = {**document, "args": ["sleep", "1000"]}
    options = in_user_namespace(lab, spec)
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 1000, "hostID": 100_000, "size": 1}]
    spec["mounts"] = [item for item in spec["mounts"] if item["type"] != "devpts"]  # of a group that is nobody's
    (options["bundle"] / "config.json").write_text(json.dumps(spec))

    ended = lab.exec(lab.running(spec, **options), document) if in_exec else lab.run(spec, **options)

    assert ended.output.split() == ["1000", "1000", "1000", "100000", "1"]


def freezer_of(path: str) -> tuple[str, str, str]:
    """Return the file that freezes a cgroup, and what to write to do that and to undo it."""
    hierarchies = mounted()
    if hierarchies.is_v2:
        return f"{hierarchies.unified}{path}/cgroup.freeze", "1", "0"
    return f"{hierarchies.controllers['freezer']}{path}/freezer.state", "FROZEN", "THAWED"


@pytest.mark.parametrize("place", ["", "/above"])
def test_a_frozen_cgroup_is_not_entered(lab: Lab, place: str) -> None:
    """Whoever did would not be heard of again."""
    spec = lab.spec("true")
    spec["linux"]["cgroupsPath"] = f"{lab.cgroup}/cold{place}"
    file, freeze, thaw = freezer_of(f"{lab.cgroup}/cold")
    os.makedirs(os.path.dirname(file))
    files.write(file, freeze)

    try:
        with pytest.raises(OciError, match="frozen"):
            lab.create(spec)
    finally:
        files.write(file, thaw)

    assert lab.run(spec).status == 0


def test_a_null_device_that_was_handed_over_stays_its_owners(lab: Lab) -> None:
    before = os.stat("/dev/null")
    container = lab.running()

    assert lab.exec(container, process("id", "-u", user={"uid": 1000, "gid": 1000})).output == "1000\n"
    assert (os.stat("/dev/null").st_uid, os.stat("/dev/null").st_gid) == (before.st_uid, before.st_gid)


@pytest.mark.parametrize(
    ("owner", "mode", "uid"), [(42, 0o700, 42), (0, 0o700, 42), (42, 0o700, 0)], ids=["its own", "root's", "a user's"]
)
def test_a_working_directory_that_only_some_may_enter(lab: Lab, owner: int, mode: int, uid: int) -> None:
    spec = lab.spec("ls", "/etc/passwd")
    spec["process"] |= {"cwd": "/root", "user": {"uid": uid, "gid": 0}}
    bundle = lab.bundle(spec)
    (bundle / "rootfs/root").chmod(mode)
    os.chown(bundle / "rootfs/root", owner, owner)

    assert lab.run(spec, bundle=bundle).output == "/etc/passwd\n"
    container = lab.running()
    os.chown(Path(container.bundle) / "rootfs/root", owner, owner)
    (Path(container.bundle) / "rootfs/root").chmod(mode)
    ended = lab.exec(container, process("true", cwd="/root", user={"uid": uid, "gid": 0}))
    assert ended.status == 0


@pytest.mark.parametrize(
    "device",
    [
        {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0},
        {"path": "/dev/deep/er/null/", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/mem0", "type": "u", "major": 1, "minor": 1, "fileMode": 0o640},
    ],
)
def test_devices_that_are_there_anyway_or_deep_down(lab: Lab, device: Spec) -> None:
    path = device["path"].rstrip("/")
    spec = lab.spec("stat", "-c", "%t:%T %a", path)
    spec["linux"]["devices"] = [device]

    expected = f"{device['major']:x}:{device['minor']:x} {device.get('fileMode', 0o666):o}"
    assert lab.run(spec).output.strip() == expected


@pytest.mark.parametrize("in_exec", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
def test_whose_and_what_a_terminal_is(lab: Lab, uid: int, in_exec: bool) -> None:
    script = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done; stat -c %u:%g /dev/pts/*[0-9]"
    document = process("sh", "-c", script, user={"uid": uid, "gid": uid}, terminal=True)
    if in_exec:
        container = lab.running()
        with open("/dev/null", "r+b") as null:
            joined = container.exec(json.dumps(document).encode(), runtime.Stdio(*(null.fileno(),) * 3))
        console_fd, pidfd = joined.console_fd, joined.pidfd
    else:
        spec = lab.spec()
        spec["process"] = document
        container = lab.create(spec)
        container.start()
        console_fd, pidfd = container.console_fd, container.pidfd
    assert console_fd is not None

    assert read_all(console_fd).split() == ["/dev/pts/0"] * 3 + [f"{uid}:5"]
    assert wait(pidfd) == 0
    if in_exec:
        os.close(console_fd)
        os.close(pidfd)


def test_a_script_whose_interpreter_is_missing(lab: Lab) -> None:
    spec = lab.spec("/run.sh")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/run.sh").write_text("#!/no/such/thing\n")
    (bundle / "rootfs/run.sh").chmod(0o755)
    container = lab.create(spec, bundle=bundle)

    with pytest.raises(OciError, match=r"exec /run.sh: no such file or directory"):
        container.start()


@pytest.mark.parametrize("root", ["absolute", "link", "./rootfs/", "rootfs/../rootfs"])
def test_how_a_root_may_be_named(lab: Lab, root: str) -> None:
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    (bundle / "link").symlink_to("rootfs")
    spec["root"]["path"] = str(bundle / "rootfs") if root == "absolute" else root
    (bundle / "config.json").write_text(json.dumps(spec))

    assert lab.run(spec, bundle=bundle).status == 0


def test_paths_to_hide_that_are_not_there_are_passed_over(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "cat /etc/passwd; ls /etc/secret; echo >/etc/x")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/etc/secret").mkdir()
    (bundle / "rootfs/etc/secret/file").touch()
    spec["linux"]["maskedPaths"] = ["/nowhere", "/etc/passwd/x", "/etc/passwd", "/etc/secret", "/etc/secret"]
    spec["linux"]["readonlyPaths"] = ["/nowhere", "/etc"]
    (bundle / "config.json").write_text(json.dumps(spec))

    ended = lab.run(spec, bundle=bundle)

    assert ended.status == 1
    assert "root:" not in ended.output
    assert "file" not in ended.output.replace("Read-only file system", "")
    assert "Read-only file system" in ended.output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGRTMIN + 3, 64])
def test_signals_up_to_the_last_reach_init(lab: Lab, number: int) -> None:
    """Those that init handles; the first process of a PID namespace does not die of others."""
    spec = lab.spec("sh", "-c", f"trap 'exit 9' {number}; echo ready; while :; do sleep 0.05; done")
    read_fd, write_fd = os.pipe()
    container = lab.create(spec, stdio=(write_fd, write_fd, write_fd))
    container.start()
    assert os.read(read_fd, 6) == b"ready\n"

    container.kill(number)

    assert wait(container.pidfd) == 9
    os.close(read_fd)
    os.close(write_fd)


# -- a container without a process


def test_a_spec_without_a_process_can_be_created_and_joined_but_not_started(lab: Lab) -> None:
    """The specification requires one at start."""
    spec = lab.spec()
    del spec["process"]
    container = lab.create(spec)

    ended = lab.exec(container, process("sh", "-c", "echo joined; grep CapEff /proc/1/status"))
    assert ended.output.split() == ["joined", "CapEff:", "0" * 16]
    with pytest.raises(OciError, match=r"^process: is required to start a container$"):
        container.start()
    assert wait(container.pidfd) == 1
