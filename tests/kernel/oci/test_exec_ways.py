"""An exec goes one of two ways, spawned or forked; the process that comes of it is the same to the last detail."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import forks, runtime
from pyctr_shim.oci.errors import OciError
from pyctr_sys.routine import routine
from support.oci_bundle import Lab, process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(routine() is None, reason=f"no spawn on {platform.machine()}"),
]
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_ERRNO"}]}
# All that a process has from its parent, except what must differ: pids, times and addresses.
LOOK = r"""
grep -vE '^(Pid|Tgid|NSpid|NStgid|NSsid|NSpgid|PPid|Vm|Rss|.*ctxt_switches|Threads|Name|Hugetlb|SigQ)' /proc/self/status
cat /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj
tr '\0' '\n' < /proc/self/environ
for ns in mnt pid net uts ipc user cgroup; do readlink /proc/self/ns/$ns; done
for fd in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/self/fd/$fd && echo fd $fd; done
pwd; umask; id; grep -q _ses /proc/keys && echo keyring
"""
DOCUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "user": {"user": {"uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 0o027}, "cwd": "/tmp"},
    "capabilities": {
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), CAPABILITIES),
        "user": {"uid": 1000, "gid": 1000},
    },
    "no new privileges": {"noNewPrivileges": True},
    "limits": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 2000}], "oomScoreAdj": 321},
    "label": {"apparmorProfile": "unconfined", "oomScoreAdj": 5},
    "environment": {"env": ["PATH=/nowhere:/bin", "HOME=/h", "A=1", "A=2", "LONG=" + "x" * 50_000]},
}


def both_ways(lab: Lab, container: runtime.Container, document: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Execute a process both ways, having seen that the first one was spawned."""
    real, spawned = forks.spawn_into, []

    def note(joiner: Any) -> Any:
        spawned.append(real(joiner))
        return spawned[-1]

    ends: list[Any] = []
    for way in (note, lambda _joiner: None):
        monkeypatch.setattr(forks, "spawn_into", way)
        try:
            ends.append(lab.exec(container, document))
        except OciError as error:
            ends.append((str(error), error.errno))
    monkeypatch.setattr(forks, "spawn_into", real)
    return [spawned[0] is not None, *ends]


@pytest.mark.parametrize("seccomp", [False, True], ids=["unfiltered", "filtered"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_process_is(lab: Lab, name: str, seccomp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("sleep", "1000")
    if seccomp:
        spec["linux"]["seccomp"] = PROFILE
    container = lab.running(spec)
    spawned, one, other = both_ways(lab, container, process("sh", "-c", LOOK, **DOCUMENTS[name]), monkeypatch)
    assert spawned
    assert one.status == 0, one.output
    assert len(one.output.splitlines()) > 60
    assert one == other


@pytest.mark.parametrize(
    "document",
    [
        process("missing"),
        process("/missing"),
        process("/etc/passwd"),
        process("/tmp"),
        process("true", cwd="/missing"),
        process("true", cwd="/etc/passwd"),
        process("true", cwd="/proc/self/fd/7"),
        process("true", rlimits=[{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 10}]),
        process("secret", env=["PATH=/root/bin:/bin"], user={"uid": 1000, "gid": 1000}),
    ],
    ids=lambda document: " ".join((document["args"][0], document["cwd"])),
)
def test_what_is_wrong_with_it(lab: Lab, document: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of the forked way."""
    container = lab.running()
    rootfs = Path(container.bundle) / "rootfs"
    os.chmod(rootfs / "root", 0o700)
    (rootfs / "root/bin").mkdir()
    shutil.copy(rootfs / "bin/busybox", rootfs / "root/bin/secret")
    spawned, one, other = both_ways(lab, container, document, monkeypatch)
    assert not spawned
    assert one == other
    assert isinstance(one, tuple)
    assert one[0]


def test_a_stopped_container(lab: Lab) -> None:
    container = lab.running()
    os.kill(container.pid, 9)
    os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OciError, match=r"cannot exec in a stopped container|error during exec"):
        lab.exec(container, process("true"))


def test_the_process_document_may_not_follow_links_of_proc(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's own file system may lie about PATH, passwd and the working directory; it leads nowhere."""
    container = lab.running()
    rootfs = Path(container.bundle) / "rootfs"
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/../../../../../../etc/shadow")
    (rootfs / "cwd").symlink_to("/proc/1/root")
    _, one, other = both_ways(lab, container, process("sh", "-c", "echo $HOME; pwd", cwd="/cwd"), monkeypatch)
    assert one == other
    assert one.output == "/\n/\n" or isinstance(one, tuple)
