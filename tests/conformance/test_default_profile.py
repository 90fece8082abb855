"""A container that nobody said anything special about is confined as docker and containerd confine theirs.

The peers' own programs make the specs that ours is compared with, entry by entry: Debian's docker from the bundle that
it hands to its runtime, ctr of containerd 1.6 and 2 from the record that it makes. Whatever is different is in a table
here, with the reason; a line of a table that is no difference any more is a failure, too.
"""

import json
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from pyctr_wire.oci import default_seccomp, default_spec
from support import runtimes, seccomp_profiles
from support.ctr_client import Ctr, namespace_with, program
from support.daemon_process import DaemonProcess
from support.engines import IMAGE, docker
from support.images import busybox_with_applets
from support.pyctr_command import Pyctr

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.timeout(300),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the tables of differences are x86-64's"),
]

NAME: Final = "example.com/busybox:v1"
PEERS: Final = ("docker", "ctr 1.6", "ctr 2")

Spec = dict[str, Any]
Entries = Mapping[str, object]

# -- What is different, and why. An entry that only one side has is None on the other.

_FILES: Final = "pyctr has host name, hosts and resolv.conf files for each container, as docker has"
_NEWER: Final = "newer than this peer's list; containerd 2 allows it"
_RING: Final = "holes in io_uring have let containers out; containerd 2 and docker 25 forbid it as well"
_FAMILIES: Final = (
    "CVE-2026-31431: AF_ALG and AF_VSOCK reach the host's kernel crypto and hypervisor; containerd 2 agrees"
)
_SOCKETCALL: Final = "32-bit programs would get at those families by it; their C libraries go without since Linux 4.3"

DIFFERENT: Final[Mapping[str, Mapping[str, str]]] = {
    "docker": {
        "maskedPaths /proc/interrupts": "ours is tighter: interrupts tell of others' work; docker 26 masks it too",
        "maskedPaths /sys/devices/virtual/powercap": "ours is tighter: CVE-2020-8694; docker 24 masks it too",
        "mount /etc/hostname": _FILES,
        "mount /etc/hosts": _FILES,
        "mount /etc/resolv.conf": _FILES,
        "mount /sys/fs/cgroup": "docker's has no relatime, which is what the kernel does without a word",
        "sysctl net.ipv4.ip_unprivileged_port_start": "a convenience of docker's, and less tight",
        "sysctl net.ipv4.ping_group_range": "a convenience of docker's, and less tight",
        "rlimit RLIMIT_NOFILE": "the test's own --default-ulimit: this machine cannot raise limits",
    },
    "ctr 1.6": {
        "maskedPaths /proc/interrupts": "ours is tighter",
        "maskedPaths /sys/devices/virtual/powercap": "ours is tighter: CVE-2020-8694; ctr 2 masks it too",
        "mount /etc/hostname": _FILES,
        "mount /etc/hosts": _FILES,
        "mount /etc/resolv.conf": _FILES,
        "mount /run": "ctr's containers have a tmpfs there, docker's and ours what the image has",
        "mount /sys/fs/cgroup": "ctr shows none; docker's and ours see their own limits, read-only",
        "process noNewPrivileges": "ctr forbids setuid programs, docker and pyctr do when told (no-new-privileges)",
        "process oomScoreAdj": "without it a container would have the shim's, which is another one's business",
        "rlimit RLIMIT_NOFILE": "ctr sets 1024 for everybody; docker's and ours inherit the daemon's limit",
    },
}
DIFFERENT_CALLS: Final[Mapping[str, dict[str, str]]] = {
    "docker": {
        **dict.fromkeys(("pkey_alloc", "pkey_free", "pkey_mprotect"), _NEWER),
    },
    "ctr 1.6": {},
    "ctr 2": {"socketcall": _SOCKETCALL},
}
_OLD_PEERS: Final = {
    **dict.fromkeys(
        (
            "cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "getxattrat", "listmount",
            "listxattrat", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "map_shadow_stack", "mseal",
            "name_to_handle_at", "process_vm_readv", "process_vm_writev", "removexattrat", "setxattrat", "statmount",
            "uretprobe",
        ),
        _NEWER,
    ),
    **dict.fromkeys(("io_uring_enter", "io_uring_register", "io_uring_setup"), _RING),
    "socket(#0 = 0x26)": _FAMILIES,
    "socket(#0 = 0x28)": _FAMILIES,
    "socketcall": _SOCKETCALL,
}  # fmt: skip


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    with DaemonProcess(environment={"PATH": runtimes.search_path()}) as daemon:
        yield Pyctr(daemon)


