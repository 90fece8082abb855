"""Mounts, devices, masked and read-only paths, the root."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import RootfsMount
from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from support.oci_bundle import Lab, Spec, is_mounted, make_root

pytestmark = pytest.mark.root


def add_mount(spec: Spec, destination: str, source: str | Path, *options: str, kind: str = "bind") -> Spec:
    spec["mounts"].append({"destination": destination, "source": str(source), "type": kind, "options": list(options)})
    return spec


def shell(lab: Lab, script: str) -> Spec:
    return lab.spec("sh", "-c", script)


def test_a_bind_mount_of_a_directory_and_a_file(lab: Lab) -> None:
    (lab.base / "data").mkdir()
    (lab.base / "data/file").write_text("from the host\n")
    spec = shell(lab, "cat /mnt/deep/file /etc/one; echo changed >/mnt/deep/file")
    add_mount(spec, "/mnt/deep", lab.base / "data", "rbind", "rprivate")
    add_mount(spec, "/etc/one", lab.base / "data/file", "bind")

    assert lab.run(spec).output == "from the host\nfrom the host\n"
    assert (lab.base / "data/file").read_text() == "changed\n"


def test_a_read_only_bind_mount(lab: Lab) -> None:
    (lab.base / "data").mkdir()
    spec = shell(lab, "touch /mnt/x || grep ' /mnt ' /proc/mounts")
    add_mount(spec, "/mnt", lab.base / "data", "rbind", "ro", "nosuid", "noexec")

    output = lab.run(spec).output

    assert "Read-only file system" in output
    assert " ro,nosuid,noexec," in output


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), "ro,nosuid,nodev,noatime"),  # as what is bound
        (("rw", "suid"), "rw,nodev,noatime"),
        (("relatime", "dev", "noexec"), "ro,nosuid,noexec,relatime"),
        (("rrw", "rdev"), "rw,nosuid,noatime"),
    ],
)
def test_options_take_away_what_the_source_has(lab: Lab, options: tuple[str, ...], shown: str) -> None:
    source = lab.base / "data"
    source.mkdir()
    flags = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOATIME
    mount("tmpfs", str(source), "tmpfs", flags & ~MountFlag.RDONLY)
    mount(None, str(source), None, MountFlag.BIND | MountFlag.REMOUNT | flags)
    try:
        spec = add_mount(shell(lab, "grep ' /mnt ' /proc/mounts"), "/mnt", source, "rbind", *options)

        found = lab.run(spec).output.split()[3]
    finally:
        umount2(str(source), MNT_DETACH)

    assert found.startswith(f"{shown},") or found == shown


def test_a_remount_keeps_what_a_user_namespace_has_locked(tmp_path: Path) -> None:
    """Which is what the host's mounts have when they are seen from one: `ro` alone would take nosuid away."""
    program = (
        "import os, sys\n"
        "from pyctr_shim.oci import mount_options, mounts\n"
        "options = mount_options.parse(['remount', 'bind', 'ro'])\n"
        "root_fd = os.open('/', os.O_RDONLY)\n"
        "mounts.mount_all(root_fd, [mounts.PlannedMount(sys.argv[1], '', '', options, -1)], 0, print)\n"
        "print(os.statvfs(sys.argv[1]).f_flag & (os.ST_RDONLY | os.ST_NOSUID))\n"
    )
    command = ["unshare", "-Urm", sys.executable, "-c", program, str(tmp_path)]
    mount("tmpfs", str(tmp_path), "tmpfs", MountFlag.NOSUID)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        umount2(str(tmp_path), MNT_DETACH)

    assert done.stdout == f"{os.ST_RDONLY | os.ST_NOSUID}\n", done.stderr


@pytest.mark.parametrize(("option", "inner_is_writable"), [("ro", True), ("rro", False)])
def test_recursive_read_only(lab: Lab, option: str, inner_is_writable: bool) -> None:
    (lab.base / "data/inner").mkdir(parents=True)
    mount("tmpfs", str(lab.base / "data/inner"), "tmpfs", 0)
    try:
        spec = add_mount(shell(lab, "touch /mnt/inner/x"), "/mnt", lab.base / "data", "rbind", option)

        assert (lab.run(spec).status == 0) is inner_is_writable
    finally:
        umount2(str(lab.base / "data/inner"), MNT_DETACH)


