"""Published attacks on those who run pods, each under its number."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pyctr_sys.mount import MNT_DETACH, mount, umount2
from pyctr_wire.cri import image_pb2, runtime_pb2
from support.attackers import snapshot
from support.cri_client import POD, CriClient, refused
from support.daemon_process import DEADLINE, wait_until

pytestmark = pytest.mark.root

SLEEP = ("sleep", "1000")
FIRST = 400_000
HYBRID = Path("/sys/fs/cgroup/memory").exists()  # then the unified hierarchy has no controllers
_MOST_MEMORY = 160 << 20  # bytes that a process may grow by while it relays: ten answers of the largest size


def peak(pid: int) -> int:
    """Return the most memory that a process has had since `forget_peak`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def said_by(process: Path, name: str) -> str:
    """Return a file of a process, "" if it has ended."""
    try:
        return (process / name).read_text()
    except OSError:
        return ""


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def shim_of(cri: CriClient, container: str) -> int:
    return int(json.loads((cri.daemon.state / "tasks/k8s.io" / container / "shim.json").read_text())["pid"])


@pytest.mark.parametrize("to", ["", ">&2"])
def test_cve_2022_31030_cve_2022_1708_output_of_a_command_has_an_end(cri: CriClient, to: str) -> None:
    """Far more than is answered is neither kept by the daemon nor by the shim, whichever stream it comes by."""
    container = cri.run(cri.run_pod(), *SLEEP)
    processes = (cri.daemon.pid, shim_of(cri, container))
    cri.exec(container, "true")
    before = []
    for pid in processes:
        forget_peak(pid)
        before.append(peak(pid))

    flood = cri.exec(container, "sh", "-c", f"head -c 300000000 /dev/zero {to}")

    assert len(flood.stdout) + len(flood.stderr) == (16 << 20) - 4096
    code, _ = refused(lambda: cri.exec(container, "sh", "-c", f"exec yes {to}", seconds=2))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    for pid, at_first in zip(processes, before, strict=True):
        assert peak(pid) - at_first < _MOST_MEMORY
    wait_until(lambda: b"yes" not in cri.exec(container, "ps").stdout, "the flood ends with its time")


@pytest.fixture
def mounted(cri: CriClient) -> Iterator[Path]:
    """A mount of the host's beside the logs, with a file."""
    path = cri.daemon.base / "mounted"
    path.mkdir()
    mount("mounted", str(path), "tmpfs", 0)
    (path / "file").write_text("the host's")
    yield path
    umount2(str(path), MNT_DETACH)
    path.rmdir()


@pytest.mark.parametrize("name", ["../mounted", "../mounted/main.log", "x/../../mounted/main.log", "/../mounted/a"])
def test_cve_2025_0750_a_log_is_below_the_pods_directory(cri: CriClient, mounted: Path, name: str) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "echo", "evil")
    config.log_path = name
    before = snapshot(mounted)

    code, text = refused(cri.create, pod, config)

    assert (code, "log_path" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    cri.remove_pod(pod.annotations["id"])
    assert snapshot(mounted) == before
    assert str(mounted) in Path("/proc/self/mountinfo").read_text()


def test_cve_2025_0750_links_among_the_logs_lead_nowhere(cri: CriClient, mounted: Path) -> None:
    """Neither while a container runs nor when its pod is removed."""
    (cri.logs / "main").symlink_to(mounted)
    (cri.logs / "other.log").symlink_to(mounted / "file")
    before = snapshot(mounted)
    pod = cri.run_pod()
    for name, path in (("main", "main/0.log"), ("other", "other.log"), ("mount", "main")):
        config = cri.container_config(name, "echo", "evil")
        config.log_path = path
        made = cri.create(pod, config)
        code, text = refused(cri.start, made)
        assert (code, f"log file {cri.logs}/{path}: " in text) == (grpc.StatusCode.UNKNOWN, True)
        cri.remove(made)
    cri.remove_pod(pod.annotations["id"])

    assert snapshot(mounted) == before
    assert str(mounted) in Path("/proc/self/mountinfo").read_text()


def test_cve_2025_47291_a_pod_with_its_own_users_is_in_its_cgroup(cri: CriClient) -> None:
    """So its limits hold: those of the pod, which whoever asks for it sets, and the container's."""
    mapping = [image_pb2.IDMapping(container_id=0, host_id=FIRST, length=65536)]
    users = image_pb2.UserNamespace(mode=POD, uids=mapping, gids=mapping)
    pod = cri.run_pod(ipc=POD, pid=POD, userns_options=users)
    config = cri.container_config("main", "sh", "-c", "sleep 1000 & exec sleep 1000")
    options = config.linux.security_context.namespace_options
    options.pid = POD
    options.userns_options.CopyFrom(users)
    config.linux.resources.memory_limit_in_bytes = 48 << 20
    container = cri.create(pod, config)
    cri.start(container)

    def sleeping() -> list[Path]:
        theirs = [one for one in Path("/proc").glob("[0-9]*") if said_by(one, "uid_map").split()[1:2] == [str(FIRST)]]
        return [one for one in theirs if said_by(one, "comm") == "sleep\n"]

    wait_until(lambda: len(sleeping()) == 2, "both run")
    for process in sleeping():
        for line in (process / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if set(controllers.split(",")) & {"memory", "pids", "cpu"} or not HYBRID:
                assert path == f"{cri.cgroup}/{container}", line
    assert cri.exec(container, "tail", "/dev/zero").exit_code == 137


def test_cve_2024_3154_annotations_are_no_properties_of_units(cri: CriClient) -> None:
    """Nor anything else that a runtime would act upon: none of a request's are in the container's spec."""
    config = cri.pod_config("pod")
    evil = {"org.systemd.property.ExecStart": "'/bin/evil'", "io.kubernetes.cri.sandbox-id": "another"}
    config.annotations.update(evil)
    answer = cri.runtime.RunPodSandbox(runtime_pb2.RunPodSandboxRequest(config=config), timeout=DEADLINE)
    config.annotations["id"] = answer.pod_sandbox_id
    wanted = cri.container_config("main", *SLEEP)
    wanted.annotations.update(evil)
    made = cri.create(config, wanted)

    asked = runtime_pb2.ContainerStatusRequest(container_id=made, verbose=True)
    spec = json.loads(cri.runtime.ContainerStatus(asked).info["info"])["runtimeSpec"]

    assert spec["annotations"]["io.kubernetes.cri.sandbox-id"] == answer.pod_sandbox_id
    assert all(key.startswith("io.kubernetes.cri.") for key in spec["annotations"])
    assert "evil" not in json.dumps(spec)
