"""Devices by the names that their drivers gave them, in real containers: of a pod, and of `pyctr run`."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import runtime_pb2
from support.cri_client import IMAGE, CriClient
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.pyctr_command import Pyctr

pytestmark = pytest.mark.root

SHOW = (
    "sh",
    "-c",
    "echo $DRIVER $CARD; ls -l /dev/card; cat /driver/version; id -G; head -c 3 /dev/card | od -An -tx1",
)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver's file, with what it mounts beside it, and a hook that says that it ran."""
    folder = tmp_path_factory.mktemp("drivers")
    (folder / "version").write_text("version 7\n")
    hook = {"hookName": "poststop", "path": "/bin/sh", "args": ["sh", "-c", f"echo >>{folder}/hook"]}
    card = {
        "env": ["CARD=0"],
        "deviceNodes": [{"path": "/dev/card", "hostPath": "/dev/zero"}],
        "mounts": [
            {"hostPath": str(folder / "version"), "containerPath": "/driver/version", "options": ["ro", "bind"]}
        ],
        "hooks": [hook],
    }
    (folder / "cdi").mkdir()
    document = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/card",
        "containerEdits": {"env": ["DRIVER=7"], "additionalGids": [4711]},
        "devices": [
            {"name": "0", "containerEdits": card},
            {"name": "lost", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-card"}]}},
        ],
    }
    (folder / "cdi" / "vendor.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def daemon(drivers: Path) -> Iterator[DaemonProcess]:
    """One that looks there."""
    with DaemonProcess(config=f'[cdi]\ndirectories = ["{drivers / "cdi"}"]') as daemon:
        yield daemon


def shows(text: str) -> bool:
    return all(part in text for part in ("7 0", "1,   5", "version 7", "4711", "00 00 00"))


@pytest.mark.parametrize("way", ["field", "annotation"])
def test_a_pods_container_gets_what_the_driver_says(cri: CriClient, drivers: Path, way: str) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SHOW)
    if way == "field":
        config.CDI_devices.add(name="vendor.com/card=0")
    else:
        config.annotations["cdi.k8s.io/vendor_card"] = "vendor.com/card=0"
    container = cri.create(pod, config)
    cri.start(container)
    assert cri.ended(container).exit_code == 0
    assert shows(cri.log()), cri.log()
    wait_until((drivers / "hook").exists, "the hook that runs last has run")
    (drivers / "hook").unlink()


@pytest.mark.parametrize(
    ("device", "code", "text"),
    [
        ("card", "INVALID_ARGUMENT", "CDI_devices: 'card' is not the name of a CDI device: VENDOR/CLASS=NAME"),
        ("vendor.com/card=1", "FAILED_PRECONDITION", "of vendor.com/card there are 0, lost"),
        ("vendor.com/card=lost", "FAILED_PRECONDITION", "/dev/no-such-card: No such file or directory: is its driver"),
    ],
)
def test_what_cannot_be_had_is_named_and_leaves_nothing(cri: CriClient, device: str, code: str, text: str) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", *SHOW)
    config.CDI_devices.add(name=device)
    with pytest.raises(grpc.RpcError) as failure:
        cri.create(pod, config)
    assert (failure.value.code().name, text in str(failure.value.details())) == (code, True), failure.value.details()
    assert cri.containers() == []


def test_cve_2026_53492_only_the_containers_own_request_gives_it_devices(cri: CriClient) -> None:
    """Nor do annotations of the pod, nor what the spec of another container had."""
    pod = cri.pod_config("pod")
    pod.annotations["cdi.k8s.io/card"] = "vendor.com/card=0"
    pod.annotations["id"] = cri.runtime.RunPodSandbox(
        runtime_pb2.RunPodSandboxRequest(config=pod), timeout=DEADLINE
    ).pod_sandbox_id
    container = cri.run(pod, "sh", "-c", "test ! -e /dev/card && test -z $DRIVER")
    assert cri.ended(container).exit_code == 0


def test_run_takes_them_as_devices(cri: CriClient, drivers: Path) -> None:
    pyctr = Pyctr(cri.daemon)
    arguments = ("-n", "k8s.io", "run", "--rm", "--network", "none", "--device")
    assert shows(pyctr(*arguments, "vendor.com/card=0", "--user", "1000", IMAGE, *SHOW))
    (drivers / "hook").unlink()
    lost = pyctr.run(*arguments, "vendor.com/card=2", IMAGE, "true")
    assert lost.returncode == 125
    assert "CDI device vendor.com/card=2: no file in" in lost.stderr
    assert "VENDOR/CLASS=NAME" in pyctr.run(*arguments, "card=2", IMAGE, "true").stderr
