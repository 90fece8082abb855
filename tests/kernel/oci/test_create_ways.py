"""A container is made one of two ways, in place or by a fork; what comes of it is the same to the last detail."""

import os
import platform
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import forks, in_place, init, practice
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys import stub
from pyctr_sys.pidfd import start_ticks
from support.oci_bundle import Ended, Lab, Spec, needs_systemd, process, read_all, wait


def _has_stub() -> bool:
    try:
        stub.program()
    except OSError:
        return False
    return True


pytestmark = [pytest.mark.root, pytest.mark.skipif(not _has_stub(), reason=f"no stub on {platform.machine()}")]

# All that a process has from who made it, except what must differ: pids, times, addresses, and its own namespaces.
LOOK = r"""
grep -vE '^(Pid|Tgid|NSpid|NStgid|NSsid|NSpgid|PPid|Vm|Rss|.*ctxt_switches|Threads|Name|Hugetlb|SigQ|Mems|Cpus)' \
    /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj
cut -d ' ' -f 18,19,41 /proc/self/stat; busybox ionice
tr '\0' '\n' < /proc/self/environ
for fd in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/self/fd/$fd && echo fd $fd; done
pwd; umask; id; hostname; grep -q _ses /proc/keys && echo keyring
cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward
cut -d ' ' -f 4- /proc/self/mountinfo | sed 's/b[0-9]*/B/g; s/c[0-9]*/C/g; s/shared:[0-9]*/S/; s/master:[0-9]*/M/'
find /dev -exec stat -c '%n %F %a %u:%g %t:%T' {} + | sort; busybox ip link show lo
"""
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chroot"], "action": "SCMP_ACT_ERRNO"}]}
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "user": {"process": {"user": {"uid": 1000, "gid": 1000, "additionalGids": [5, 7], "umask": 0o027}, "cwd": "/tmp"}},
    "capabilities": {
        "process": {
            "capabilities": dict.fromkeys(
                ("bounding", "effective", "permitted", "inheritable", "ambient"), CAPABILITIES
            ),
            "user": {"uid": 1000, "gid": 1000},
        }
    },
    "no new privileges": {"process": {"noNewPrivileges": True}, "linux": {"seccomp": PROFILE}},
    "filter": {"linux": {"seccomp": PROFILE}},
    "limits": {
        "process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 2000}], "oomScoreAdj": 321},
        "linux": {"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 40}}},
    },
    "scheduling": {
        "process": {
            "scheduler": {"policy": "SCHED_BATCH", "nice": 7},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        }
    },
    "environment": {"process": {"env": ["PATH=/nowhere:/bin", "HOME=/h", "A=1", "A=2", "LONG=" + "x" * 20_000]}},
    "names and sysctls": {
        "hostname": "named",
        "linux": {"sysctl": {"kernel.shmmni": "123", "net.ipv4.ip_forward": "1"}},
    },
    "read-only": {"root": {"readonly": True}, "process": {"cwd": "/new/directory"}},
}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Tell of each container whether it was made in place."""
    real, taken = in_place.create, list[bool]()

    def note(request: Any) -> in_place.Waiting | None:
        taken.append(False)
        waiting = real(request)
        taken[-1] = waiting is not None
        return waiting

    monkeypatch.setattr(in_place, "create", note)
    return taken


def both_ways(lab: Lab, spec: Spec, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    """Run the same in place and by a fork, and return what both have printed or why not."""
    ends: list[Any] = []
    for suits in (in_place.suits, lambda _request: False):
        with monkeypatch.context() as patch:
            patch.setattr(in_place, "suits", suits)
            try:
                ends.append(lab.run(spec, bundle=lab.bundle(spec), **options))
            except OciError as error:
                ends.append((str(error), error.errno))
    return ends


def changed(spec: Spec, change: dict[str, Any]) -> Spec:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(spec.get(name), dict):
            changed(spec[name], value)
        else:
            spec[name] = value
    return spec


@pytest.mark.parametrize("name", SPECS)
def test_the_same_comes_of_both(name: str, lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = changed(lab.spec("sh", "-c", LOOK), SPECS[name])

    one, other = both_ways(lab, spec, monkeypatch)

    assert ways == [True]
    assert_alike(one, other)


def assert_alike(one: Ended, other: Ended) -> None:
    assert "Seccomp:" in one.output
    lines = one.output.splitlines(), other.output.splitlines()
    assert [line for line in lines[0] if line not in lines[1]] == [line for line in lines[1] if line not in lines[0]]
    assert len(lines[0]) == len(lines[1])
    assert one.status == other.status == 0


@needs_systemd
@pytest.mark.parametrize("own", ["cgroup namespace", "the host's"])
def test_a_scope_of_systemds(own: str, lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the same both times: it is free again as soon as the first container is deleted."""
    spec = changed(lab.spec("sh", "-c", f"{LOOK}\ncat /proc/self/cgroup /proc/1/cgroup"), SPECS["limits"])
    changed(spec, {"linux": {"cgroupsPath": f"pyctrtest.slice:pyctr:{os.path.basename(lab.cgroup)}"}})
    spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]})
    if own == "cgroup namespace":
        spec["linux"]["namespaces"].append({"type": "cgroup"})

    one, other = both_ways(lab, spec, monkeypatch, systemd_cgroup=True)

    assert ways == [True]
    assert_alike(one, other)
    assert ("/pyctrtest.slice/" in one.output) == (own != "cgroup namespace")


