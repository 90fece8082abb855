"""Who a container's process is and what it may do."""

import os
import resource
import signal
import stat
import subprocess
import sys
from typing import Any

import pytest

from pyctr_shim.oci import lsm, seccomp
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys.capabilities import NAMES, bounding_set
from support.oci_bundle import Lab, Spec, process

pytestmark = pytest.mark.root


def capabilities_of(output: str) -> dict[str, int]:
    """Return the masks of /proc/self/status by the letters after `Cap`."""
    lines = [line.split() for line in output.splitlines() if line.startswith("Cap")]
    return {words[0][3:-1]: int(words[1], 16) for words in lines}


def mask(*names: str) -> int:
    return sum(1 << NAMES.index(name) for name in names)


def test_ids_groups_umask_and_directory(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "id; umask; pwd; echo $HOME")
    spec["process"]["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 0o027}
    spec["process"]["cwd"] = "/tmp"

    assert lab.run(spec).output.splitlines() == ["uid=1000(user) gid=1001 groups=5,7", "0027", "/tmp", "/home/user"]


@pytest.mark.parametrize("readonly", [False, True])
def test_a_working_directory_that_is_missing_is_made(lab: Lab, readonly: bool) -> None:
    spec = lab.spec("sh", "-c", "pwd; stat -c '%u %a' . ..")
    spec["process"]["cwd"] = "/srv/new/app"
    spec["root"]["readonly"] = readonly

    assert lab.run(spec).output.splitlines() == ["/srv/new/app", "0 755", "0 755"]


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_without_a_word_a_process_has_no_capabilities(lab: Lab, in_exec: bool) -> None:
    """Also none that it could inherit."""
    arguments = ("grep", "Cap", "/proc/self/status")
    ended = lab.exec(lab.running(), process(*arguments)) if in_exec else lab.run(lab.spec(*arguments))

    assert set(capabilities_of(ended.output).values()) == {0}


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_all_capability_sets(lab: Lab, in_exec: bool) -> None:
    sets = {
        "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL", "CAP_SETPCAP"],
        "permitted": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_NET_RAW", "CAP_KILL"],
        "ambient": ["CAP_NET_RAW"],
    }
    document = process("grep", "Cap", "/proc/self/status", capabilities=sets)
    document["user"] = {"uid": 1000, "gid": 1000}
    spec = lab.spec("true")
    spec["process"] = document

    ended = lab.exec(lab.running(), document) if in_exec else lab.run(spec)

    # A program that is not root and has no file capabilities gets its ambient ones only.
    assert capabilities_of(ended.output) == {
        "Inh": mask("CAP_NET_RAW", "CAP_KILL"),
        "Prm": mask("CAP_NET_RAW"),
        "Eff": mask("CAP_NET_RAW"),
        "Bnd": mask("CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL", "CAP_SETPCAP"),
        "Amb": mask("CAP_NET_RAW"),
    }


def test_every_capability(lab: Lab) -> None:
    spec = lab.spec("grep", "Cap", "/proc/self/status")
    spec["process"]["capabilities"] = {name: list(NAMES) for name in ("bounding", "effective", "permitted")}

    found = capabilities_of(lab.run(spec).output)

    assert found["Eff"] == found["Bnd"] == bounding_set()


