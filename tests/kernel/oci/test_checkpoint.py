"""Containers that are saved with CRIU and go on elsewhere in time."""

import copy
import json
import os
import select
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import state
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.checkpoint import mount_table, verify
from pyctr_shim.oci.checkpoint.choices import Common, Dump, Restore
from pyctr_shim.oci.checkpoint.dump import dump
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import Container
from support.criu import require_criu
from support.oci_bundle import Lab, Spec, eventually, read_all, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

COUNT = "i=0; while true; do i=$((i+1)); echo $i > /tmp/next; busybox mv /tmp/next /tmp/count; sleep 0.05; done"
FILTER = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kcmp"], "action": "SCMP_ACT_ERRNO"}]}


@pytest.fixture(autouse=True)
def criu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whatever is tried, nothing stays in the directory for temporary files."""
    require_criu(monkeypatch)
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield
    assert os.listdir(directory) == []


def counting(lab: Lab) -> Spec:
    """Return the spec of a container that counts, with what containers usually have."""
    spec = lab.spec("sh", "-c", COUNT)
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    spec["process"]["noNewPrivileges"] = True
    spec["linux"] |= {
        "seccomp": FILTER,
        "maskedPaths": ["/proc/timer_list", "/proc/acpi"],
        "readonlyPaths": ["/proc/sys"],
    }
    spec["linux"]["namespaces"].append({"type": "cgroup"})
    spec["linux"]["resources"] = {"pids": {"limit": 77}}
    spec["hostname"] = "counter"
    spec["mounts"] += [
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "size=1m"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "nodev"]},
    ]
    return spec


def count(bundle: str) -> int:
    """Return how far a container has counted; it may be about to write."""
    eventually(lambda: (Path(bundle) / "rootfs/tmp/count").read_text().strip().isdigit())
    return int((Path(bundle) / "rootfs/tmp/count").read_text())


def started_counting(lab: Lab, spec: Spec) -> Container:
    container = lab.running(spec)
    path = Path(container.bundle, "rootfs/tmp/count")
    eventually(lambda: path.exists() and path.read_text().strip().isdigit() and int(path.read_text()) > 3)
    return container


def save(container: Container, images: Path, *, leave_running: bool = False, **options: Any) -> None:
    choices = Dump(Common(str(images)), leave_running=leave_running)._replace(**options)
    dump(state.read(container.state_directory), choices)


def restored(lab: Lab, spec: Spec, bundle: str, images: Path, **options: Any) -> Container:
    """Return a container made of a checkpoint, not started, in the bundle of the one that was saved."""
    choices = Restore(Common(str(images)))
    return lab.create(spec, bundle=Path(bundle), checkpoint=choices, **options)


def test_a_container_goes_on_where_it_was(lab: Lab, tmp_path: Path) -> None:
    spec, images = counting(lab), tmp_path / "images"
    container = started_counting(lab, spec)
    lab.exec(container, {"args": ["touch", "/dev/shm/kept"], "env": ["PATH=/bin"], "cwd": "/"})

    save(container, images)

    assert wait(container.pidfd) == 128 + 9
    before = count(container.bundle)
    lab.remove(container)
    assert stat.S_IMODE(images.stat().st_mode) == 0o700
    again = restored(lab, spec, container.bundle, images)
    assert select.select([], [], [], 0.3) == ([], [], [])  # it must not go on yet
    assert count(container.bundle) == before
    again.start()
    eventually(lambda: count(container.bundle) > before + 3)

    status = dict(
        line.split(":\t") for line in Path(f"/proc/{again.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 1 << 0 | 1 << 5 | 1 << 10
    assert again.pid in again.pids()
    for directory in {*mounted().controllers.values(), mounted().unified} - {""}:
        if (Path(directory) / "pids.max").exists() or (Path(directory + again.cgroup.path) / "pids.max").exists():
            assert (Path(directory + again.cgroup.path) / "pids.max").read_text() == "77\n"
    script = "hostname; ls /dev/shm; cat /proc/1/comm; cat /proc/self/cgroup; echo x > /proc/sys/kernel/hostname"
    output = lab.exec(again, {"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"}).output
    assert output.split()[:3] == ["counter", "kept", "sh"]
    assert all(line.endswith(":/") for line in output.splitlines() if line[:1].isdigit() and ":" in line), output
    assert "Read-only file system" in output
    again.pause()
    again.resume()
    lab.remove(again)


def test_clocks_of_its_own_come_along(lab: Lab, tmp_path: Path) -> None:
    spec, images = counting(lab), tmp_path / "images"
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000}}
    container = started_counting(lab, spec)
    save(container, images)
    wait(container.pidfd)
    lab.remove(container)

    again = restored(lab, spec, container.bundle, images)
    again.start()

    uptime = lab.exec(again, {"args": ["cat", "/proc/uptime"], "env": ["PATH=/bin"], "cwd": "/"}).output
    assert float(uptime.split()[0]) >= 1_000_000
    lab.remove(again)


def test_who_has_ended_and_is_not_waited_for_comes_along(lab: Lab, tmp_path: Path) -> None:
    """CRIU has a zombie end as root with all capabilities: that is nothing that anybody could use."""
    spec, images = counting(lab), tmp_path / "images"
    spec["process"]["args"] = ["sh", "-c", "true & exec sleep 1000"]
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]
    container = lab.running(spec)
    eventually(lambda: bool(zombies(container.pid)))
    save(container, images)
    wait(container.pidfd)
    lab.remove(container)

    again = restored(lab, spec, container.bundle, images)
    again.start()

    assert zombies(again.pid)
    lab.remove(again)


def zombies(pid: int) -> list[int]:
    """Return the descendants of a process that have ended."""
    return [
        one for one in verify.tree(pid) if Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    ]


def test_a_container_may_be_left_running(lab: Lab, tmp_path: Path) -> None:
    container = started_counting(lab, counting(lab))

    save(container, tmp_path / "images", leave_running=True)

    before = count(container.bundle)
    eventually(lambda: count(container.bundle) > before)


def test_the_streams_are_those_of_the_new_container(lab: Lab, tmp_path: Path) -> None:
    spec = lab.spec("sh", "-c", "read line; echo got $line; read line; echo then $line")
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    container = lab.create(spec, stdio=(in_read, out_write, out_write))
    container.start()
    os.close(out_write)
    os.write(in_write, b"one\n")
    assert os.read(out_read, 100) == b"got one\n"
    save(container, tmp_path / "images")
    for fd in (in_read, in_write):
        os.close(fd)
    assert read_all(out_read) == ""
    lab.remove(container)
    os.close(out_read)

    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    again = restored(lab, spec, container.bundle, tmp_path / "images", stdio=(in_read, out_write, out_write))
    os.close(out_write)
    os.close(in_read)
    again.start()
    os.write(in_write, b"two\n")

    assert read_all(out_read) == "then two\n"
    assert wait(again.pidfd) in {0, -1}
    os.close(in_write)
    os.close(out_read)


def test_a_terminal_comes_along(lab: Lab, tmp_path: Path) -> None:
    spec = lab.spec("sh", "-c", "read line; echo got $line; read line; echo then $line")
    spec["process"]["terminal"] = True
    container = lab.running(spec)
    assert container.console_fd is not None
    os.write(container.console_fd, b"one\n")
    output = b""
    while b"got one" not in output:
        output += os.read(container.console_fd, 100)
    save(container, tmp_path / "images")
    lab.remove(container)

    again = restored(lab, spec, container.bundle, tmp_path / "images")
    again.start()
    assert again.console_fd is not None
    os.write(again.console_fd, b"two\n")

    assert "then two" in read_all(again.console_fd)


def test_a_checkpoint_that_fails_leaves_the_container_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    container = started_counting(lab, counting(lab))
    images = tmp_path / "images"
    images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(images)], check=True)
    try:
        with pytest.raises(OciError, match=r"criu failed to checkpoint the container: .*No space left"):
            save(container, images)
        assert list(images.iterdir()) == []
    finally:
        subprocess.run(["umount", str(images)], check=True)

    before = count(container.bundle)
    eventually(lambda: count(container.bundle) > before)


def test_without_criu_the_container_goes_on(lab: Lab, tmp_path: Path) -> None:
    container = started_counting(lab, counting(lab))
    choices = Dump(Common(str(tmp_path / "images"), program="no-such-criu"))

    with pytest.raises(OciError, match="no-such-criu: not found: install criu"):
        dump(state.read(container.state_directory), choices)

    assert not (tmp_path / "images").exists()
    before = count(container.bundle)
    eventually(lambda: count(container.bundle) > before)


def test_nobody_waits_any_more(lab: Lab, tmp_path: Path) -> None:
    """Who asked is gone by the time that all is saved: the container does not end for nobody's sake."""
    container = started_counting(lab, counting(lab))

    with pytest.raises(OciError, match="nobody waits for it"):
        dump(state.read(container.state_directory), Dump(Common(str(tmp_path / "images"))), lambda: False)

    assert not (tmp_path / "images").exists()
    before = count(container.bundle)
    eventually(lambda: count(container.bundle) > before)


