"""Containers that do not get the five usual namespaces: the host's, another's, a user namespace."""

import os
from pathlib import Path

import pytest

from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import MAPS, Lab, in_user_namespace, process, read_all, wait, with_namespaces

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("kind", "name"), [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")])
def test_the_hosts_namespace(lab: Lab, kind: str, name: str) -> None:
    spec = with_namespaces(lab.spec("readlink", f"/proc/self/ns/{name}"), **{kind: None})

    assert lab.run(spec).output.strip() == os.readlink(f"/proc/self/ns/{name}")


@pytest.mark.parametrize(("kind", "name"), [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")])
def test_joining_by_path(lab: Lab, kind: str, name: str) -> None:
    other = lab.running()
    path = f"/proc/{other.pid}/ns/{name}"
    spec = with_namespaces(lab.spec("readlink", f"/proc/self/ns/{name}"), **{kind: path})

    assert lab.run(spec).output.strip() == os.readlink(path)


def test_a_path_that_is_no_namespace_is_named(lab: Lab) -> None:
    with pytest.raises(OciError, match=r"linux.namespaces: network: open /nowhere: No such file"):
        lab.create(with_namespaces(lab.spec("true"), network="/nowhere"))
    with pytest.raises(OciError, match="joining NEWNET namespace"):
        lab.create(with_namespaces(lab.spec("true"), network=f"/proc/{os.getpid()}/ns/uts"))


def test_exec_follows_joined_namespaces(lab: Lab) -> None:
    other = lab.running()
    spec = with_namespaces(lab.spec("sleep", "1000"), pid=f"/proc/{other.pid}/ns/pid", network=None)
    container = lab.running(spec)

    ended = lab.exec(container, process("sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/net"))

    assert ended.output.split() == [os.readlink(f"/proc/{other.pid}/ns/pid"), os.readlink("/proc/self/ns/net")]
    assert not container.own_pid_namespace


def test_names_loopback_and_sysctls(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward "
                                "/proc/sys/kernel/shm_rmid_forced; busybox ip link show lo")  # fmt: skip
    spec["hostname"], spec["domainname"] = "box", "example"
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}

    output = lab.run(spec).output

    assert output.split()[:4] == ["box", "example", "1", "1"]
    assert "LOOPBACK,UP" in output


@pytest.mark.parametrize("network", ["", None])
def test_a_user_namespace(lab: Lab, network: str | None) -> None:
    spec = with_namespaces(
        lab.spec("sh", "-c", "id -u; cat /proc/self/uid_map; touch /made; stat -c %t:%T /dev/null; echo >/dev/null"),
        network=network,
    )
    if network is None:
        spec["mounts"] = [item for item in spec["mounts"] if item["type"] != "sysfs"]
    options = in_user_namespace(lab, spec)

    ended = lab.run(spec, **options)

    assert ended.output.split() == ["0", "0", "100000", "1000", "1000", "200000", "10", "1:3"]
    assert (options["bundle"] / "rootfs/made").stat().st_uid == 100_000


def test_a_pipe_among_the_devices_of_a_user_namespace(lab: Lab) -> None:
    """It is made, unlike a device, which is the host's."""
    spec = lab.spec("stat", "-c", "%a %u %F", "/dev/pipe")
    spec["linux"]["devices"] = [{"path": "/dev/pipe", "type": "p", "fileMode": 0o640, "uid": 5}]

    assert lab.run(spec, **in_user_namespace(lab, spec)).output == "640 5 fifo\n"


def test_exec_into_a_user_namespace(lab: Lab) -> None:
    spec = lab.spec("sleep", "1000")
    container = lab.running(spec, **in_user_namespace(lab, spec))

    ended = lab.exec(
        container, process("sh", "-c", "id -u; readlink /proc/self/ns/user", user={"uid": 1000, "gid": 1000})
    )

    assert ended.output.split() == ["1000", os.readlink(f"/proc/{container.pid}/ns/user")]


def test_bind_mounts_that_only_the_hosts_root_can_reach(lab: Lab) -> None:
    hidden = lab.base / "hidden"
    (hidden / "shown").mkdir(parents=True)
    hidden.chmod(0o700)
    (hidden / "shown/file").write_text("seen\n")
    spec = lab.spec("cat", "/mnt/file")
    spec["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": str(hidden / "shown"), "options": ["rbind", "ro"]}
    )

    assert lab.run(spec, **in_user_namespace(lab, spec)).output == "seen\n"


def test_a_user_namespace_with_a_terminal(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "[ -t 0 ] && stat -c %u /dev/console")
    spec["process"]["terminal"] = True
    container = lab.create(spec, **in_user_namespace(lab, spec))
    assert container.console_fd is not None

    container.start()

    assert read_all(container.console_fd).strip() == "0"
    assert wait(container.pidfd) == 0


def test_joining_a_user_namespace(lab: Lab) -> None:
    first = lab.spec("sleep", "1000")
    other = lab.running(first, **in_user_namespace(lab, first))
    spec = with_namespaces(
        lab.spec("sh", "-c", "readlink /proc/self/ns/user; id -u"), user=f"/proc/{other.pid}/ns/user"
    )
    bundle = lab.bundle(spec)
    for path in (bundle / "rootfs").rglob("*"):
        os.chown(path, 100_000, 100_000, follow_symlinks=False)
    os.chown(bundle / "rootfs", 100_000, 100_000)

    assert lab.run(spec, bundle=bundle).output.split() == [os.readlink(f"/proc/{other.pid}/ns/user"), "0"]


def test_bad_maps_are_refused(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("true"), user="")
    spec["linux"]["uidMappings"] = [*MAPS, {"containerID": 5, "hostID": 5, "size": 5}]
    spec["linux"]["gidMappings"] = MAPS

    with pytest.raises(OciError, match=r"linux.uidMappings"):
        lab.create(spec)


def test_a_time_namespace(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("cat", "/proc/uptime"), time="")
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000}}

    host = float(Path("/proc/uptime").read_text().split()[0])

    assert float(lab.run(spec).output.split()[0]) >= host + 999_000


def test_exec_into_a_time_namespace(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("sleep", "1000"), time="")
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000}, "monotonic": {"secs": -1, "nanosecs": 5}}
    container = lab.running(spec)

    ended = lab.exec(container, process("sh", "-c", "readlink /proc/self/ns/time; cat /proc/uptime"))

    inside, uptime, _ = ended.output.split()
    assert inside == os.readlink(f"/proc/{container.pid}/ns/time") != os.readlink("/proc/self/ns/time")
    assert float(uptime) >= 1_000_000


def test_a_cgroup_namespace(lab: Lab) -> None:
    spec = with_namespaces(lab.spec("cat", "/proc/self/cgroup"), cgroup="")

    output = lab.run(spec).output

    assert lab.cgroup not in output
    assert ("0::/\n" if mounted().is_v2 else ":pids:/\n") in output