def test_an_unknown_capability_is_refused(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["process"]["capabilities"] = {"bounding": ["CAP_FLY"]}

    with pytest.raises(OciError, match=r"process.capabilities.bounding: unknown capability 'CAP_FLY'"):
        lab.create(spec)


def test_no_new_privileges(lab: Lab) -> None:
    spec = lab.spec("grep", "NoNewPrivs", "/proc/self/status")
    assert lab.run(spec).output.split() == ["NoNewPrivs:", "0"]

    spec["process"]["noNewPrivileges"] = True

    assert lab.run(spec).output.split() == ["NoNewPrivs:", "1"]


def test_rlimits(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c")
    _, core = resource.getrlimit(resource.RLIMIT_CORE)
    spec["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": core % (1 << 64)},
    ]

    assert lab.run(spec).output.split() == ["100", "200", "0"]


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_a_limit_above_our_own_is_reached_or_refused(lab: Lab, in_exec: bool) -> None:
    """Never cut in silence; the runtime raises it before it gives up its capabilities."""
    _, most = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    assert most != resource.RLIM_INFINITY, "Linux starts with 800 KB"
    document = process("sh", "-c", "grep msgqueue /proc/self/limits")
    document["rlimits"] = [{"type": "RLIMIT_MSGQUEUE", "soft": 5, "hard": most + 1}]
    spec = lab.spec("true")
    spec["process"] = document
    container = lab.running() if in_exec else None

    def run() -> str:
        return (lab.exec(container, document) if container else lab.run(spec)).output

    if bounding_set() >> NAMES.index("CAP_SYS_RESOURCE") & 1:
        assert run().split()[3:5] == ["5", str(most + 1)]
    else:
        with pytest.raises(OciError, match=rf"RLIMIT_MSGQUEUE: hard limit {most + 1} is .* own, {most}: .*SYS_RESO"):
            run()


def test_a_limit_that_no_machine_has_is_refused(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 1 << 40}]

    with pytest.raises(OciError, match=r"process\.rlimits: RLIMIT_NOFILE: hard limit .*sysctl fs\.nr_open"):
        lab.create(spec)


def test_the_oom_score(lab: Lab) -> None:
    spec = lab.spec("cat", "/proc/self/oom_score_adj")
    spec["process"]["oomScoreAdj"] = 500

    assert lab.run(spec).output == "500\n"