def test_cve_2026_95837_privileged_checkpoint(lab: Lab, tmp_path: Path) -> None:
    """A checkpoint with more capabilities than the container's spec gives does not get to run."""
    spec = counting(lab)
    container = started_counting(lab, spec)
    save(container, tmp_path / "images")
    lab.remove(container)
    before = count(container.bundle)
    less = copy.deepcopy(spec)
    for names in less["process"]["capabilities"].values():
        names[:] = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]
    Path(container.bundle, "config.json").write_text(json.dumps(less))

    with pytest.raises(OciError, match=r"has CAP_KILL, which process.capabilities does not give"):
        restored(lab, less, container.bundle, tmp_path / "images")

    assert count(container.bundle) == before
    assert no_process_of(container)


def no_process_of(container: Container) -> bool:
    """Whether a container's cgroups are gone, as they are only without processes."""
    roots = {*mounted().controllers.values(), mounted().unified} - {""}
    return not any(os.path.exists(root + container.cgroup.path) for root in roots)


def test_cve_2026_95837_other_filter(lab: Lab, tmp_path: Path) -> None:
    """A checkpoint whose seccomp filter is not the spec's does not get to run."""
    spec = counting(lab)
    container = started_counting(lab, spec)
    save(container, tmp_path / "images")
    lab.remove(container)
    other = copy.deepcopy(spec)
    other["linux"]["seccomp"]["syscalls"][0]["names"] = ["kcmp", "bpf"]
    Path(container.bundle, "config.json").write_text(json.dumps(other))

    with pytest.raises(OciError, match=r"filter is not the one of linux\.seccomp"):
        restored(lab, other, container.bundle, tmp_path / "images")
    assert no_process_of(container)


