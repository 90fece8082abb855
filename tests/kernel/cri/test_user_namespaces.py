"""Pods whose users are others on this machine."""

from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from support.cri_client import CONTAINER, NODE, POD, CriClient, refused
from support.images import image

pytestmark = pytest.mark.root

SLEEP = ("sleep", "1000")
FIRST = 400_000


def mapped(mode: int = POD, first: int = FIRST, length: int = 65536) -> image_pb2.UserNamespace:
    """A user namespace whose ids begin at `first` here."""
    mappings = [image_pb2.IDMapping(container_id=0, host_id=first, length=length)]
    return image_pb2.UserNamespace(mode=mode, uids=mappings, gids=mappings)  # type: ignore[arg-type]


def container(cri: CriClient, name: str, *command: str) -> runtime_pb2.ContainerConfig:
    config = cri.container_config(name, *(command or SLEEP))
    config.linux.security_context.namespace_options.userns_options.CopyFrom(mapped())
    return config


def run(cri: CriClient, pod: image_pb2.PodSandboxConfig, config: runtime_pb2.ContainerConfig) -> str:
    made = cri.create(pod, config)
    cri.start(made)
    return made


def test_root_of_the_pod_is_nobody_here(cri: CriClient) -> None:
    pod = cri.run_pod(ipc=POD, userns_options=mapped())
    here = cri.daemon.base / "theirs"
    config = container(cri, "main")
    here.mkdir()
    mount = config.mounts.add(container_path="/data", host_path=str(here))
    mount.uidMappings.add(container_id=0, host_id=FIRST, length=65536)
    mount.gidMappings.add(container_id=0, host_id=FIRST, length=65536)
    main = run(cri, pod, config)

    def said(*words: str) -> str:
        answer = cri.exec(main, *words)
        assert answer.exit_code == 0, answer.stderr
        return answer.stdout.decode()

    assert said("cat", "/proc/self/uid_map").split() == ["0", str(FIRST), "65536"]
    assert said("id", "-u") == "0\n"
    # What is the image's is root's, and can be changed.
    assert said("stat", "-c", "%u:%g", "/bin/busybox") == "0:0\n"
    said("sh", "-c", "echo text >/file && chown 5:6 /file")
    upper = next(cri.daemon.root.glob("**/fs/file"))
    assert (upper.stat().st_uid, upper.stat().st_gid) == (FIRST + 5, FIRST + 6)
    # A volume that is mapped keeps this machine's owners.
    said("touch", "/data/file")
    assert (here / "file").stat().st_uid == 0
    for name in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/data"):
        assert said("stat", "-c", "%u", name) == "0\n", name
    said("sh", "-c", "echo >>/etc/hosts; echo >/dev/shm/file")
    lines = cri.daemon.ctr("tasks", "ls", namespace="k8s.io").splitlines()
    pid = next(line.split()[1] for line in lines if line.split()[0] == main)
    assert f"Uid:\t{FIRST}" in Path(f"/proc/{pid}/status").read_text()
    namespaces = cri.daemon.base / "state/pods" / pod.annotations["id"] / "ns"
    assert (namespaces / "user").stat().st_ino == Path(f"/proc/{pid}/ns/user").stat().st_ino
    other = run(cri, pod, container(cri, "other"))
    assert cri.exec(other, "readlink", "/proc/self/ns/user").stdout == said("readlink", "/proc/self/ns/user").encode()


def test_processes_are_shared_inside_it(cri: CriClient) -> None:
    pod = cri.run_pod(pid=POD, userns_options=mapped())
    config = container(cri, "main")
    config.linux.security_context.namespace_options.pid = POD
    made = run(cri, pod, config)

    processes = cri.exec(made, "sh", "-c", "cat /proc/[0-9]*/comm").stdout.decode().split()
    assert {"pyctr-pause", "sleep"} <= set(processes)
    assert cri.exec(made, "stat", "-c", "%u", "/proc/1").stdout == b"65534\n"