_RESTRICTED = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC | MountFlag.NOSYMFOLLOW


@pytest.mark.parametrize(
    ("option", "flags", "has", "lacks"),
    [
        ("rro", 0, "ro", "rw"),
        ("rrw", _RESTRICTED, "rw", "ro"),
        ("rnosuid", 0, "nosuid", ""),
        ("rsuid", _RESTRICTED, "", "nosuid"),
        ("rnodev", 0, "nodev", ""),
        ("rdev", _RESTRICTED, "", "nodev"),
        ("rnoexec", 0, "noexec", ""),
        ("rexec", _RESTRICTED, "", "noexec"),
        ("rnodiratime", 0, "nodiratime", ""),
        ("rdiratime", MountFlag.NODIRATIME, "", "nodiratime"),
        ("rrelatime", MountFlag.NOATIME, "relatime", "noatime"),
        ("rnorelatime", 0, "", "relatime"),
        ("rnoatime", 0, "noatime", "relatime"),
        ("ratime", MountFlag.NOATIME, "relatime", "noatime"),
        ("rstrictatime", 0, "", "relatime"),
        ("rnostrictatime", MountFlag.STRICTATIME, "relatime", ""),
        ("rnosymfollow", 0, "nosymfollow", ""),
        ("rsymfollow", _RESTRICTED, "", "nosymfollow"),
    ],
)
def test_recursive_options_are_those_of_all_mounts_below(
    lab: Lab, option: str, flags: int, has: str, lacks: str
) -> None:
    outer = lab.base / "data"
    (outer / "inner").mkdir(parents=True)
    mount("tmpfs", str(outer), "tmpfs", 0)
    (outer / "inner").mkdir()
    mount("tmpfs", str(outer / "inner"), "tmpfs", flags)
    mount(None, str(outer), None, MountFlag.BIND | MountFlag.REMOUNT | flags)
    try:
        plain = options_in_container(lab, outer)
        found = options_in_container(lab, outer, option)
    finally:
        umount2(str(outer), MNT_DETACH)

    assert found.keys() == {"/mnt", "/mnt/inner"}
    for place, options in found.items():
        assert {has} - {""} <= options - plain[place], place
        assert {lacks} - {""} <= plain[place] - options, place


def options_in_container(lab: Lab, source: Path, *options: str) -> dict[str, set[str]]:
    """Return the options of what is bound at /mnt and below it, by place."""
    spec = add_mount(lab.spec("cat", "/proc/self/mountinfo"), "/mnt", source, "rbind", *options)
    lines = [line.split() for line in lab.run(spec).output.splitlines()]
    return {words[4]: set(words[5].split(",")) for words in lines if words[4].startswith("/mnt")}


def test_unmounting_in_the_container_does_not_reach_the_host(lab: Lab) -> None:
    shared = lab.base / "shared"
    (shared / "inner").mkdir(parents=True)
    mount("tmpfs", str(shared), "tmpfs", 0)
    mount(None, str(shared), None, MountFlag.SHARED)
    (shared / "inner").mkdir()
    mount("tmpfs", str(shared / "inner"), "tmpfs", 0)
    try:
        spec = shell(lab, "busybox umount /mnt/inner && busybox umount /mnt")
        spec["process"]["capabilities"] = {name: ["CAP_SYS_ADMIN"] for name in ("bounding", "effective", "permitted")}
        add_mount(spec, "/mnt", shared, "rbind")

        assert lab.run(spec).status == 0
        assert is_mounted(shared / "inner")
    finally:
        umount2(str(shared / "inner"), MNT_DETACH)
        umount2(str(shared), MNT_DETACH)


