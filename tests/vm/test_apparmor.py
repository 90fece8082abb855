"""AppArmor profiles, on a kernel that enforces them."""

import subprocess
from collections.abc import Iterator

import grpc
import pytest

from support.containers import Containers
from support.daemon_process import DaemonProcess

pytestmark = [pytest.mark.vm, pytest.mark.root]

PROFILE = """
profile pyctr-test flags=(attach_disconnected, mediate_deleted) {
  file,
  capability,
  signal,
  deny /etc/secret r,
}
"""
LOOK = (
    "(busybox cat /proc/self/attr/current; busybox cat /etc/open; busybox cat /etc/secret || echo denied) 2>/dev/null"
)


@pytest.fixture(scope="module")
def profile() -> Iterator[str]:
    parser = ["apparmor_parser", "--skip-cache"]
    subprocess.run([*parser, "--replace"], input=PROFILE, text=True, check=True)
    yield "pyctr-test"
    subprocess.run([*parser, "--remove"], input=PROFILE, text=True, check=True)


@pytest.fixture
def containers(daemon: DaemonProcess) -> Iterator[Containers]:
    with Containers(daemon) as containers:
        (containers.rootfs / "etc").mkdir(exist_ok=True)
        for name in ("open", "secret"):
            (containers.rootfs / "etc" / name).write_text(f"{name}\n")
        yield containers


def define(containers: Containers, id: str, script: str, **process: object) -> None:
    spec = containers.spec(id, "sh", "-c", script)
    containers.define(id, process=spec["process"] | process)


def create_and_start(containers: Containers, id: str) -> None:
    containers.create(id)
    containers.start(id)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_container_is_confined(containers: Containers, profile: str, no_new_privileges: bool) -> None:
    script = f"{LOOK} >/tmp/seen"
    define(containers, "confined", script, apparmorProfile=profile, noNewPrivileges=no_new_privileges)
    create_and_start(containers, "confined")

    containers.wait("confined")

    seen = (containers.rootfs / "tmp/seen").read_text().splitlines()
    assert seen == [f"{profile} (enforce)", "open", "denied"]


def test_an_exec_is_confined(containers: Containers, profile: str) -> None:
    define(containers, "exec", "sleep 1000")
    create_and_start(containers, "exec")

    containers.add_exec("exec", "e", "sh", "-c", f"{LOOK} >/tmp/seen", apparmorProfile=profile)
    containers.start("exec", "e")
    containers.wait("exec", "e")

    seen = (containers.rootfs / "tmp/seen").read_text().splitlines()
    assert seen == [f"{profile} (enforce)", "open", "denied"]


def test_a_container_without_a_profile_is_unconfined(containers: Containers) -> None:
    define(containers, "free", f"{LOOK} >/tmp/seen", apparmorProfile="unconfined")
    create_and_start(containers, "free")

    containers.wait("free")

    assert (containers.rootfs / "tmp/seen").read_text().splitlines() == ["unconfined", "open", "secret"]


def test_a_profile_that_is_not_loaded_is_refused(containers: Containers) -> None:
    """Whether it exists shows when the program is executed: it never runs without."""
    define(containers, "odd", "echo ran >/tmp/ran", apparmorProfile="pyctr-no-such-profile")

    with pytest.raises(grpc.RpcError, match="pyctr-no-such-profile"):
        create_and_start(containers, "odd")

    assert not (containers.rootfs / "tmp/ran").exists()