@pytest.fixture(scope="module")
def namespace(pyctr: Pyctr) -> Iterator[str]:
    with namespace_with(pyctr.daemon, NAME, busybox_with_applets()) as namespace:
        pyctr.environment["PYCTR_NAMESPACE"] = namespace
        yield namespace


@pytest.fixture(scope="module")
def ours(pyctr: Pyctr, namespace: str) -> Spec:
    id = pyctr("create", "--network", "none", NAME, "true").strip()
    (found,) = json.loads(pyctr("inspect", id))
    pyctr("rm", id)
    return dict(found["Spec"])


@pytest.fixture(scope="module", params=PEERS)
def peer(request: pytest.FixtureRequest, pyctr: Pyctr, namespace: str) -> tuple[str, Spec]:
    """A peer's name and the spec of its container."""
    if request.param == "docker":
        return request.param, of_docker()
    return request.param, of_ctr(request.param, pyctr, namespace)


def of_docker() -> Spec:
    with docker() as engine:
        cgroup = ("--cgroup-parent", f"/{engine.ground.cgroup}")
        id = engine("run", "--detach", *cgroup, "--network", "none", IMAGE, "sleep", "1000").strip()
        (path,) = (engine.ground.base / "exec").rglob(f"{id}/config.json")
        spec: Spec = json.loads(path.read_text())
        engine("rm", "--force", id)
    return spec


def of_ctr(version: str, pyctr: Pyctr, namespace: str, *options: str) -> Spec:
    ctr = Ctr(pyctr.daemon, program(version.removeprefix("ctr ")), namespace)
    ctr("containers", "create", "--seccomp", *options, NAME, "c")
    spec: Spec = json.loads(ctr("containers", "info", "c"))["Spec"]
    ctr("containers", "rm", "c")
    return spec


def entries(spec: Spec) -> Entries:
    """Return what confines a container, one entry for each thing that can be different."""
    process, linux = spec["process"], spec["linux"]
    found: dict[str, object] = {
        "process noNewPrivileges": process.get("noNewPrivileges", False),
        "process oomScoreAdj": process.get("oomScoreAdj"),
        # Whether there is a profile: each engine has its own. Where the kernel has no AppArmor nobody has one,
        # and nothing is compared; what ours denies is in tests/vm/test_apparmor.py.
        "process confined by AppArmor": process.get("apparmorProfile", "unconfined") != "unconfined",
        "process selinuxLabel": process.get("selinuxLabel"),
        "process user": process["user"],
        "root readonly": spec["root"].get("readonly", False),
    }
    for kind in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        found |= {f"{kind} {name}": True for name in process["capabilities"].get(kind) or ()}
    for kind in ("maskedPaths", "readonlyPaths"):
        found |= {f"{kind} {path}": True for path in linux[kind]}
    found |= {f"namespace {one['type']}": one.get("path") for one in linux["namespaces"]}
    found |= {f"rlimit {one['type']}": (one["soft"], one["hard"]) for one in process.get("rlimits") or ()}
    found |= {f"sysctl {name}": value for name, value in (linux.get("sysctl") or {}).items()}
    for mount in spec["mounts"]:
        options = frozenset(_size(option) for option in mount.get("options") or ())
        found[f"mount {mount['destination']}"] = (mount["type"], mount["source"], options)
    return found