def test_shared_propagation_reaches_the_host(lab: Lab) -> None:
    shared = lab.base / "shared"
    shared.mkdir()
    mount("tmpfs", str(shared), "tmpfs", 0)
    mount(None, str(shared), None, MountFlag.SHARED)
    try:
        spec = shell(lab, "mkdir /mnt/new && mount -t tmpfs none /mnt/new && touch /mnt/new/seen")
        spec["process"]["capabilities"] = {name: ["CAP_SYS_ADMIN"] for name in ("bounding", "effective", "permitted")}
        add_mount(spec, "/mnt", shared, "rbind", "rshared")

        assert lab.run(spec).status == 0
        assert (shared / "new/seen").exists()
    finally:
        umount2(str(shared / "new"), MNT_DETACH)
        umount2(str(shared), MNT_DETACH)


def test_tmpfs_options_and_copy_up(lab: Lab) -> None:
    spec = shell(lab, "cat /tmp/a/b; readlink /tmp/l; stat -c '%a %u:%g' /tmp /tmp/a; grep ' /tmp ' /proc/mounts")
    add_mount(spec, "/tmp", "tmpfs", "nosuid", "size=1m", "tmpcopyup", kind="tmpfs")
    bundle = lab.bundle(spec)
    tmp = bundle / "rootfs/tmp"
    tmp.chmod(0o1777)
    (tmp / "a").mkdir(0o755)
    os.chown(tmp / "a", 5, 6)
    (tmp / "a/b").write_text("copied\n")
    (tmp / "l").symlink_to("a/b")

    lines = lab.run(spec, bundle=bundle).output.splitlines()

    assert lines[:4] == ["copied", "a/b", "1777 0:0", "755 5:6"]
    assert "size=1024k" in lines[4]


def test_a_tmpfs_where_nothing_was_is_for_everybody(lab: Lab) -> None:
    """As the kernel makes it, and runc leaves it: a user other than root writes to it."""
    spec = shell(lab, "stat -c %a /new /new/deep /old")
    for destination, options in (("/new", ()), ("/new/deep", ("mode=700",)), ("/old", ("size=1m",))):
        add_mount(spec, destination, "tmpfs", *options, kind="tmpfs")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/old").mkdir(0o750)

    assert lab.run(spec, bundle=bundle).output.split() == ["1777", "700", "750"]


def test_a_file_on_a_directory_is_refused_in_words(lab: Lab) -> None:
    source = lab.base / "file"
    source.write_text("")
    spec = add_mount(lab.spec("true"), "/tmp", str(source), "bind")

    with pytest.raises(OciError, match='at "/tmp": a file cannot be mounted onto a directory'):
        lab.create(spec)


def test_a_missing_bind_source_is_named(lab: Lab) -> None:
    spec = add_mount(lab.spec("true"), "/mnt", "/no/such/source", "bind")

    with pytest.raises(OciError, match=r"bind source /no/such/source: .*No such file"):
        lab.create(spec)


def test_the_default_devices(lab: Lab) -> None:
    script = (
        "for d in null zero full random urandom tty; do stat -c '%n %a %t:%T' /dev/$d; done;"
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo discarded >/dev/null"
    )

    lines = lab.run(shell(lab, script)).output.splitlines()

    assert lines == [
        "/dev/null 666 1:3", "/dev/zero 666 1:5", "/dev/full 666 1:7", "/dev/random 666 1:8",
        "/dev/urandom 666 1:9", "/dev/tty 666 5:0",
        "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx",
    ]  # fmt: skip


def test_devices_of_the_spec(lab: Lab) -> None:
    spec = shell(lab, "stat -c '%a %u:%g %t:%T %F' /dev/fuse /dev/sub/pipe")
    spec["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "uid": 1, "gid": 2},
        {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600},
    ]

    assert lab.run(spec).output.splitlines() == ["620 1:2 a:e5 character special file", "600 0:0 0:0 fifo"]