def bound(lab: Lab, source: Path, target: str, *options: str) -> Spec:
    """Return the spec of a container that counts and has a directory of the host's, which is made."""
    source.mkdir(exist_ok=True)
    (source / "sub").mkdir(exist_ok=True)
    (source / "file").write_text("of the host")
    spec = counting(lab)
    mount = {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", *options]}
    spec["mounts"].append(mount)
    return spec


def test_bind_mounts_come_from_where_the_spec_says(lab: Lab, tmp_path: Path) -> None:
    """Also what is mounted below them, read-only where it was, and another directory if the spec has another one."""
    spec = bound(lab, tmp_path / "volume", "/volume", "ro")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "volume/sub")], check=True)
    try:
        (tmp_path / "volume/sub/deeper").write_text("deeper")
        container = started_counting(lab, spec)
        save(container, tmp_path / "images")
        lab.remove(container)
        (tmp_path / "volume/file").write_text("changed meanwhile")
        again = restored(lab, spec, container.bundle, tmp_path / "images")
        again.start()
        script = "cat /volume/file /volume/sub/deeper; echo x > /volume/file"
        output = lab.exec(again, {"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"}).output
        assert output.startswith("changed meanwhiledeeper")
        assert "Read-only file system" in output
        lab.remove(again)
    finally:
        subprocess.run(["umount", str(tmp_path / "volume/sub")], check=True)


def test_mounts_of_the_host_are_followed_as_before(lab: Lab, tmp_path: Path) -> None:
    """What is shared on a machine, as systemd shares everything, comes as slaves: directories without a common root."""
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        spec = bound(lab, shared / "one", "/one")
        spec["mounts"] += bound(lab, shared / "two", "/two", "ro")["mounts"][-1:]
        container = started_counting(lab, spec)
        before = {item.where: item.propagation for item in mount_table.of(container.pid)}
        assert before["/one"] == before["/two"] != ()
        save(container, tmp_path / "images")
        lab.remove(container)
        again = restored(lab, spec, container.bundle, tmp_path / "images")
        again.start()

        assert {item.where: item.propagation for item in mount_table.of(again.pid)} == before
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shared / "one/sub")], check=True)
        (shared / "one/sub/late").write_text("late")
        script = "cat /one/sub/late /two/file; echo x > /two/file"
        output = lab.exec(again, {"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"}).output
        assert output.startswith("lateof the host")
        assert "Read-only file system" in output
        lab.remove(again)
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=True)


