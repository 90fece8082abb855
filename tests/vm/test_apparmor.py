"""AppArmor profiles, on a kernel that enforces them: those that a spec names, and the one that we bring."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from pyctr_wire.cri import image_pb2
from support.attackers import STARTS, exchanging
from support.containers import Containers
from support.cri_client import CriClient
from support.daemon_process import DaemonProcess
from support.pyctr_command import Pyctr

pytestmark = [pytest.mark.vm, pytest.mark.root]

PROGRAMS: Final = ("sh", "cat", "mount", "sleep")
DEFAULT: Final = "pyctr-default (enforce)\n"
POD_DEFAULT: Final = "cri-containerd.apparmor.d (enforce)\n"
LOADED: Final = Path("/sys/kernel/security/apparmor/profiles")
LABEL: Final = ("cat", "/proc/self/attr/current")

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


@pytest.fixture
def false_attributes(containers: Containers, tmp_path: Path) -> list[Path]:
    """Files that look like those for labels, in a volume and in a root file system that has a link to it: tmp_path's.

    Whose /proc is exchanged for the link has the one of the volume.
    """
    shutil.copytree(containers.rootfs, tmp_path / "rootfs", symlinks=True)
    (tmp_path / "rootfs/link").symlink_to("/volume")
    places = [tmp_path / "volume", tmp_path / "rootfs/proc"]
    folders = [place / own / "attr" for place in places for own in ("self", "thread-self", "1")]
    files = [folder / name for folder in folders for name in ("current", "exec", "apparmor/exec")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return files


def start_labelled(containers: Containers, profile: str, directory: Path) -> str:
    """Return the label of a container's process, "" if none came to be, with the root and the volume in a directory."""
    spec = containers.spec("raced", "sleep", "1000")
    volume = {"destination": "/volume", "type": "bind", "source": str(directory / "volume"), "options": ["rbind"]}
    containers.define(
        "raced",
        process=spec["process"] | {"apparmorProfile": profile},
        root={"path": str(directory / "rootfs")},
        mounts=[volume, *spec["mounts"]],
    )
    try:
        containers.create("raced")
        return Path(f"/proc/{containers.start('raced')}/attr/current").read_text().strip()
    except grpc.RpcError:
        return ""
    finally:
        containers.remove("raced")


def test_cve_2025_52881_labels(
    containers: Containers, profile: str, false_attributes: list[Path], tmp_path: Path
) -> None:
    """What an image has for /proc takes no label for itself; also CVE-2019-16884."""
    assert start_labelled(containers, profile, tmp_path) == f"{profile} (enforce)"
    assert {file.read_text() for file in false_attributes} == {""}


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2025_52881_labels_while_proc_is_exchanged(
    containers: Containers, profile: str, false_attributes: list[Path], tmp_path: Path, starts: int
) -> None:
    """A neighbour swaps /proc for a link to a volume's: a process has the profile, or there is none."""
    with exchanging(tmp_path / "rootfs/proc", tmp_path / "rootfs/link"):
        labels = {start_labelled(containers, profile, tmp_path) for _ in range(starts)}

    assert labels <= {"", f"{profile} (enforce)"}
    assert {path.read_text() for path in tmp_path.rglob("attr/**/*") if path.is_file()} == {""}


# -- the default profile


def forget() -> None:
    """Take our profiles from the kernel."""
    for name in ("pyctr-default", "cri-containerd.apparmor.d"):
        if f"{name} (" in LOADED.read_text():
            subprocess.run(["apparmor_parser", "--remove"], input=f"profile {name} {{}}", text=True, check=True)
    assert "pyctr-default" not in LOADED.read_text()


@pytest.fixture
def unknown() -> None:
    """The kernel has no profile of ours."""
    forget()


# All else that would deny it is taken away. The keyboard's command only prints what commands there are.
GIVEN: Final = (
    "--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined",
)  # fmt: skip
TRIES: Final = """
cat /proc/self/attr/current
mount -t tmpfs tmpfs /dev/shm && echo mounted
echo h >/proc/sysrq-trigger && echo commanded
true >>/proc/sys/kernel/core_pattern && echo opened the kernel
true >>/proc/sys/kernel/shm_rmid_forced && echo opened its own
sleep 100 & kill $! && echo signalled
"""


@pytest.mark.parametrize("runtime", [(), ("--runtime", "runc")], ids=["ours", "runc"])
def test_a_container_has_the_default_profile(pyctr: Pyctr, unknown: None, runtime: tuple[str, ...]) -> None:
    """It denies what capabilities would allow."""
    assert pyctr.box(*runtime, *GIVEN, "demo", "sh", "-c", TRIES).splitlines() == [
        "pyctr-default (enforce)", "opened its own", "signalled"
    ]  # fmt: skip


def test_a_container_that_wants_no_profile_has_none(pyctr: Pyctr) -> None:
    assert pyctr.box(*GIVEN, "--security-opt", "apparmor=unconfined", "demo", "sh", "-c", TRIES).splitlines() == [
        "unconfined", "mounted", "commanded", "opened the kernel", "opened its own", "signalled"
    ]  # fmt: skip


def test_whose_profile_a_container_has(pyctr: Pyctr, profile: str) -> None:
    assert pyctr.box("--privileged", "demo", *LABEL) == "unconfined\n"
    assert pyctr.box("--security-opt", f"apparmor={profile}", "demo", *LABEL) == f"{profile} (enforce)\n"
    assert pyctr.box("--privileged", "--security-opt", "apparmor=pyctr-default", "demo", *LABEL) == DEFAULT


def test_a_confined_container_is_supervised(pyctr: Pyctr, name: str) -> None:
    """Execs have its profile, too, and signals from outside arrive."""
    script = "trap 'exit 7' TERM; while :; do sleep 0.2; done"
    pyctr("run", "-d", "--network", "none", "--name", name, "demo", "sh", "-c", script)

    assert pyctr("exec", name, *LABEL) == DEFAULT
    assert pyctr("exec", name, "cat", "/proc/1/attr/current") == DEFAULT
    pyctr("kill", "-s", "TERM", name)

    assert pyctr("wait", name) == "7\n"


def test_a_container_starts_again_where_the_kernel_has_forgotten_its_profile(pyctr: Pyctr, name: str) -> None:
    """As after the machine was booted."""
    pyctr("create", "--network", "none", "--name", name, "demo", *LABEL)
    for _ in range(2):
        forget()
        assert pyctr("start", "-a", name) == DEFAULT


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        (None, POD_DEFAULT),
        (image_pb2.SecurityProfile(profile_type=image_pb2.SecurityProfile.RuntimeDefault), POD_DEFAULT),
        (image_pb2.SecurityProfile(profile_type=image_pb2.SecurityProfile.Unconfined), "unconfined\n"),
    ],
)
def test_a_pods_container_has_the_profile_that_nodes_expect(
    pyctr: Pyctr, unknown: None, wanted: image_pb2.SecurityProfile | None, label: str
) -> None:
    with CriClient(pyctr.daemon) as cri:
        pod = cri.run_pod()
        config = cri.container_config("main", "sleep", "1000")
        if wanted is not None:
            config.linux.security_context.apparmor.CopyFrom(wanted)
        container = cri.create(pod, config)
        cri.start(container)

        assert cri.exec(container, "cat", "/proc/1/attr/current").stdout.decode() == label
        assert cri.exec(container, *LABEL).stdout.decode() == label