def test_scheduler_and_io_priority(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "cut -d' ' -f41 /proc/self/stat; ionice -p $$")
    spec["process"]["args"] = ["busybox", *spec["process"]["args"]]
    spec["process"]["args"][3] = (
        spec["process"]["args"][3].replace("cut", "busybox cut").replace("ionice", "busybox ionice")
    )
    spec["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 5}
    spec["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}

    lines = lab.run(spec).output.splitlines()

    assert lines[0] == "3"
    assert lines[1] == "best-effort: prio 6"


_MILLISECOND_NS = 1_000_000
_DEADLINE = {"runtime": _MILLISECOND_NS, "deadline": 10 * _MILLISECOND_NS, "period": 20 * _MILLISECOND_NS}


@pytest.mark.parametrize("flags", [[], ["SCHED_FLAG_RESET_ON_FORK"]])
@pytest.mark.parametrize(
    ("policy", "parameters", "number", "shown"),
    [
        ("SCHED_OTHER", {"nice": 5}, os.SCHED_OTHER, "SCHED_OTHER"),
        ("SCHED_FIFO", {"priority": 7}, os.SCHED_FIFO, "priority: 7"),
        ("SCHED_RR", {"priority": 9}, os.SCHED_RR, "priority: 9"),
        ("SCHED_IDLE", {}, os.SCHED_IDLE, "SCHED_IDLE"),
        ("SCHED_DEADLINE", _DEADLINE, 6, "parameters: 1000000/10000000/20000000"),
    ],
)
def test_the_schedulers(
    lab: Lab, policy: str, parameters: dict[str, int], number: int, shown: str, flags: list[str]
) -> None:
    spec = lab.spec("sleep", "1000")
    spec["process"]["scheduler"] = {"policy": policy, "flags": flags, **parameters}
    if policy in {"SCHED_FIFO", "SCHED_RR"}:
        give_realtime(lab, spec)
    pid = lab.running(spec).pid

    assert os.sched_getscheduler(pid) == number | (os.SCHED_RESET_ON_FORK if flags else 0)
    if "nice" in parameters:
        assert os.getpriority(os.PRIO_PROCESS, pid) == parameters["nice"]
    done = subprocess.run(["chrt", "-p", str(pid)], capture_output=True, text=True, check=True)
    assert shown in done.stdout


def give_realtime(lab: Lab, spec: Spec) -> None:
    """Let processes of a container be scheduled in real time where the kernel counts that by cgroup of version 1."""
    top = mounted().controllers.get("cpu", "/nowhere")
    if os.path.exists(f"{top}/cpu.rt_runtime_us"):
        os.mkdir(top + lab.cgroup)
        with open(f"{top}{lab.cgroup}/cpu.rt_runtime_us", "w") as file:
            file.write("20000")
        spec["linux"]["resources"] = {"cpu": {"realtimeRuntime": 10_000}}


@pytest.mark.parametrize(
    ("priority", "shown"),
    [
        ({"class": "IOPRIO_CLASS_RT", "priority": 2}, "realtime: prio 2"),
        ({"class": "IOPRIO_CLASS_RT"}, "realtime: prio 0"),
        ({"class": "IOPRIO_CLASS_BE", "priority": 7}, "best-effort: prio 7"),
        ({"class": "IOPRIO_CLASS_IDLE"}, "idle"),
    ],
)
@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_the_io_classes(lab: Lab, priority: Spec, shown: str, in_exec: bool) -> None:
    document = process("busybox", "sh", "-c", "busybox ionice -p $$", ioPriority=priority)
    spec = lab.spec("true")
    spec["process"] = document

    ended = lab.exec(lab.running(), document) if in_exec else lab.run(spec)

    assert ended.output.strip() == shown


@pytest.mark.parametrize(("affinity", "cpus"), [({"final": "0"}, "0"), ({"initial": "0-1", "final": "1"}, "1")])
def test_the_cpus_of_an_exec(lab: Lab, affinity: Spec, cpus: str) -> None:
    """Of an exec only: the specification says so."""
    show = ("grep", "Cpus_allowed_list", "/proc/self/status")
    if os.cpu_count() == 1:
        pytest.skip("the machine has one CPU")
    spec = lab.spec(*show)
    spec["process"]["execCPUAffinity"] = affinity

    assert lab.run(spec).output.split()[1] != cpus
    assert lab.exec(lab.running(), process(*show, execCPUAffinity=affinity)).output.split()[1] == cpus


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_the_environment_is_the_specs_alone(lab: Lab, monkeypatch: pytest.MonkeyPatch, in_exec: bool) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "1")
    document = process("env", env=["PATH=/bin", "A=1", "A=2", "HOME=/h"])
    spec = lab.spec("true")
    spec["process"] = document

    ended = lab.exec(lab.running(), document) if in_exec else lab.run(spec)

    assert sorted(ended.output.split()) == ["A=2", "HOME=/h", "PATH=/bin"]


def test_pipes_belong_to_the_user(lab: Lab) -> None:
    """A program that is not root can open /dev/stdout again."""
    spec = lab.spec("sh", "-c", "echo again >/dev/stdout")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}

    assert lab.run(spec).output == "again\n"


def test_exec_sees_the_container_and_nothing_else(lab: Lab) -> None:
    container = lab.running()

    ended = lab.exec(container, process("sh", "-c", "ps; readlink /proc/self/ns/net; cat /proc/self/cgroup"))

    assert "sleep 1000" in ended.output
    assert f"net:[{os.stat(f'/proc/{container.pid}/ns/net').st_ino}]" in ended.output
    assert lab.cgroup in ended.output


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"args": ["nope"]}, 'exec: "nope": executable file not found in $PATH'),
        ({"cwd": "/nope"}, 'chdir to cwd ("/nope"): no such file or directory'),
        ({"env": ["novalue"]}, "process.env: 'novalue' is not NAME=VALUE"),
        ({"cwd": "relative"}, "process.cwd: 'relative' is not an absolute path"),
        ({"apparmorProfile": "x"}, "process.apparmorProfile"),
        pytest.param(
            {"selinuxLabel": "x"},
            "process.selinuxLabel: 'x': SELinux is not enabled",
            marks=pytest.mark.skipif(lsm.selinux_enabled(), reason="SELinux is enabled here"),
        ),
    ],
)
def test_an_exec_that_cannot_be_is_refused(lab: Lab, change: dict[str, Any], text: str) -> None:
    container = lab.running()

    with pytest.raises(OciError) as caught:
        lab.exec(container, {**process("true"), **change})

    assert text in str(caught.value)
    assert container.pids() == [container.pid]


