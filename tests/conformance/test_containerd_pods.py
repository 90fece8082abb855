"""Pods by containerd 2.3's own CRI with our shim as a handler's runtime, asked for by crictl."""

import json
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from support.containerd import RUNTIME, Containerd, private_containerd
from support.crictl import Crictl
from support.critest import Critest, critest_images
from support.images import busybox, busybox_with_applets, write_layout
from support.pod_bridge import pod_bridge
from support.shim_harness import eventually

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(300)]

IMAGE: Final = "example.com/busybox:v1"
PAUSE: Final = "example.com/pause:v1"
PODS: Final = "k8s.io"  # the namespace that they are in
HANDLER: Final = "pyctr"
SPECS: Final = (
    "SecurityContext bucket|NamespaceOption|runtime should support (removing|starting|stopping|execSync|listing)",
    "OOM|stats|attach|log|propagation|Container Mount",
)
_CONFIG: Final = f"""
version = 3
root = "{{base}}/root"
state = "{{base}}/state"
[grpc]
  address = "{{base}}/c.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{{pause}}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{HANDLER}]
  runtime_type = "{RUNTIME}"
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{{networks}}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{{hosts}}"
"""


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with private_containerd("2.3", config()) as containerd:
        layout, archive = containerd.base / "layout", containerd.base / "images.tar"
        write_layout(
            layout,
            {IMAGE: busybox_with_applets(), PAUSE: busybox(Entrypoint=["/bin/busybox", "sleep", "1000000"])},
        )
        with tarfile.open(archive, "w") as file:
            file.add(layout, ".")
        containerd.ctr("images", "import", str(archive), namespace=PODS)
        yield containerd
        assert containerd.bundles(PODS) == []


def config(pause: str = PAUSE, networks: str = "{base}/net.d", hosts: str = "") -> str:
    """Return containerd's configuration: the image of its pause containers, where networks and registries are told."""
    return _CONFIG.replace("{pause}", pause).replace("{networks}", networks).replace("{hosts}", hosts)


def write(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def shim_of(pid: int) -> str:
    """Return the name of the parent of a container's first process."""
    parent = Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0]
    return Path(f"/proc/{parent}/comm").read_text()


def test_a_pod_outlives_containerd(containerd: Containerd, tmp_path: Path) -> None:
    """Its containers run on while containerd is killed, and while it is stopped; an exit is told exactly."""
    crictl = Crictl(containerd)
    host = {"security_context": {"namespace_options": {"network": 2}}}
    pod_config = {"metadata": {"name": "pod", "namespace": "lab", "uid": "1"}, "log_directory": str(tmp_path)}
    pod_file = write(tmp_path / "pod.json", {**pod_config, "linux": host})
    script = "echo begun; trap 'echo ending; exit 5' TERM; while :; do sleep 0.1; done"
    container_config = {"metadata": {"name": "box"}, "image": {"image": IMAGE}, "log_path": "box.log"}
    container_file = write(tmp_path / "box.json", {**container_config, "command": ["sh", "-c", script], "linux": host})

    pod = crictl("runp", "--runtime", HANDLER, pod_file).strip()
    id = crictl("create", pod, container_file, pod_file).strip()
    crictl("start", id)

    pids = [one["info"]["pid"] for one in (crictl.json("inspectp", pod), crictl.json("inspect", id))]
    assert [shim_of(pid) for pid in pids] == ["pyctr-shim\n"] * 2
    assert crictl("exec", "--sync", id, "echo", "inside").strip() == "inside"
    for number in (signal.SIGKILL, signal.SIGTERM):
        containerd.restart(number)
        [found] = crictl.json("ps", "--id", id)["containers"]
        assert (found["state"], found["podSandboxId"]) == ("CONTAINER_RUNNING", pod)
        assert [crictl.json("inspectp", pod)["info"]["pid"], crictl.json("inspect", id)["info"]["pid"]] == pids
        assert f"exited with {number}: " in crictl.run("exec", "--sync", id, "sh", "-c", f"exit {number}").stderr
    [figures] = crictl.json("stats", "--id", id)["stats"]
    assert int(figures["memory"]["workingSetBytes"]["value"]) > 0

    crictl("stop", "--timeout", "30", id)
    status = crictl.json("inspect", id)["status"]
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 5)
    lines = [line.split(maxsplit=3)[1:] for line in (tmp_path / "box.log").read_text().splitlines()]
    assert lines == [["stdout", "F", "begun"], ["stdout", "F", "ending"]]
    crictl("rm", id)
    crictl("stopp", pod)
    crictl("rmp", pod)
    eventually(lambda: containerd.bundles(PODS) == [], "bundles go")
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.timeout(1800)
def test_critest(tmp_path: Path) -> None:
    """What critest asks of containers, their execs, mounts, logs, limits and confinement."""
    (tmp_path / "images").mkdir()
    (tmp_path / "networks").mkdir()
    with critest_images(tmp_path / "images"), pod_bridge(tmp_path / "networks"):
        own = config("registry.k8s.io/pause:3.9", str(tmp_path / "networks"), str(tmp_path / "images/hosts"))
        with private_containerd("2.3", own) as containerd:
            report = Critest(containerd).run("-runtime-handler", HANDLER, focus=SPECS)
            assert not report.failed, report.failures()
            assert len(report.passed) >= 36, report.skipped
