"""Profiles become programs, once."""

import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import seccomp
from pyctr_shim.oci.errors import OciError

PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "syscalls": [{"names": ["read", "write", "not_a_call"], "action": "SCMP_ACT_ALLOW"}],
}


@pytest.fixture(autouse=True)
def _needs_libseccomp() -> None:
    try:
        seccomp.compile_profile(PROFILE)
    except OciError as error:
        pytest.skip(str(error))


def test_a_profile_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = seccomp.prepare(PROFILE, str(cache), str(tmp_path))
    assert first is not None
    assert len(first.program) % 8 == 0

    monkeypatch.setattr(seccomp, "LIBRARY", "libnothing.so.9")
    again = seccomp.prepare(PROFILE, str(cache), str(tmp_path))

    assert again == first
    assert seccomp.read(first.path, first.flags) == first
    with pytest.raises(OciError, match=r"install the package libseccomp2"):
        seccomp.prepare({**PROFILE, "defaultErrnoRet": 5}, str(cache), str(tmp_path))


def test_without_a_cache_the_program_lies_beside_the_state(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    made = seccomp.prepare(PROFILE, str(tmp_path / "file/cache"), str(tmp_path))

    assert made is not None
    assert Path(made.path).parent == tmp_path


def test_no_profile_no_filter(tmp_path: Path) -> None:
    assert seccomp.prepare(None, str(tmp_path), str(tmp_path)) is None
    assert seccomp.read("", 0) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "listenerPath: SCMP_ACT_NOTIFY needs somebody to notify"),
        ({"listenerMetadata": "x"}, "listenerMetadata: needs a listenerPath"),
        ({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}, "SCMP_ACT_KILL has no errno to return"),
        (
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]},
            "syscalls.action: SCMP_ACT_ALLOW has no errno",
        ),
        ({"architectures": ["SCMP_ARCH_PDP11"]}, "architectures: 'SCMP_ARCH_PDP11' is not supported"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "flags: 'SECCOMP_FILTER_FLAG_NEW_LISTENER' is not supported"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_WAVE"}]}, "syscalls.action: 'SCMP_ACT_WAVE'"),
        (
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                           "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_SOMEHOW"}]}]},
            "args.op: 'SCMP_CMP_SOMEHOW'",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(OciError) as caught:
        seccomp.prepare({**PROFILE, **change}, str(tmp_path), str(tmp_path))

    assert text in str(caught.value)


@pytest.mark.parametrize("action", sorted(seccomp.ACTIONS))
def test_every_action_becomes_a_program(action: str) -> None:
    """The kernel's number of the action is among the program's answers."""
    program = seccomp.compile_profile(
        {"defaultAction": "SCMP_ACT_TRAP", "syscalls": [{"names": ["getpid"], "action": action}]}
    )

    answers = [value for code, _, _, value in struct.iter_unpack("=HBBI", program) if code == 0x06]
    assert [answer for answer in answers if answer & 0xFFFF0000 == seccomp.ACTIONS[action]]


@pytest.mark.parametrize("architecture", seccomp.ARCHITECTURES)
def test_every_architecture_is_known_to_the_library(architecture: str) -> None:
    """The library puts those of the other byte order into no filter with the machine's own, and that is told."""
    other_order = architecture.removeprefix("SCMP_ARCH_") in {
        "MIPS", "MIPS64", "MIPS64N32", "PPC", "PPC64", "S390", "S390X", "PARISC", "PARISC64",
    }  # fmt: skip
    expected = pytest.raises(OciError, match=r"linux\.seccomp: architectures: ") if other_order else nullcontext()
    with expected:
        assert seccomp.compile_profile({**PROFILE, "architectures": [architecture]})


def test_only_a_filter_that_asks_somebody_has_a_listener(tmp_path: Path) -> None:
    ask = [{"names": ["getpid"], "action": "SCMP_ACT_NOTIFY"}]
    asking = {**PROFILE, "syscalls": ask, "listenerPath": "/x", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}

    first = seccomp.prepare(asking, str(tmp_path), str(tmp_path))
    second = seccomp.prepare({**PROFILE, "listenerPath": "/x"}, str(tmp_path), str(tmp_path))

    assert first is not None
    assert second is not None
    assert (first.notifies, first.flags & 32, second.notifies) == (True, 32, False)
