"""Seccomp profiles: each is refused, or becomes a program that the kernel takes and that decides as the profile says.

What it should decide is worked out here a second time, from the profile alone. Where rules contradict each other, the
specification does not say which one holds: any of their actions will do.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, Final

from pyctr_shim.oci import seccomp, validate
from pyctr_shim.oci.errors import OciError
from support import bpf
from support.hostile_documents import full_spec, mutate_json
from support.oci_bundle import plain_spec

# Source: arch/x86/entry/syscalls/syscall_64.tbl.
NUMBERS: Final = {
    "read": 0, "write": 1, "open": 2, "close": 3, "mmap": 9, "ioctl": 16, "getpid": 39, "socket": 41, "clone": 56,
    "exit": 60, "kill": 62, "personality": 135, "prctl": 157, "openat": 257, "seccomp": 317, "clone3": 435,
}  # fmt: skip
X86_64: Final = 0xC000003E
FOREIGN: Final = 0xC00000F3  # RISC-V's
_X32_BIT: Final = 0x40000000
_KILL_THREAD: Final = 0
_ENOSYS: Final = 0x00050000 | 38
_WORD: Final = (1 << 64) - 1
_MOST_CALLS: Final = 400

seeds: Final = [
    json.dumps(full_spec()["linux"]["seccomp"]).encode(),
    json.dumps(
        {"defaultAction": "SCMP_ACT_ALLOW",
         "syscalls": [{"names": ["clone", "kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                       "args": [{"index": 1, "value": 3, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"},
                                {"index": 0, "value": 1 << 33, "op": "SCMP_CMP_GE"}]}]}
    ).encode(),
]  # fmt: skip
mutate = mutate_json

Profile = dict[str, Any]


def check(data: bytes) -> None:
    """Fail if a profile of these bytes is neither refused nor done as it says."""
    spec = plain_spec("true")
    try:
        spec["linux"]["seccomp"] = json.loads(data)
        validate.check_spec(spec)
    except (ValueError, RecursionError, OciError):
        return
    profile = spec["linux"]["seccomp"]
    if profile and not _is_large(profile):
        check_profile(profile)


def _is_large(profile: Profile) -> bool:
    """Whether it would only take long."""
    return sum(len(rule["names"]) * max(len(rule.get("args") or ()), 1) for rule in profile.get("syscalls") or ()) > 200


def check_profile(profile: Profile) -> bytes | None:
    """Check a profile of the right shape; return its program, None if it is refused."""
    try:
        program = seccomp.compile_profile(profile)
    except OciError as error:
        assert str(error).startswith("linux.seccomp"), error
        return None
    code = bpf.parse(program)
    if os.uname().machine == "x86_64":
        for name, arguments in calls(profile):
            found = bpf.answer(code, NUMBERS[name], X86_64, arguments)
            assert found in expected(profile, name, arguments), (name, arguments, hex(found))
        assert bpf.answer(code, 0, FOREIGN, []) == _KILL_THREAD
    return program


def calls(profile: Profile) -> Iterator[tuple[str, list[int]]]:
    """Yield system calls at the edges of a profile's conditions, and others."""
    left = _MOST_CALLS
    for name in NUMBERS:
        yield name, []
        for rule in profile.get("syscalls") or ():
            if name not in rule["names"]:
                continue
            conditions = rule.get("args") or ()
            for bent in (None, *range(len(conditions))):
                for difference in (0, 1, -1, 1 << 32):
                    arguments = [0] * 6
                    for place, condition in enumerate(conditions):
                        value = _fitting(condition) + (difference if bent in {None, place} else 0)
                        arguments[condition["index"]] = value & _WORD
                    left -= 1
                    if left < 0:
                        return
                    yield name, arguments


def _fitting(condition: Profile) -> int:
    operator, value = condition["op"], int(condition["value"])
    if operator == "SCMP_CMP_MASKED_EQ":
        return int(condition.get("valueTwo") or 0)
    return value + {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": -1, "SCMP_CMP_GT": 1}.get(operator, 0)


def expected(profile: Profile, name: str, arguments: list[int]) -> set[int]:
    """Return what the profile may answer to a call: more than one thing only where it contradicts itself."""
    default = _number(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = profile.get("syscalls") or ()
    if profile["defaultAction"] == "SCMP_ACT_ERRNO":
        known = [NUMBERS[other] for rule in rules for other in rule["names"] if other in NUMBERS]
        others = any(other not in NUMBERS for rule in rules for other in rule["names"])
        if known and not others and NUMBERS[name] > max(known):
            return {_ENOSYS}
        if others and not any(name in rule["names"] for rule in rules):
            return {_ENOSYS, default}  # the largest number is not known here
    found = {
        _number(rule["action"], rule.get("errnoRet"))
        for rule in rules
        if name in rule["names"] and _holds(rule.get("args") or (), arguments)
    }
    return found or {default}


def _number(action: str, errno: int | None) -> int:
    number = seccomp.ACTIONS[action]
    if action in {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}:
        number |= 1 if errno is None else errno
    return number


def _holds(conditions: Any, arguments: list[int]) -> bool:
    indexes = [condition["index"] for condition in conditions]
    verdicts = [_is_met(condition, (arguments + [0] * 6)[condition["index"]]) for condition in conditions]
    return any(verdicts) if len(set(indexes)) < len(indexes) else all(verdicts)


def _is_met(condition: Profile, argument: int) -> bool:
    value = condition["value"]
    match condition["op"].removeprefix("SCMP_CMP_"):
        case "NE":
            return bool(argument != value)
        case "LT":
            return bool(argument < value)
        case "LE":
            return bool(argument <= value)
        case "EQ":
            return bool(argument == value)
        case "GE":
            return bool(argument >= value)
        case "GT":
            return bool(argument > value)
        case _:
            return bool(argument & value == (condition.get("valueTwo") or 0))