def test_masked_and_readonly_paths(lab: Lab) -> None:
    spec = shell(lab, "cat /proc/timer_list | wc -c; ls -A /sys/firmware | wc -l; touch /sys/firmware/x; "
                      "echo 1 >/proc/sys/kernel/domainname; touch /etc/x; touch /tmp/x && echo writable")  # fmt: skip
    spec["linux"]["maskedPaths"] = ["/proc/timer_list", "/sys/firmware", "/proc/absent"]
    spec["linux"]["readonlyPaths"] = ["/proc/sys", "/etc", "/absent/too"]

    output = lab.run(spec).output

    assert output.splitlines()[:2] == ["0", "0"]
    assert output.count("Read-only file system") == 3
    assert output.endswith("writable\n")


def test_a_read_only_root(lab: Lab) -> None:
    spec = shell(lab, "touch /x; touch /dev/x && echo dev is writable")
    spec["root"]["readonly"] = True

    output = lab.run(spec).output

    assert "/x: Read-only file system" in output
    assert output.endswith("dev is writable\n")


def layers(lab: Lab, count: int) -> tuple[RootfsMount, Path]:
    """Return an overlay of `count` layers below a long path, the first of them busybox's root, and its upper dir."""
    base = lab.base / ("long" * 20)
    lower = [make_root(base / "busybox")]
    for number in range(count - 1):
        lower.append(base / f"layer{number}")
        lower[-1].mkdir()
    (lower[-1] / "marker").write_text("lowest\n")
    for name in ("upper", "work"):
        (base / name).mkdir()
    options = (f"workdir={base}/work", f"upperdir={base}/upper", "lowerdir=" + ":".join(map(str, lower)), "index=off")
    return RootfsMount("overlay", "overlay", "", options), base / "upper"


@pytest.mark.parametrize("count", [2, 60])
def test_an_overlay_root_is_mounted_in_the_container_only(lab: Lab, count: int) -> None:
    """Also one whose options exceed a page."""
    overlay, upper = layers(lab, count)
    spec = shell(lab, "cat /marker; echo written >/new")
    bundle = lab.bundle(spec, root=False)
    container = lab.create(spec, bundle=bundle, rootfs=(overlay,))
    assert not is_mounted(bundle / "rootfs")
    lab.remove(container)

    assert lab.run(spec, bundle=bundle, rootfs=(overlay,)).output == "lowest\n"

    assert (upper / "new").read_text() == "written\n"


def test_an_overlay_root_that_shares_its_mounts_is_mounted_here_until_the_end(lab: Lab) -> None:
    overlay, _ = layers(lab, 2)
    spec = lab.spec("sleep", "1000")
    spec["linux"]["rootfsPropagation"] = "rshared"
    bundle = lab.bundle(spec, root=False)
    container = lab.running(spec, bundle=bundle, rootfs=(overlay,))
    assert is_mounted(bundle / "rootfs")

    lab.remove(container)

    assert not is_mounted(bundle / "rootfs")


def test_a_bind_root_can_be_read_only(lab: Lab) -> None:
    root = make_root(lab.base / "elsewhere")
    spec = shell(lab, "touch /x")

    ended = lab.run(
        spec, bundle=lab.bundle(spec, root=False), rootfs=(RootfsMount("bind", str(root), "", ("rbind", "ro")),)
    )

    assert "Read-only file system" in ended.output


def test_no_pivot_root(lab: Lab) -> None:
    assert lab.run(shell(lab, "ls /"), no_pivot_root=True).output.split()[0] == "bin"


def test_the_hosts_tree_is_gone(lab: Lab) -> None:
    output = lab.run(shell(lab, "cat /proc/self/mountinfo")).output

    assert all(line.split()[4].startswith(("/proc", "/dev", "/sys", "/")) for line in output.splitlines())
    assert len(output.splitlines()) == 5


