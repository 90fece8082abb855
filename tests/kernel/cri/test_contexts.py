"""What a kubelet may ask of a pod's surroundings: groups, mounts that travel, resources of the pod, limits of pages."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import CriClient
from support.images import image

pytestmark = pytest.mark.root

SLEEP = ("/bin/busybox", "sleep", "1000")


@pytest.fixture
def shared(cri: CriClient) -> Iterator[Path]:
    """A directory that is a shared mount."""
    path = cri.daemon.base / "shared"
    path.mkdir()
    mount("shared", str(path), "tmpfs", 0)
    mount(None, str(path), None, MountFlag.SHARED)
    (path / "below").mkdir()
    yield path
    umount2(str(path), MNT_DETACH)
    path.rmdir()


@pytest.mark.parametrize(
    ("policy", "groups"), [(image_pb2.Merge, "1000 50000 60000"), (image_pb2.Strict, "1000 60000")]
)
def test_groups_of_the_image_are_merged_or_not(
    cri: CriClient, policy: "image_pb2.SupplementalGroupsPolicy", groups: str
) -> None:
    program = Path("/bin/busybox").read_bytes()
    passwd = b"user:x:1000:1000::/:/bin/sh\n"
    cri.bring(
        "docker.io/library/groups:latest",
        image({"bin/busybox": program, "etc/passwd": passwd, "etc/group": b"its:x:50000:user\n"}),
    )
    pod = cri.run_pod()
    config = cri.container_config("main", *SLEEP)
    config.image.image = "groups"
    security = config.linux.security_context
    security.run_as_username = "user"
    security.supplemental_groups.append(60000)
    security.supplemental_groups_policy = policy
    made = cri.create(pod, config)
    cri.start(made)

    status = cri.exec(made, "/bin/busybox", "cat", "/proc/1/status").stdout.decode()
    assert f"Groups:\t{groups} \n" in status
    assert list(cri.status(made).user.linux.supplemental_groups) == [int(group) for group in groups.split()]


def test_mounts_travel_as_asked(cri: CriClient, shared: Path) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "sleep", "1000")
    config.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN")
    ways = {
        "private": runtime_pb2.PROPAGATION_PRIVATE,
        "slave": runtime_pb2.PROPAGATION_HOST_TO_CONTAINER,
        "shared": runtime_pb2.PROPAGATION_BIDIRECTIONAL,
    }
    for name, way in ways.items():
        config.mounts.add(container_path=f"/{name}", host_path=str(shared), propagation=way)
    made = cri.create(pod, config)
    cri.start(made)

    mount("later", str(shared / "below"), "tmpfs", 0)
    (shared / "below" / "file").touch()
    seen = {name: cri.exec(made, "ls", f"/{name}/below").stdout == b"file\n" for name in ways}
    assert seen == {"private": False, "slave": True, "shared": True}
    umount2(str(shared / "below"), MNT_DETACH)
    for name, travels in (("private", False), ("slave", False), ("shared", True)):
        done = cri.exec(made, "mount", "-t", "tmpfs", name, f"/{name}/below")
        assert done.exit_code == 0, done.stderr
        assert os.path.ismount(shared / "below") is travels, name
    cri.exec(made, "umount", "/shared/below")


def test_read_only_goes_for_what_is_mounted_inside_if_asked(cri: CriClient, shared: Path) -> None:
    mount("inner", str(shared / "below"), "tmpfs", 0)
    pod = cri.run_pod()
    config = cri.container_config("main", "sleep", "1000")
    config.mounts.add(container_path="/plain", host_path=str(shared), readonly=True)
    config.mounts.add(container_path="/all", host_path=str(shared), readonly=True, recursive_read_only=True)
    made = cri.create(pod, config)
    cri.start(made)

    assert cri.exec(made, "touch", "/plain/below/file").exit_code == 0
    assert b"Read-only" in cri.exec(made, "touch", "/all/below/file").stderr
    assert b"Read-only" in cri.exec(made, "touch", "/plain/file").stderr


def test_a_pods_resources_are_noted(cri: CriClient) -> None:
    pod = cri.run_pod()
    request = runtime_pb2.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.annotations["id"])
    request.resources.cpu_shares, request.overhead.memory_limit_in_bytes = 512, 1 << 20
    cri.runtime.UpdatePodSandboxResources(request)

    cri.daemon.restart()

    status = runtime_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod.annotations["id"], verbose=True)
    info = cri.runtime.PodSandboxStatus(status).info["info"]
    assert '"cpu_shares": "512"' in info
    assert '"memory_limit_in_bytes": "1048576"' in info


def test_the_cgroup_driver_is_that_of_the_machine(cri: CriClient) -> None:
    answer = cri.runtime.RuntimeConfig(runtime_pb2.RuntimeConfigRequest())

    wanted = runtime_pb2.SYSTEMD if Path("/run/systemd/system").is_dir() else runtime_pb2.CGROUPFS
    assert answer.linux.cgroup_driver == wanted
