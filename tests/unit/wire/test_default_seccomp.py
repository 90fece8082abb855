"""What the default profile lets through."""

import pytest

from pyctr_wire.oci import default_seccomp
from pyctr_wire.oci.default_spec import ALL_CAPABILITIES, DEFAULT_CAPABILITIES


def always_allowed(capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES, machine: str = "x86_64") -> set[str]:
    profile = default_seccomp.default_profile(capabilities, machine)
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
        for name in rule["names"]
    }


@pytest.mark.parametrize(
    "name",
    [
        "add_key", "bpf", "clone3", "delete_module", "fsopen", "init_module", "io_uring_setup", "kcmp", "kexec_load",
        "keyctl", "mount", "move_mount", "open_by_handle_at", "perf_event_open", "personality", "pivot_root", "reboot",
        "request_key", "setns", "settimeofday", "socket", "socketcall", "swapon", "syslog", "umount2", "unshare",
        "userfaultfd", "vm86",
    ],
)  # fmt: skip
def test_what_reaches_past_a_container_is_not_simply_allowed(name: str) -> None:
    assert name not in always_allowed()


def test_what_programs_need_is_allowed() -> None:
    needed = "read write openat execve fork wait4 mmap futex epoll_wait sendmsg prctl landlock_restrict_self statx rseq"
    assert set(needed.split()) <= always_allowed()


def test_capabilities_bring_their_calls() -> None:
    assert {"mount", "unshare", "clone", "clone3"} <= always_allowed(ALL_CAPABILITIES)
    assert "init_module" in always_allowed((*DEFAULT_CAPABILITIES, "CAP_SYS_MODULE"))


def allowed_families() -> set[int]:
    """Evaluate the rules for socket(2) over all address families."""
    rules = [
        argument
        for rule in default_seccomp.default_profile((), "x86_64")["syscalls"]
        if rule["names"] == ["socket"]
        for argument in rule["args"]
    ]
    compare = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_GT": int.__gt__, "SCMP_CMP_EQ": int.__eq__}
    return {family for family in range(64) if any(compare[rule["op"]](family, rule["value"]) for rule in rules)}


def test_cve_2026_31431_no_sockets_of_af_alg_and_af_vsock() -> None:
    assert set(range(64)) - allowed_families() == {38, 40}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l", "riscv64", "ppc64le", "s390x"])
def test_machines(machine: str) -> None:
    profile = default_seccomp.default_profile(DEFAULT_CAPABILITIES, machine)
    assert profile["architectures"]
    clone = next(rule for rule in profile["syscalls"] if rule["names"] == ["clone"])
    assert clone["args"][0]["index"] == (1 if machine == "s390x" else 0)
