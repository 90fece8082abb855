"""What is found out about restored processes before they run, tried on processes that nobody had to restore.

A container stands for what a checkpoint made, and is held against another spec.
"""

import copy
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import namespaces, runtime, validate
from pyctr_shim.oci.checkpoint import mount_table, verify
from pyctr_shim.oci.errors import OciError
from pyctr_sys.namespaces import Clone
from support.oci_bundle import Lab, Spec, eventually

pytestmark = pytest.mark.root

CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]
FILTER = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kcmp"], "action": "SCMP_ACT_ERRNO"}]}


def with_capabilities(spec: Spec, *names: str) -> Spec:
    spec["process"]["capabilities"] = {kind: list(names) for kind in ("bounding", "effective", "permitted")}
    return spec


def expected_of(container: runtime.Container, *external: str) -> verify.Expected:
    """Return what may be in a container: its root, and its mounts at `external`."""
    seen = {item.where: item for item in mount_table.of(container.pid)}
    devices = frozenset(item.device for item in mount_table.of("self"))
    return verify.Expected(
        {where: seen[where] for where in ("/", *external)}, frozenset(), devices, verify.own_namespaces()
    )


def check(container: runtime.Container, spec: Spec, *external: str) -> None:
    """Hold a container against a spec that is not its own."""
    spec = copy.deepcopy(spec)
    validate.check_spec(spec)
    plan = namespaces.plan(spec["linux"]["namespaces"])
    verify.check(spec, plan, container.pid, expected_of(container, *external))


def test_a_container_passes_its_own_spec(lab: Lab) -> None:
    spec = with_capabilities(lab.spec("sleep", "1000"), *CAPABILITIES)
    spec["process"] |= {"noNewPrivileges": True, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]}
    spec["linux"] |= {"seccomp": FILTER, "maskedPaths": ["/proc/timer_list"], "readonlyPaths": ["/proc/sys"]}
    container = lab.running(spec)

    check(container, spec)


Change = Callable[[Spec], Any]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: with_capabilities(spec, "CAP_CHOWN"), "has CAP_KILL, CAP_SYS_ADMIN"),
        (lambda spec: spec["process"].update(noNewPrivileges=True), "noNewPrivileges forbids"),
        (lambda spec: spec["linux"].update(seccomp=FILTER), r"linux\.seccomp demands"),
        (lambda spec: spec["process"].update(user={"uid": 1000, "gid": 1000}), r"users \[0\]"),
        (lambda spec: spec["linux"].update(maskedPaths=["/proc/timer_list"]), "leaves /proc/timer_list open"),
        (lambda spec: spec["linux"].update(readonlyPaths=["/proc/sys"]), "leaves /proc/sys open"),
        (lambda spec: spec["mounts"][0]["options"].append("ro"), "mount at /proc is not ro"),
        (lambda spec: spec["linux"]["namespaces"].append({"type": "cgroup"}), "cgroup namespace"),
    ],
    ids=["capabilities", "no_new_privs", "seccomp", "user", "masked", "read-only", "mount option", "namespace"],
)
def test_cve_2026_95837(lab: Lab, change: Change, reason: str) -> None:
    """The security context is the destination's: a checkpoint that has more is refused."""
    spec = with_capabilities(lab.spec("sleep", "1000"), *CAPABILITIES)
    container = lab.running(spec)
    change(spec)

    with pytest.raises(OciError, match=reason):
        check(container, spec)


def test_cve_2026_95837_in_every_process(lab: Lab) -> None:
    """It is not enough that the first process is harmless."""
    spec = lab.spec("sh", "-c", "(ulimit -n 64; exec sleep 1000) & exec sleep 1000")
    container = lab.running(spec)
    eventually(lambda: len(list(verify.tree(container.pid))) == 2)
    child = list(verify.tree(container.pid))[1]
    resource.prlimit(child, resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
    spec["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]

    check(container, spec)

    assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)


def test_who_has_ended_is_not_asked_what_he_may(lab: Lab) -> None:
    """Zombies that CRIU makes have had all privileges, which nobody has any more."""
    spec = with_capabilities(lab.spec("sh", "-c", "true & exec busybox setpriv --nnp sleep 1000"), *CAPABILITIES)
    container = lab.running(spec)
    eventually(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n")
    eventually(lambda: "State:\tZ" in Path(f"/proc/{list(verify.tree(container.pid))[1]}/status").read_text())
    spec["process"]["noNewPrivileges"] = True

    check(container, spec)


def test_a_program_may_have_a_name_that_is_no_text(lab: Lab) -> None:
    """It can give itself any, and one that is cut off in the middle of a character has one."""
    spec = lab.spec("sh", "-c", r"printf '\377' > /proc/self/comm; while true; do sleep 1000; done")
    container = lab.running(spec)
    eventually(lambda: b"\xff" in Path(f"/proc/{container.pid}/comm").read_bytes())

    check(container, spec)


def test_cve_2026_119101(lab: Lab, tmp_path: Path) -> None:
    """A directory of the host that a crafted mount table shows is found, wherever it has been put."""
    secret = tmp_path / "secret"
    secret.mkdir()
    spec = lab.spec("sleep", "1000")
    plain = copy.deepcopy(spec)
    spec["mounts"].append({"destination": "/shown", "type": "bind", "source": str(secret), "options": ["rbind"]})
    container = lab.running(spec)

    with pytest.raises(OciError, match=r"of another file system .* mounted at /shown"):
        check(container, plain)


def test_cve_2026_115520(lab: Lab, tmp_path: Path) -> None:
    """A bind mount that is to be read-only and is not, is found."""
    spec = lab.spec("sleep", "1000")
    bound = {"destination": "/bound", "type": "bind", "source": str(tmp_path), "options": ["rbind", "rw"]}
    spec["mounts"].append(bound)
    container = lab.running(spec)
    readonly = copy.deepcopy(spec)
    readonly["mounts"][-1]["options"] = ["rbind", "ro"]

    check(container, spec, "/bound")
    with pytest.raises(OciError, match="at /bound is not ro"):
        check(container, readonly, "/bound")


def test_limits_above_the_specs_are_lowered(lab: Lab) -> None:
    spec = lab.spec("sleep", "1000")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 300, "hard": 400}]
    container = lab.running(spec)
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]

    check(container, spec)

    limits = Path(f"/proc/{container.pid}/limits").read_text()
    assert next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")) == [
        "200",
        "200",
    ]


def test_a_namespace_of_the_hosts_is_found(lab: Lab) -> None:
    """A checkpoint that leaves a namespace out would run in the host's."""
    spec = lab.spec("sleep", "1000")
    plain = copy.deepcopy(spec)
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != "uts"]
    container = lab.running(spec)
    assert not container.namespaces & Clone.NEWUTS

    with pytest.raises(OciError, match="uts namespace"):
        check(container, plain)


def test_a_kind_of_namespace_that_the_kernel_lacks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for one, unless the spec is."""
    list_all = os.listdir

    def without_time(path: str) -> list[str]:
        return [name for name in list_all(path) if (path, name) != ("/proc/self/ns", "time")]

    monkeypatch.setattr(os, "listdir", without_time)
    spec = lab.spec("sleep", "1000")
    container = lab.running(spec)

    check(container, spec)

    spec["linux"]["namespaces"].append({"type": "time"})
    with pytest.raises(OciError, match="this kernel has no time namespaces"):
        check(container, spec)
