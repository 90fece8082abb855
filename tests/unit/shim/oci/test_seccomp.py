"""Profiles become programs, once."""

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
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction: 'SCMP_ACT_NOTIFY' is not supported"),
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