def _size(option: str) -> str:
    """Return a size in bytes, whichever unit it has."""
    match = re.fullmatch(r"size=(\d+)k", option)
    return f"size={int(match[1]) << 10}" if match else option


def test_every_entry_is_the_same_or_has_its_reason(ours: Spec, peer: tuple[str, Spec]) -> None:
    name, theirs = peer
    mine, others = entries(ours), entries(theirs)
    known = set(DIFFERENT["ctr 1.6" if name == "ctr 2" else name])
    if name != "docker" and mine["process confined by AppArmor"]:
        known.add("process confined by AppArmor")  # ctr's containers are when told (--apparmor-default-profile)
    if name == "ctr 2":
        known.remove("maskedPaths /sys/devices/virtual/powercap")
    assert {key for key in mine.keys() | others.keys() if mine.get(key) != others.get(key)} == known


def test_every_system_call_is_judged_the_same_or_has_its_reason(ours: Spec, peer: tuple[str, Spec]) -> None:
    name, theirs = peer
    mine, others = ours["linux"]["seccomp"], theirs["linux"]["seccomp"]
    assert sorted(mine["architectures"]) == sorted(others["architectures"])
    differences = different(mine, others)
    known = DIFFERENT_CALLS[name] | ({} if name == "ctr 2" else _OLD_PEERS)
    assert differences.keys() == known.keys()
    # Where ours allows more, that is for calls that such an old peer has never heard of.
    allowed = {call for call, (verdict, _) in differences.items() if verdict == "ALLOW"}
    assert allowed == {call for call, reason in known.items() if reason is _NEWER}


def test_what_an_old_peer_forbids_and_ours_allows_a_new_one_allows(pyctr: Pyctr, namespace: str) -> None:
    profile = of_ctr("ctr 2", pyctr, namespace)["linux"]["seccomp"]
    reasons = _OLD_PEERS | DIFFERENT_CALLS["docker"]
    for name in (name for name, reason in reasons.items() if reason is _NEWER):
        assert seccomp_profiles.verdict(profile, seccomp_profiles.Call(name, None, None)) == "ALLOW", name


# Those that allow calls; the others are tried in the long run.
_WITH_CALLS: Final = ("CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYS_NICE", "CAP_SYS_PTRACE")


@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(name, marks=[] if name in _WITH_CALLS else pytest.mark.full)
        for name in default_spec.ALL_CAPABILITIES
        if name not in default_spec.DEFAULT_CAPABILITIES
    ],
)
def test_a_capability_brings_the_calls_that_it_brings_in_containerd(
    pyctr: Pyctr, namespace: str, capability: str
) -> None:
    theirs = of_ctr("ctr 2", pyctr, namespace, "--cap-add", capability)["linux"]["seccomp"]
    mine = default_seccomp.default_profile([*default_spec.DEFAULT_CAPABILITIES, capability], "x86_64")

    assert different(mine, theirs).keys() == DIFFERENT_CALLS["ctr 2"].keys()


def different(mine: seccomp_profiles.Profile, theirs: seccomp_profiles.Profile) -> dict[str, tuple[str, str]]:
    """Return the calls that two profiles judge differently, and how."""
    judged = {
        str(call): (seccomp_profiles.verdict(mine, call), seccomp_profiles.verdict(theirs, call))
        for call in seccomp_profiles.calls(mine, theirs)
    }
    return {call: verdicts for call, verdicts in judged.items() if verdicts[0] != verdicts[1]}


# -- what of it arrives in the container

_LOOK: Final = r"""
grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
for path in $MASKED; do
    if [ -d $path ]; then echo $path: $(ls -A $path | wc -l) files
    elif [ -e $path ]; then echo $path: $(cat $path 2>&1 | wc -c) bytes; fi
done
for path in $READONLY /sys /sys/fs/cgroup; do
    [ -e $path ] && grep " $path " /proc/self/mountinfo | tail -n 1 | cut -d ' ' -f 6 | cut -c -2 | sed "s|^|$path |"
done
for file in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/profiling; do
    [ -e $file ] && { echo 0 >$file; } 2>/dev/null && echo $file was written
done
for folder in /sys/fs/cgroup /sys/fs/cgroup/*/; do
    mkdir $folder/made 2>/dev/null && echo made in $folder
done
mount -t tmpfs tmpfs /mnt 2>/dev/null && echo mounted
unshare -r true 2>/dev/null && echo a user namespace
exit 0
"""