def test_volumes_of_an_image_are_the_containers_own(cri: CriClient) -> None:
    program = Path("/bin/busybox").read_bytes()
    files = {"bin/busybox": program, "bin/sh": program, "data/file": b"from the image\n"}
    cri.bring("docker.io/library/mapped-volumes:latest", image(files, config={"Volumes": {"/data": {}}}))
    pod = cri.run_pod(userns_options=mapped())
    config = container(cri, "main", "/bin/busybox", "sleep", "1000")
    config.image.image = "mapped-volumes"
    made = run(cri, pod, config)

    answer = cri.exec(made, "/bin/busybox", "stat", "-c", "%u:%g", "/data", "/data/file")
    assert answer.stdout == b"0:0\n0:0\n"
    assert cri.exec(made, "/bin/busybox", "touch", "/data/new").exit_code == 0


def test_a_file_system_without_ids_to_map_is_named(cri: CriClient) -> None:
    """Of what the host mounts, /proc is one that no kernel maps."""
    pod = cri.run_pod(userns_options=mapped())
    config = container(cri, "main")
    mount = config.mounts.add(container_path="/data", host_path="/sys/kernel", readonly=True)
    mount.uidMappings.add(container_id=0, host_id=FIRST, length=65536)
    mount.gidMappings.add(container_id=0, host_id=FIRST, length=65536)
    made = cri.create(pod, config)

    text = refused(cri.start, made)[1]

    assert "/sys/kernel" in text
    assert "cannot be id-mapped" in text


def test_a_container_has_its_pods_user_namespace(cri: CriClient) -> None:
    pod = cri.run_pod(userns_options=mapped())

    for config in (cri.container_config("none", *SLEEP), container(cri, "another")):
        if config.metadata.name == "another":
            config.linux.security_context.namespace_options.userns_options.CopyFrom(mapped(first=FIRST + 1))
        code, text = refused(cri.create, pod, config)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "user namespace config for sandbox is different from container" in text


def test_it_outlives_the_daemon(cri: CriClient) -> None:
    pod = cri.run_pod(userns_options=mapped())
    made = run(cri, pod, container(cri, "main"))

    cri.daemon.kill()
    cri.daemon.start()

    assert cri.pods()[0].state == runtime_pb2.SANDBOX_READY
    assert cri.exec(made, "id", "-u").stdout == b"0\n"
    later = run(cri, pod, container(cri, "later"))
    assert cri.exec(later, "cat", "/proc/self/uid_map").stdout.split()[1] == str(FIRST).encode()


def test_that_it_can_be_had_is_told(cri: CriClient) -> None:
    status = cri.runtime.Status(runtime_pb2.StatusRequest())

    features = {handler.name: handler.features for handler in status.runtime_handlers}
    assert features[""].user_namespaces
    assert features[""].recursive_read_only_mounts
    assert status.features.supplemental_groups_policy


@pytest.mark.parametrize(
    ("mode", "uids", "code", "text"),
    [
        (CONTAINER, [], "INVALID_ARGUMENT", 'unsupported user namespace mode: "CONTAINER"'),
        (POD, [], "INVALID_ARGUMENT", "without UID and GID mappings"),
        (POD, [(0, 1000, 10), (10, 2000, 10)], "INVALID_ARGUMENT", "got 2 mapping lines"),
        (POD, [(0, 1000, 0)], "INVALID_ARGUMENT", "invalid mapping length: 0"),
        (POD, [(1, 1000, 10)], "INVALID_ARGUMENT", "container id 0"),
        (POD, [(0, (1 << 32) - 2, 10)], "INVALID_ARGUMENT", "must end below host id"),
        (NODE, [(0, 1000, 10)], "INVALID_ARGUMENT", "Got 1 UID mappings and 1 GID mappings"),
    ],
)
def test_what_cannot_be_a_user_namespace_is_refused(
    cri: CriClient, mode: int, uids: list[tuple[int, int, int]], code: str, text: str
) -> None:
    config = cri.pod_config("mapped")
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = mode  # type: ignore[assignment]
    for inside, outside, length in uids:
        options.uids.add(container_id=inside, host_id=outside, length=length)
        options.gids.add(container_id=inside, host_id=outside, length=length)

    found, said = refused(cri.runtime.RunPodSandbox, runtime_pb2.RunPodSandboxRequest(config=config))

    assert (found.name, text in said) == (code, True), said