def test_exec_into_an_ended_container_is_refused(lab: Lab) -> None:
    container = lab.running()
    container.kill(9)
    os.waitid(os.P_PIDFD, container.pidfd, os.WEXITED)

    with pytest.raises(OciError, match="cannot exec in a stopped container"):
        lab.exec(container, process("true"))


PROFILE: Spec = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
}


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_seccomp(lab: Lab, no_new_privileges: bool, in_exec: bool) -> None:
    document = process("sh", "-c", "grep Seccomp: /proc/self/status; mkdir /x", noNewPrivileges=no_new_privileges)
    spec = lab.spec("sleep", "1000")
    spec["linux"]["seccomp"] = PROFILE
    if in_exec:
        ended = lab.exec(lab.running(spec), document)
    else:
        spec["process"] = document
        ended = lab.run(spec)

    assert ended.output.split()[:2] == ["Seccomp:", "2"]
    assert "Not supported" in ended.output or "not supported" in ended.output


@pytest.mark.parametrize(
    ("action", "message", "status"),
    [
        ("SCMP_ACT_ALLOW", "", 0),
        ("SCMP_ACT_LOG", "", 0),
        ("SCMP_ACT_ERRNO", "Operation not permitted", 1),
        ("SCMP_ACT_TRACE", "Function not implemented", 1),  # nobody traces
        ("SCMP_ACT_TRAP", "Bad system call", 128 + signal.SIGSYS),
        ("SCMP_ACT_KILL", "Bad system call", 128 + signal.SIGSYS),
        ("SCMP_ACT_KILL_THREAD", "Bad system call", 128 + signal.SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", "Bad system call", 128 + signal.SIGSYS),
    ],
)
def test_what_the_actions_of_a_profile_do(lab: Lab, action: str, message: str, status: int) -> None:
    spec = lab.spec("sh", "-c", "mkdir /x; echo ended: $?")
    rule = {"names": ["mkdir", "mkdirat"], "action": action}
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

    output = lab.run(spec).output

    assert message in output
    assert output.endswith(f"ended: {status}\n")


def test_the_seccomp_cache_is_private_and_used(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["linux"]["seccomp"] = PROFILE
    lab.run(spec)
    cache = lab.base / "seccomp"

    (compiled,) = cache.iterdir()

    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    before = compiled.stat().st_ino
    lab.run(spec)
    assert compiled.stat().st_ino == before


def test_a_profile_with_an_unknown_action_is_refused(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_WAVE"}

    with pytest.raises(OciError, match=r"linux.seccomp.defaultAction: 'SCMP_ACT_WAVE' is not supported"):
        lab.create(spec)


def test_calls_newer_than_the_profile_are_unknown_not_forbidden(lab: Lab) -> None:
    """Programs fall back to an older call on ENOSYS, never on EPERM."""
    program = lab.base / "calls.py"
    program.write_text(
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for number in (83, 448):\n"  # mkdir is older than the newest of the profile, process_mrelease younger
        "    libc.syscall(number, b'/x', 0)\n"
        "    print(errno.errorcode[ctypes.get_errno()])\n"
    )
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": [name], "action": "SCMP_ACT_ALLOW"} for name in [*ALLOWED.split(), "clone3", "faccessat2"]
        ],
    }  # fmt: skip
    compiled = seccomp.compile_profile(profile)
    code = f"import sys, pyctr_sys.seccomp as s; s.load(sys.stdin.buffer.read()); exec(open({str(program)!r}).read())"

    ended = subprocess.run([sys.executable, "-c", code], input=compiled, capture_output=True, check=True)

    assert ended.stdout.split() == [b"EPERM", b"ENOSYS"]


ALLOWED = (
    "read write open openat close fstat newfstatat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask "
    "rt_sigreturn ioctl exit exit_group futex getrandom getcwd readlink getdents64 stat lstat fcntl dup madvise "
    "mremap getpid gettid uname pread64 sysinfo getuid geteuid getgid getegid memfd_create statfs access"
)