def test_the_view_of_cgroups_in_a_user_namespace(lab: Lab) -> None:
    """Which may not mount the hierarchy without a cgroup namespace: its own cgroup is bound there."""
    where = "/sys/fs/cgroup" if mounted().is_v2 else "/sys/fs/cgroup/pids"
    spec = shell(lab, f"cat {where}/cgroup.procs; mkdir {where}/x")
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 1000}]
    add_mount(spec, "/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "ro", kind="cgroup")

    output = lab.run(spec).output

    assert output.startswith("1\n")
    assert "Read-only file system" in output


@pytest.mark.parametrize("own_namespace", [True, False])
def test_the_containers_view_of_its_cgroups(lab: Lab, own_namespace: bool) -> None:
    where = "/sys/fs/cgroup" if mounted().is_v2 else "/sys/fs/cgroup/pids"
    spec = shell(lab, f"ls /sys/fs/cgroup; cat {where}/cgroup.procs; mkdir {where}/x")
    if own_namespace:
        spec["linux"]["namespaces"].append({"type": "cgroup"})
    add_mount(spec, "/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro", kind="cgroup")

    output = lab.run(spec).output

    expected = {"pids.max", "cgroup.freeze"} if mounted().is_v2 else {"pids", "memory", "freezer"}
    if mounted().is_v2 and not own_namespace:
        expected = {"cgroup.procs"}  # the whole tree, as version 2 has only one mount
    assert expected <= set(output.split())
    assert "\n1\n" in output or (mounted().is_v2 and not own_namespace)
    assert "Read-only file system" in output


@pytest.mark.parametrize(
    ("propagation", "sign"),
    [
        ("shared", "shared:"), ("rshared", "shared:"), ("slave", "master:"), ("rslave", "master:"),
        ("private", "-"), ("rprivate", "-"), ("unbindable", "unbindable"), ("runbindable", "unbindable"),
    ],
)  # fmt: skip
def test_the_roots_propagation(lab: Lab, propagation: str, sign: str) -> None:
    """Of a root that lies where mounts are shared: only of such a one can another be a slave."""
    spec = lab.spec("cat", "/proc/self/mountinfo")
    spec["linux"]["rootfsPropagation"] = propagation
    with shared_mount(lab.base):
        bundle = lab.bundle(spec)
        output = lab.run(spec, bundle=bundle).output

    (root,) = [words for line in output.splitlines() if (words := line.split())[4] == "/"]
    assert root[6].startswith(sign)


@pytest.mark.parametrize(
    ("option", "outer", "inner"),
    [
        ("private", "-", "master:"), ("rprivate", "-", "-"),
        ("slave", "master:", "master:"), ("rslave", "master:", "master:"),
        ("shared", "shared:", "shared:"), ("rshared", "shared:", "shared:"),
        ("unbindable", "unbindable", "master:"), ("runbindable", "unbindable", "unbindable"),
    ],
)  # fmt: skip
def test_the_propagation_of_a_mount(lab: Lab, option: str, outer: str, inner: str) -> None:
    """What is below it is the host's slave unless the option is recursive, or keeps what the host shares."""
    source = lab.base / "data"
    source.mkdir()
    spec = add_mount(lab.spec("cat", "/proc/self/mountinfo"), "/mnt", source, "rbind", option)
    with shared_mount(source):
        (source / "inner").mkdir()
        mount("tmpfs", str(source / "inner"), "tmpfs", 0)
        output = lab.run(spec).output

    found = {words[4]: words[6] for line in output.splitlines() if (words := line.split())[4].startswith("/mnt")}
    assert found["/mnt"].startswith(outer)
    assert found["/mnt/inner"].startswith(inner)


@contextmanager
def shared_mount(place: Path) -> Iterator[None]:
    """Mount a tmpfs that shares its mounts, and unmount it, with all that is below it."""
    mount("tmpfs", str(place), "tmpfs", 0)
    mount(None, str(place), None, MountFlag.SHARED)
    try:
        yield
    finally:
        umount2(str(place), MNT_DETACH)


def test_options_that_a_bind_mount_does_not_have_are_noted(lab: Lab) -> None:
    spec = lab.spec("ls", "/mnt")
    spec["mounts"].append({"destination": "/mnt", "source": "/etc", "options": ["bind", "ro", "mode=755"]})
    container = lab.running(spec)

    assert "mounts: /mnt: 'mode=755' has no effect on a bind mount" in container.notes
