"""Image and options become a spec."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci import default_spec
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from pyctr_wire.oci.image_spec import ProcessConfig
from pyctrd.core.mounts import Mount
from pyctrd.runtime.exec_spec import ExecOptions, build_process
from pyctrd.runtime.image_user import User
from pyctrd.runtime.run_options import RunOptions
from pyctrd.runtime.run_spec import Found, build_spec, process_args, working_directory

IMAGE = ProcessConfig(
    env=("PATH=/bin", "LANG=C"), entrypoint=("/entry",), cmd=("cmd",), working_dir="/work", user="web"
)
FOUND = Found(
    namespace="default",
    container_id="0123456789abcdef",
    user=User(33, 33, (33, 4), "/home"),
    capabilities=frozenset(ALL_CAPABILITIES),
    machine="x86_64",
    host_name="machine",
    cgroup_namespaces=False,
)
ROOT = replace(FOUND, user=User(0, 0, (0,), "/root"))


def build(options: RunOptions, image: ProcessConfig = IMAGE, found: Found = ROOT) -> dict[str, Any]:
    return build_spec(image, options, found)[0]


@pytest.mark.parametrize(
    ("options", "args"),
    [
        (RunOptions(), ("/entry", "cmd")),
        (RunOptions(args=("a", "b")), ("/entry", "a", "b")),
        (RunOptions(entrypoint=("/other",)), ("/other",)),
        (RunOptions(entrypoint=("/other",), args=("a",)), ("/other", "a")),
        (RunOptions(entrypoint=("",), args=("a",)), ("a",)),
    ],
)
def test_entrypoint_and_command_as_in_docker(options: RunOptions, args: tuple[str, ...]) -> None:
    assert process_args(IMAGE, options) == args


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        process_args(ProcessConfig(), RunOptions())


def test_the_process() -> None:
    process = build(RunOptions(env=("LANG=de", "X=1")), found=FOUND)["process"]
    assert process["cwd"] == "/work"
    assert process["oomScoreAdj"] == 0, "never its shim's, which is the daemon's and one more"
    assert process["user"] == {"uid": 33, "gid": 33, "additionalGids": [33, 4]}
    assert process["env"] == ["PATH=/bin", "HOSTNAME=0123456789ab", "HOME=/home", "LANG=de", "X=1"]
    assert process["capabilities"]["bounding"] == [name for name in ALL_CAPABILITIES if name in DEFAULT_CAPABILITIES]
    assert process["capabilities"]["effective"] == []
    assert not process["terminal"]


def test_a_terminal() -> None:
    process = build(RunOptions(terminal=True, console_size=(100, 30)))["process"]
    assert process["terminal"]
    assert process["consoleSize"] == {"width": 100, "height": 30}
    assert "TERM=xterm" in process["env"]


def test_cve_2026_57231_image_environment_that_is_no_environment_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without a value is never filled from the daemon's environment, a pattern matches nothing there."""
    monkeypatch.setenv("AWS_SECRET", "of the daemon")
    image = replace(IMAGE, env=("A=1", "*", "AWS_SECRET", "=x"))
    spec, warnings = build_spec(image, RunOptions(), ROOT)
    assert not [entry for entry in spec["process"]["env"] if entry[0] in "*=" or "SECRET" in entry]
    assert len(warnings) == 1
    with pytest.raises(InvalidArgument):
        build(RunOptions(env=("AWS_SECRET",)))


@pytest.mark.parametrize(("text", "path"), [("", "/"), ("/a/../b/", "/b"), ("//x", "/x"), ("/..", "/")])
def test_working_directories(text: str, path: str) -> None:
    assert working_directory(text) == path


@pytest.mark.parametrize("text", ["a", "../x", "/proc/self/fd/7", "/proc", "/x/../proc/1/cwd", "//proc/self", "/a\0"])
def test_cve_2024_21626_working_directories_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        working_directory(text)


def destinations(spec: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in spec["mounts"]]


def test_networks() -> None:
    spec = build(RunOptions())
    assert {"type": "network"} in spec["linux"]["namespaces"]
    assert spec["hostname"] == "0123456789ab"
    host = replace(ROOT, network_files={"/etc/hosts": "/etc/hosts", "/etc/hostname": "/files/hostname"})
    spec = build(RunOptions(network="host"), found=host)
    assert {"type": "network"} not in spec["linux"]["namespaces"]
    assert spec["hostname"] == "machine"
    shown = {mount["destination"]: (mount["source"], mount["options"][-1]) for mount in spec["mounts"]}
    assert shown["/etc/hosts"] == ("/etc/hosts", "ro")
    assert shown["/etc/hostname"] == ("/files/hostname", "rw")
    mine = Mount("bind", "/", "/etc/hosts", ())
    spec = build(RunOptions(network="host", read_only=True, mounts=(mine,)), found=host)
    shown = {mount["destination"]: (mount["source"], mount["options"][-1:]) for mount in spec["mounts"]}
    assert shown["/etc/hosts"] == ("/", [])
    assert shown["/etc/hostname"] == ("/files/hostname", ["ro"])
    with pytest.raises(InvalidArgument, match="bridge"):
        build(RunOptions(network="bridge"))


def test_user_mounts_replace_default_ones() -> None:
    spec = build(RunOptions(mounts=(Mount("tmpfs", "tmpfs", "/dev/shm", ("size=1m",)),)))
    assert destinations(spec).count("/dev/shm") == 1
    spec = build(RunOptions(mounts=(Mount("bind", "/dev", "/dev", ("rbind",)),)))
    assert [path for path in destinations(spec) if path.startswith("/dev")] == ["/dev"]


