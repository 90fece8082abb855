"""What a profile says is what its program does, and the kernel takes the program."""

import itertools
import os
import resource
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import seccomp_profile
from pyctr_shim.oci import seccomp
from pyctr_shim.oci.errors import OciError
from pyctr_sys import seccomp as kernel
from pyctr_sys.process import PR_SET_NO_NEW_PRIVS
from pyctr_sys.steps import Steps
from pyctr_wire.oci.default_seccomp import default_profile
from pyctr_wire.oci.default_spec import DEFAULT_CAPABILITIES
from support import bpf

ACTIONS = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRAP",
]
WORDS = st.sampled_from([0, 1, 7, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
CONDITIONS = st.fixed_dictionaries(
    {"index": st.integers(0, 5), "value": WORDS, "valueTwo": WORDS, "op": st.sampled_from(sorted(seccomp.OPERATORS))}
)
RULES = st.fixed_dictionaries(
    {
        "names": st.lists(st.sampled_from(sorted(seccomp_profile.NUMBERS)), min_size=1, max_size=4),
        "action": st.sampled_from(ACTIONS),
        "args": st.lists(CONDITIONS, max_size=3),
    }
)
PROFILES = st.fixed_dictionaries(
    {"defaultAction": st.sampled_from(ACTIONS), "syscalls": st.lists(RULES, max_size=5)},
    optional={"architectures": st.lists(st.sampled_from(["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_X86_64"]))},
)


@pytest.fixture(autouse=True)
def _needs_libseccomp() -> None:
    try:
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"})
    except OciError as error:
        pytest.skip(str(error))


@given(PROFILES)
def test_every_profile_is_done_as_it_says(profile: dict[str, Any]) -> None:
    program = seccomp_profile.check_profile(profile)

    assert program is None or is_taken_by_the_kernel(program)


@pytest.mark.parametrize("action", ["SCMP_ACT_ALLOW", "SCMP_ACT_TRAP"])
def test_any_two_rules_of_equality_are_done_as_they_say(action: str) -> None:
    """Each of one condition or of two; libseccomp makes a wrong program of one pair in twenty."""
    conditions = [
        [{"index": index, "value": value, "valueTwo": value, "op": f"SCMP_CMP_{op}"}]
        for index in (0, 1)
        for op in ("EQ", "NE", "MASKED_EQ")
        for value in (0, 1)
    ]
    arguments = conditions + [one + other for one in conditions[:6] for other in conditions[6:]]
    done = 0
    for one, other in itertools.product(arguments, repeat=2):
        rules = [
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": one},
            {"names": ["clone"], "action": action, "args": other},
        ]
        done += seccomp_profile.check_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}) is not None

    assert done > len(arguments) ** 2 / 4


def test_inequalities_beside_a_rule_of_another_action_are_done() -> None:
    """As podman's default profile has them, for sockets of the kernel's audit."""
    rules: list[dict[str, Any]] = [
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [_is(0, "EQ", 16), _is(2, "EQ", 9)]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [_is(2, "NE", 9)]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [_is(0, "NE", 16)]},
    ]

    assert seccomp_profile.check_profile({"defaultAction": "SCMP_ACT_KILL", "syscalls": rules}) is not None


def test_an_inequality_that_would_become_another_one_is_refused_by_name() -> None:
    rules = [
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [_is(0, "EQ", 0)]},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [_is(0, "NE", 1), _is(1, "EQ", 1)]},
    ]

    with pytest.raises(OciError, match=r"linux\.seccomp\.syscalls: clone: argument 0 is compared for inequality"):
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})


def _is(index: int, op: str, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": f"SCMP_CMP_{op}"}


def test_the_default_profile_is_done_as_it_says() -> None:
    profile = default_profile(DEFAULT_CAPABILITIES, os.uname().machine)
    program = seccomp_profile.check_profile(profile)

    assert program is not None
    assert is_taken_by_the_kernel(program)


def test_the_test_would_see_a_wrong_decision() -> None:
    """Of the interpreter and of the second opinion: a program for another profile is found out."""
    code = bpf.parse(seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"}))
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO"}]}

    found = bpf.answer(code, seccomp_profile.NUMBERS["kill"], seccomp_profile.X86_64, [1, 2])

    assert found not in seccomp_profile.expected(profile, "kill", [1, 2])
    assert not is_taken_by_the_kernel(b"\x06\0\0\0\0\0\0\0"[:7] + b"\x01" + b"\0" * 8)


def test_a_profile_that_is_too_long_for_the_kernel_is_refused() -> None:
    conditions = [{"index": 0, "value": number * 3, "op": "SCMP_CMP_EQ"} for number in range(5000)]
    rule = {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": conditions}

    with pytest.raises(OciError, match="instructions, where the kernel takes 4096"):
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


def is_taken_by_the_kernel(program: bytes) -> bool:
    """Whether a child can put the filter over itself; it ends by whatever that makes of its next call."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for number in (signal.SIGSEGV, signal.SIGSYS, signal.SIGABRT):
                signal.signal(number, signal.SIG_DFL)
            steps = Steps()
            steps.call("no_new_privs", "prctl", PR_SET_NO_NEW_PRIVS, 1)
            steps.run()
            kernel.load(program)
        except OSError:
            os.write(write_fd, b"refused")
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as reader:
        said = reader.read()
    os.waitpid(pid, 0)
    return not said