@needs_systemd
def test_what_fails_in_a_scope_is_told_alike(lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the fork that finds out why has the same scope."""
    spec = lab.spec("nope")
    changed(spec, {"linux": {"cgroupsPath": f"pyctrtest.slice:pyctr:{os.path.basename(lab.cgroup)}"}})

    one, other = both_ways(lab, spec, monkeypatch, systemd_cgroup=True)

    assert ways == [False]
    assert one == other
    assert "executable file not found" in one[0]


@pytest.mark.parametrize(
    "change",
    [
        {"args": ["nope"]},
        {"args": ["/etc"]},
        {"args": ["/plain"]},
        {"args": ["/secret/program"], "user": {"uid": 1000, "gid": 1000}},
        {"cwd": "/proc/self/fd"},
        {"cwd": "/plain"},
        {"cwd": "/secret", "user": {"uid": 1000, "gid": 1000}},
        {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 10}]},
        {"capabilities": {"effective": ["CAP_NO_SUCH"]}},
        {"args": ["true", "\0"]},
        {"selinuxLabel": "system_u:system_r:container_t:s0"},
        {"apparmorProfile": "pyctr-no-such-profile"},
    ],
    ids=str,
)
def test_what_fails_is_told_alike(
    change: dict[str, Any], lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.getcwd()
    spec = changed(lab.spec("true"), {"process": change})
    made = lab.bundle

    def bundle(spec: Spec) -> Path:
        path = made(spec)
        (path / "rootfs/plain").write_text("no program")
        (path / "rootfs/secret").mkdir(0o700)
        (path / "rootfs/secret/program").symlink_to("/bin/busybox")
        return path

    monkeypatch.setattr(lab, "bundle", bundle)

    one, other = both_ways(lab, spec, monkeypatch)

    assert one == other
    assert len(ways) == 1
    assert (sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.getcwd()) == before


def test_a_program_that_cannot_be_executed_is_told_at_the_start(
    lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = lab.spec("/script")
    texts = []
    for suits in (in_place.suits, lambda _request: False):
        monkeypatch.setattr(in_place, "suits", suits)
        bundle = lab.bundle(spec)
        (bundle / "rootfs/script").write_text("#!/nowhere\n")
        (bundle / "rootfs/script").chmod(0o755)
        container = lab.create(spec, bundle=bundle)
        with pytest.raises(OciError) as raised:
            container.start()
        texts.append((str(raised.value), raised.value.errno, wait(container.pidfd)))
        lab.remove(container)

    assert ways == [True]
    assert texts[0] == texts[1] == ("exec /script: no such file or directory", 2, 1)


@pytest.mark.parametrize("count", [20_000, 60_000])
def test_more_groups_than_a_stub_can_be_told(count: int, lab: Lab, ways: list[bool]) -> None:
    spec = changed(lab.spec("sh", "-c", "grep Groups: /proc/self/status | wc -w"), SPECS["plain"])
    changed(spec, {"process": {"user": {"additionalGids": list(range(1000, 1000 + count))}}})

    assert lab.run(spec).output == f"{1 + count}\n"
    assert ways == [False]


def test_a_terminal(lab: Lab, ways: list[bool]) -> None:
    spec = lab.spec("sh", "-c", "tty; stty size; test -t 0 && echo controls $(cut -d ' ' -f 7 /proc/self/stat)")
    changed(spec, {"process": {"terminal": True, "consoleSize": {"width": 91, "height": 17}, "user": {"uid": 1000}}})
    container = lab.create(spec)
    assert container.console_fd is not None
    container.start()

    lines = read_all(container.console_fd).split("\r\n")

    assert ways == [True]
    assert wait(container.pidfd) == 0
    assert lines[:2] == ["/dev/pts/0", "17 91"]
    assert lines[2].startswith("controls 348")  # major 136 of a pty: it is the controlling terminal


def test_namespaces_joined_and_shared(lab: Lab, ways: list[bool]) -> None:
    other = lab.running()
    spec = lab.spec("sh", "-c", "for n in net ipc uts; do readlink /proc/self/ns/$n; done")
    kinds = [item for item in spec["linux"]["namespaces"] if item["type"] not in ("network", "ipc", "uts")]
    spec["linux"]["namespaces"] = [*kinds, {"type": "network", "path": f"/proc/{other.pid}/ns/net"}]

    lines = lab.run(spec).output.split()

    assert ways == [True, True]
    assert lines == [
        os.readlink(f"/proc/{other.pid}/ns/net"), os.readlink("/proc/self/ns/ipc"), os.readlink("/proc/self/ns/uts"),
    ]  # fmt: skip


def test_what_waits_is_small_and_has_nothing_of_ours(lab: Lab, ways: list[bool]) -> None:
    container = lab.create(lab.spec("sleep", "1000"))

    status = Path(f"/proc/{container.pid}/status").read_text()
    maps = Path(f"/proc/{container.pid}/maps").read_text()

    assert ways == [True]
    assert "python" not in maps.lower()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 400
    assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2", "3"]
    container.start()
    assert lab.exec(container, process("echo", "inside")).output == "inside\n"
    assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2"]


def test_one_that_is_killed_before_its_start(lab: Lab, ways: list[bool]) -> None:
    container = lab.create(lab.spec("true"))
    container.kill(signal.SIGKILL)
    wait(container.pidfd)

    with pytest.raises(OciError, match="has ended before it was started"):
        container.start()
    assert ways == [True]


@pytest.fixture
def ahead() -> Iterator[int]:
    """Start a stub ahead, as a spare shim does; its pid."""
    if mounted().is_v2:
        pytest.skip("on version 2 of cgroups a stub is cloned into its cgroup, not started ahead")
    before = children()
    forks.start_ahead()
    (pid,) = children() - before
    yield pid
    forks.dismiss()


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_a_stub_that_was_started_ahead_is_taken(lab: Lab, ways: list[bool], ahead: int) -> None:
    container = lab.create(lab.spec("sleep", "1000"))
    assert container.pid == ahead
    assert sorted(os.listdir(f"/proc/{ahead}/fd")) == ["0", "1", "2", "3"]
    container.start()

    assert lab.run(lab.spec("echo", "the next")).output == "the next\n"  # by a stub of its own
    assert ways == [True, True]


def test_one_that_has_waited_for_long_is_not(
    lab: Lab, ways: list[bool], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container would seem to run since then."""
    monkeypatch.setattr(forks, "_FRESH_SECONDS", 0.0)

    container = lab.create(lab.spec("sleep", "1000"))

    assert ways == [True]
    assert children() == {container.pid}
    assert container.pid != ahead


@pytest.mark.usefixtures("ahead")
def test_nor_does_it_leave_anything_if_the_next_one_fails(
    lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(stub.Stub, "await_done", fail_at_second_of(stub.Stub.await_done))
    before = os.listdir("/proc/self/fd")

    assert lab.run(lab.spec("echo", "anyway")).output == "anyway\n"
    assert ways == [False]
    assert len(os.listdir("/proc/self/fd")) == len(before) - 2


def fail_at_second_of(method: Any) -> Any:
    """Return a method of a stub that fails when much has been opened."""
    calls = []

    def fail(self: stub.Stub) -> None:
        calls.append(method(self))
        if len(calls) == 2:
            raise stub.StubEnded(0, "it has ended")

    return fail


@pytest.mark.usefixtures("ahead")
def test_one_that_nobody_takes_is_let_go(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(in_place, "suits", lambda _request: False)

    assert lab.run(lab.spec("echo", "forked")).output == "forked\n"
    assert not children()
    assert len(os.listdir("/proc/self/fd")) == len(before) - 2


def test_one_that_has_been_killed_is_replaced(lab: Lab, ways: list[bool], ahead: int) -> None:
    os.kill(ahead, signal.SIGKILL)

    assert lab.run(lab.spec("echo", "anyway")).output == "anyway\n"
    assert ways == [False]


def test_a_stub_that_fails_is_replaced_by_a_fork(lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, steps: Any) -> None:
        steps.call("a step of the stub", "setns", 99, 0)
        tell(self, steps)

    tell = stub.Stub.tell
    monkeypatch.setattr(stub.Stub, "tell", fail)
    before = sorted(os.listdir("/proc/self/fd"))

    assert lab.run(lab.spec("echo", "anyway")).output == "anyway\n"
    assert ways == [False]
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_hook_is_told_that_a_container_must_be_made_by_a_fork(
    lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "not this way")

    monkeypatch.setattr(in_place._Creation, "_set_up", fail)
    told = tmp_path / "told"
    spec = lab.spec("sleep", "1000")
    spec["hooks"] = {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo x >>{told}"]}]}

    container = lab.running(spec)
    assert ways == [False]
    assert not told.exists()
    container.kill(signal.SIGKILL)
    wait(container.pidfd)
    lab.remove(container)

    assert told.read_text() == "x\n"


def test_practice_comes_back_and_leaves_nothing(ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    before = sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.umask(0o022)

    practice.make_containers()

    assert ways == [True] * practice._ROUNDS
    assert (sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.umask(0o022)) == before
    assert os.getcwd() == "/"
    assert not list(Path("/tmp").glob(f"pyctr-practice-*-{os.getpid()}-*"))
    assert not list(Path("/sys/fs/cgroup").glob(f"*/pyctr/pyctr-practice-*-{os.getpid()}-*"))
    assert "pyctr-practice" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.skipif(mounted().is_v2, reason="there the state is written before the stub is started")
def test_a_stub_that_ended_early_is_no_verdict(lab: Lab, ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaps it may be faster than who looks when it was started."""
    gone = [FileNotFoundError(2, "No such file or directory", "/proc/1234/stat")]
    real = start_ticks

    def look(pid: int) -> int:
        if gone:
            raise gone.pop()
        return real(pid)

    monkeypatch.setattr(init, "start_ticks", look)
    assert lab.run(lab.spec("echo", "runs")).output == "runs\n"
    assert (ways, gone) == ([False], [])