@pytest.mark.parametrize("crafted", ["absolute", "climbing", "parent"])
def test_cve_2026_119614(lab: Lab, tmp_path: Path, crafted: str) -> None:
    """A mount point that has become a symlink leads nowhere outside: nothing of the host's is made or mounted on."""
    spec = bound(lab, tmp_path / "volume", "/place/deep", "ro")
    container = started_counting(lab, spec)
    save(container, tmp_path / "images")
    lab.remove(container)
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/secret").write_text("secret")
    place = Path(container.bundle, "rootfs/place")
    if crafted == "parent":
        (place / "deep").rmdir()
        place.rmdir()
        place.symlink_to(outside)
    else:
        (place / "deep").rmdir()
        climb = "../" * 40 if crafted == "climbing" else ""
        (place / "deep").symlink_to(f"{climb}{outside}/deep")

    try:
        again = restored(lab, spec, container.bundle, tmp_path / "images")
    except OciError:
        assert no_process_of(container)
    else:
        seen = {item.where: item for item in mount_table.of(again.pid)}
        output = lab.exec(again, {"args": ["cat", "/place/deep/file"], "env": ["PATH=/bin"], "cwd": "/"}).output
        assert output == "of the host"
        assert not [item for item in seen.values() if item.root.startswith(str(outside))]
        lab.remove(again)

    assert not [item for item in mount_table.of("self") if item.where.startswith(str(outside))]
    assert sorted(path.name for path in outside.rglob("*")) == ["deep", "secret"]
    assert (outside / "deep/secret").read_text() == "secret"


def test_a_network_namespace_that_is_shared_stays_the_others(lab: Lab, tmp_path: Path) -> None:
    name = f"pyctr-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        spec = counting(lab)
        path = f"/var/run/netns/{name}"
        next(item for item in spec["linux"]["namespaces"] if item["type"] == "network")["path"] = path
        container = started_counting(lab, spec)
        save(container, tmp_path / "images")
        lab.remove(container)

        again = restored(lab, spec, container.bundle, tmp_path / "images")
        again.start()

        assert os.stat(f"/proc/{again.pid}/ns/net").st_ino == os.stat(path).st_ino
        lab.remove(again)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_memory_may_be_saved_beforehand(lab: Lab, tmp_path: Path) -> None:
    spec = counting(lab)
    container = started_counting(lab, spec)
    try:
        save(container, tmp_path / "first", pre_dump=True)
    except OciError as error:
        if "Tracking memory is not available" not in str(error):
            raise
        pytest.skip("this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY)")
    before = count(container.bundle)
    eventually(lambda: count(container.bundle) > before)

    save(container, tmp_path / "second", parent="../first")

    before = count(container.bundle)
    lab.remove(container)
    again = restored(lab, spec, container.bundle, tmp_path / "second")
    again.start()
    eventually(lambda: count(container.bundle) > before)


def test_user_namespaces_are_refused(lab: Lab, tmp_path: Path) -> None:
    """Of both: nothing is saved that could not be restored."""
    spec = lab.spec("sleep", "1000")
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    container = lab.running(spec)

    with pytest.raises(OciError, match="user namespace of its own cannot be saved"):
        save(container, tmp_path / "images")

    assert not (tmp_path / "images").exists()


def test_hooks_of_a_restored_container(lab: Lab, tmp_path: Path) -> None:
    """Those of the runtime's side run, and are told who it is; one that fails keeps it from being made."""
    spec = counting(lab)
    told = tmp_path / "told"

    def hook(script: str) -> list[Spec]:
        return [{"path": "/bin/sh", "args": ["sh", "-c", script]}]

    kinds = ("createRuntime", "poststart", "poststop")
    spec["hooks"] = {kind: hook(f"cat >> {told}; echo ' {kind}' >> {told}") for kind in kinds}
    container = started_counting(lab, spec)
    save(container, tmp_path / "images")
    lab.remove(container)
    told.unlink()

    again = restored(lab, spec, container.bundle, tmp_path / "images")
    again.start()
    pid = again.pid
    lab.remove(again)

    lines = told.read_text().splitlines()
    assert [line.split()[-1] for line in lines] == list(kinds)
    assert json.loads(lines[0].rpartition(" ")[0])["pid"] == pid
    spec["hooks"] = {"createRuntime": hook("exit 3")}
    Path(container.bundle, "config.json").write_text(json.dumps(spec))
    with pytest.raises(OciError, match="createRuntime"):
        restored(lab, spec, container.bundle, tmp_path / "images")
    assert no_process_of(container)