def look(pyctr: Pyctr, *options: str) -> str:
    paths = [f"MASKED={' '.join(default_spec.MASKED_PATHS)}", f"READONLY={' '.join(default_spec.READONLY_PATHS)}"]
    words = [word for text in paths for word in ("--env", text)]
    return pyctr.box(*options, *words, NAME, "sh", "-c", _LOOK)


@pytest.mark.parametrize("runtime", ["", "runc"])
def test_what_a_container_can_do(pyctr: Pyctr, namespace: str, runtime: str) -> None:
    """The same under our runtime and under runc."""
    if runtime:
        runtimes.path_of(runtime)
    lines = look(pyctr, *(["--runtime", runtime] if runtime else [])).splitlines()
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    known = sum(1 << default_spec.ALL_CAPABILITIES.index(name) for name in default_spec.DEFAULT_CAPABILITIES)
    expected = dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), f"{known:016x}")
    assert status == expected | {"CapInh": "0" * 16, "CapAmb": "0" * 16, "NoNewPrivs": "0", "Seccomp": "2"}
    rest = [line for line in lines if ":\t" not in line]
    masked = [line for line in rest if line.endswith((" files", " bytes"))]
    assert len(masked) > 3
    assert all(line.endswith((": 0 files", ": 0 bytes")) for line in masked), masked
    # On version 1, runc's directory of hierarchies is a tmpfs that can be written to; what is mounted on it cannot.
    passed_over = {"/sys/fs/cgroup rw", "made in /sys/fs/cgroup"} if runtime else set()
    readonly = [line for line in rest if line not in masked and line not in passed_over]
    assert {"/proc/sys ro", "/sys ro"} <= set(readonly)
    assert runtime or "/sys/fs/cgroup ro" in readonly
    assert all(line.endswith(" ro") for line in readonly), readonly


@pytest.mark.parametrize("runtime", ["", "runc"])
def test_a_container_has_a_session_keyring_of_its_own(pyctr: Pyctr, namespace: str, runtime: str) -> None:
    """Seen with nothing hidden: by default /proc/keys is masked, and keyctl forbidden.

    Root sees those of other containers on the machine, too.
    """
    options = ["--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"]
    options += ["--runtime", runtime] if runtime else []
    hostname, *keys = pyctr.box(*options, NAME, "sh", "-c", "cat /proc/sys/kernel/hostname /proc/keys").splitlines()
    sessions = [line.split()[-2].rstrip(":") for line in keys if " _ses" in line]
    (own,) = [name for name in sessions if name.startswith(f"_ses.{hostname}")]
    assert re.fullmatch(r"_ses\.[0-9a-f]{64}", own), keys


def test_the_device_cgroup_is_runcs(pyctr: Pyctr, namespace: str) -> None:
    """The same rules, which the runtime completes: nodes may be made, the usual devices used.

    runc before 1.2 lets everybody at /dev/net/tun, too.
    """
    runtimes.path_of("runc")
    if not Path("/sys/fs/cgroup/devices").is_dir():
        pytest.skip("version 2 of cgroups has a program instead of a list")

    def rules(*options: str) -> list[str]:
        id = pyctr("run", "-d", "--network", "none", *options, NAME, "sleep", "1000").strip()
        found = Path(f"/sys/fs/cgroup/devices/{namespace}/{id}/devices.list").read_text().splitlines()
        pyctr("rm", "-f", id)
        return sorted(found)

    assert rules() == [rule for rule in rules("--runtime", "runc") if rule != "c 10:200 rwm"]
