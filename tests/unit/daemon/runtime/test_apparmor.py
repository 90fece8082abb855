"""Where the default AppArmor profile can be had, and when the kernel is given it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition, Internal
from pyctrd.runtime import apparmor
from pyctrd.runtime.apparmor import DEFAULT, POD_DEFAULT, profile_text
from support.staged_kernel import StagedKernel


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[StagedKernel]:
    with StagedKernel(tmp_path) as staged:
        yield staged


def spec(profile: str) -> bytes:
    return json.dumps({"process": {"apparmorProfile": profile}}).encode()


def without(kernel: StagedKernel, what: str) -> str:
    """Take something away; return what is to be read of it."""
    match what:
        case "module":
            kernel.enabled.unlink()
            return "AppArmor is not there"
        case "switch":
            kernel.enabled.write_text("N\n")
            return "AppArmor is turned off"
        case "securityfs":
            kernel.profiles.unlink()
            return str(kernel.profiles)
        case _:
            kernel.parser.unlink()
            return "install the package apparmor"


def test_the_default_is_had_where_kernel_and_parser_are_there(kernel: StagedKernel) -> None:
    assert kernel.apparmor.default(DEFAULT) == DEFAULT
    assert kernel.loads() == [], "nothing uses it yet"


@pytest.mark.parametrize("what", ["module", "switch", "securityfs", "parser"])
def test_what_is_missing_is_told_once_and_to_whom_asks_for_the_profile(
    kernel: StagedKernel, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    reason = without(kernel, what)
    caplog.clear()

    assert [kernel.apparmor.default(DEFAULT) for _ in range(3)] == ["", "", ""]

    assert len(caplog.records) == 1
    assert reason in caplog.text
    with pytest.raises(FailedPrecondition, match=rf"^apparmor profile {DEFAULT}: .*{re.escape(reason)}"):
        kernel.apparmor.check(DEFAULT)


def test_an_ordinary_users_daemon_has_none(kernel: StagedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apparmor, "in_user_namespace", lambda: True)
    assert kernel.apparmor.default(DEFAULT) == ""
    with pytest.raises(FailedPrecondition, match="ordinary user"):
        kernel.apparmor.check(DEFAULT)


async def test_a_profile_that_somebody_has_loaded_needs_no_parser(kernel: StagedKernel) -> None:
    kernel.profiles.write_text(f"{DEFAULT}-other (enforce)\n")
    kernel.parser.unlink()
    assert kernel.apparmor.default(DEFAULT) == ""
    kernel.profiles.write_text(f"{DEFAULT} (enforce)\n")
    assert kernel.apparmor.default(DEFAULT) == DEFAULT
    await kernel.apparmor.prepare(spec(DEFAULT))


async def test_a_profile_is_loaded_once_and_again_when_it_is_gone(kernel: StagedKernel) -> None:
    """What a daemon before this one has loaded is replaced: the text may be another one."""
    kernel.profiles.write_text(f"{DEFAULT} (enforce)\n")
    for _ in range(3):
        await kernel.apparmor.prepare(spec(DEFAULT))
    assert kernel.loads() == [DEFAULT]
    kernel.profiles.write_text("")
    for _ in range(3):
        await kernel.apparmor.prepare(spec(DEFAULT))
    assert kernel.loads() == [DEFAULT, DEFAULT]


@pytest.mark.parametrize(
    ("profile", "loaded"),
    [(DEFAULT, [DEFAULT]), (POD_DEFAULT, [POD_DEFAULT]), ("mine", []), ("unconfined", []), ("docker-default", [])],
)
async def test_only_what_a_spec_names_and_is_ours_is_loaded(
    kernel: StagedKernel, profile: str, loaded: list[str]
) -> None:
    await kernel.apparmor.prepare(spec(profile))
    assert kernel.loads() == loaded


async def test_a_profile_that_is_not_loaded_is_an_error_and_tried_again(kernel: StagedKernel) -> None:
    kernel.failing.touch()
    with pytest.raises(Internal, match=rf"^apparmor profile {DEFAULT}: .*syntax error in line 7"):
        await kernel.apparmor.prepare(spec(DEFAULT))
    kernel.failing.unlink()
    await kernel.apparmor.prepare(spec(DEFAULT))
    assert kernel.loads() == [DEFAULT]


async def test_without_apparmor_nothing_is_loaded(kernel: StagedKernel) -> None:
    """A spec may still name it; the runtime refuses that."""
    kernel.enabled.unlink()
    await kernel.apparmor.prepare(spec(DEFAULT))
    assert kernel.loads() == []


# The parser's patterns, as Python's: "/" ends *, and no pattern begins with what it must not match.
def _matches(pattern: str, path: str) -> bool:
    translated = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
    translated = re.sub(r"\\\{(.*?)\\\}", lambda found: f"({found[1].replace(',', '|')})", translated)
    translated = re.sub(r"\\\[\\\^(.*?)\\\]", lambda found: f"[^{found[1]}]".replace(r"\-", "-"), translated)
    return re.fullmatch(translated, path) is not None


def denied(path: str) -> str:
    """Return what of a file the profile denies: its letters, "" for nothing."""
    rules = re.findall(r"^  deny (/\S+) ([a-z]+),$", profile_text(DEFAULT), re.MULTILINE)
    return "".join(sorted({letter for pattern, letters in rules if _matches(pattern, path) for letter in letters}))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/proc/1/oom_score_adj", ""),
        ("/proc/971/task/972/attr/exec", ""),
        ("/proc/sys/kernel/shmmax", ""),
        ("/proc/sys/kernel/shm_rmid_forced", ""),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", ""),
        ("/etc/passwd", ""),
        ("/home/proc/sysrq-trigger", ""),
        ("/proc/sysrq-trigger", "klrwx"),
        ("/proc/kcore", "klrwx"),
        ("/proc/mtrr", "w"),
        ("/proc/irq/1/smp_affinity", "w"),
        ("/proc/scsi/scsi", "w"),
        ("/proc/sysvipc/shm", "w"),
        ("/proc/sys/vm/overcommit_memory", "w"),
        ("/proc/sys/keys/x", "w"),
        ("/proc/sys/fs/binfmt_misc/register", "w"),
        ("/proc/sys/kernel/core_pattern", "w"),
        ("/proc/sys/kernel/modprobe", "w"),
        ("/proc/sys/kernel/sysrq", "w"),
        ("/proc/sys/kernel/sem", "w"),
        ("/proc/sys/kernel/ns_last_pid", "w"),
        ("/sys/kernel/uevent_helper", "klwx"),
        ("/sys/future/x", "klwx"),
        ("/sys/module/x/parameters/y", "klwx"),
        ("/sys/fs/selinux/enforce", "klwx"),
        ("/sys/fs/ext4/sda/trigger_fs_error", "klwx"),
        ("/sys/fs/cifs/x", "klwx"),
        ("/sys/firmware/efi/vars/x", "klrwx"),
        ("/sys/kernel/security/apparmor/.remove", "klrwx"),
        ("/sys/devices/virtual/powercap/intel-rapl/energy_uj", "klrwx"),
    ],
)
def test_what_files_the_profile_denies(path: str, expected: str) -> None:
    assert denied(path) == expected


def test_whose_signals_and_traces_the_profile_allows() -> None:
    text = profile_text("some-name", "/usr/bin/pyctrd")
    assert 'profile "some-name" ' in text
    assert re.findall(r"^  (?:ptrace|signal).* peer=\"(.*)\",$", text, re.MULTILINE) == [
        "some-name", "some-name", "unconfined", "runc", "crun", "/usr/bin/pyctrd"
    ]  # fmt: skip
    assert "  deny mount," in text