@pytest.mark.parametrize("namespaces", [True, False])
def test_own_cgroups_are_shown(namespaces: bool) -> None:
    """Programs size themselves by the limits there; without a namespace the runtime shows no more than these."""
    spec = build(RunOptions(), found=replace(ROOT, cgroup_namespaces=namespaces))
    assert ({"type": "cgroup"} in spec["linux"]["namespaces"]) is namespaces
    (mount,) = (one for one in spec["mounts"] if one["destination"] == "/sys/fs/cgroup")
    assert "ro" in mount["options"]


def test_limits() -> None:
    resources = build(RunOptions(memory=64 << 20, nano_cpus=1_500_000_000, pids_limit=9))["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 9}


def test_privileged() -> None:
    spec = build(RunOptions(privileged=True))
    linux = spec["linux"]
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert "seccomp" not in linux
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert spec["process"]["capabilities"]["effective"] == list(ALL_CAPABILITIES)
    assert "ro" not in next(mount["options"] for mount in spec["mounts"] if mount["destination"] == "/sys")


def test_security_options() -> None:
    spec = build(RunOptions(security_options=("no-new-privileges", "systempaths=unconfined", "apparmor=mine")))
    assert spec["process"]["noNewPrivileges"]
    assert spec["process"]["apparmorProfile"] == "mine"
    assert spec["linux"]["maskedPaths"] == []
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert "seccomp" not in build(RunOptions(security_options=("seccomp=unconfined",)))["linux"]
    spec = build(RunOptions(privileged=True, security_options=("seccomp=builtin", "no-new-privileges:true")))
    assert spec["linux"]["seccomp"]
    assert spec["process"]["noNewPrivileges"]


@pytest.mark.parametrize(
    ("options", "profile"),
    [
        (RunOptions(), "ours"),
        (RunOptions(privileged=True), None),
        (RunOptions(security_options=("apparmor=unconfined",)), None),
        (RunOptions(security_options=("apparmor:mine",)), "mine"),
        (RunOptions(privileged=True, security_options=("apparmor=mine",)), "mine"),
        (RunOptions(security_options=("apparmor=mine", "apparmor=unconfined")), None),
    ],
)
def test_the_apparmor_profile(options: RunOptions, profile: str | None) -> None:
    confined = build(options, found=replace(ROOT, apparmor="ours"))["process"]
    assert confined.get("apparmorProfile") == profile


@pytest.mark.parametrize("option", ["nope", "seccomp={", "seccomp={}", "seccomp=[]", "apparmor", "label=type:x"])
def test_security_options_that_are_refused(option: str) -> None:
    with pytest.raises(InvalidArgument):
        build(RunOptions(security_options=(option,)))


def test_a_custom_seccomp_profile() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["reboot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_BOOT"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390"]}, "args": []},
        ],
    }
    seccomp = build(RunOptions(security_options=(f"seccomp={json.dumps(profile)}",)))["linux"]["seccomp"]
    assert [rule["names"] for rule in seccomp["syscalls"]] == [["read"], ["clone"]]
    assert "SCMP_ARCH_X86_64" in seccomp["architectures"]


def test_the_init_runs_the_command() -> None:
    spec = build(RunOptions(init=True), found=replace(ROOT, init_program="/usr/bin/catatonit"))
    assert spec["process"]["args"][:3] == ["/dev/init", "--", "/entry"]
    assert "/dev/init" in destinations(spec)


def test_cve_2021_21334_specs_share_nothing() -> None:
    """One container's options never reach another."""
    before = copy.deepcopy(default_spec.default_spec())
    first = build(RunOptions(privileged=True, env=("A=1",), devices=(), sysctls={"net.x": "1"}))
    for value in (first["mounts"], first["linux"]["namespaces"], first["process"]["env"]):
        value.clear()
    assert default_spec.default_spec() == before
    assert build(RunOptions()) == build(RunOptions())


CONTAINER = build(RunOptions(terminal=True, console_size=(1, 1)))


def test_an_exec_is_like_the_container() -> None:
    process = build_process(CONTAINER, ExecOptions(args=("ls",), env=("LANG=x",)), None, frozenset())
    assert process["args"] == ["ls"]
    assert process["cwd"] == "/work"
    assert "LANG=x" in process["env"]
    assert "terminal" not in process
    assert "consoleSize" not in process
    assert process["capabilities"] == CONTAINER["process"]["capabilities"]
    assert CONTAINER["process"]["args"] != ["ls"]


def test_an_exec_as_somebody_else() -> None:
    other = User(5, 6, (6,), "/five")
    process = build_process(CONTAINER, ExecOptions(args=("ls",), user="five", terminal=True), other, frozenset())
    assert process["user"]["uid"] == 5
    assert "HOME=/five" in process["env"]
    assert process["capabilities"]["effective"] == []
    assert process["terminal"]


def test_a_privileged_exec() -> None:
    available = frozenset({"CAP_KILL", "CAP_BPF"})
    process = build_process(CONTAINER, ExecOptions(args=("ls",), privileged=True), None, available)
    assert process["capabilities"]["effective"] == ["CAP_KILL", "CAP_BPF"]


@pytest.mark.parametrize(
    "options",
    [ExecOptions(args=()), ExecOptions(args=("a",), env=("A",)), ExecOptions(args=("a",), working_dir="/proc/1/cwd")],
)
def test_execs_that_are_refused(options: ExecOptions) -> None:
    with pytest.raises(InvalidArgument):
        build_process(CONTAINER, options, None, frozenset())
