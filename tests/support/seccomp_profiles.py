"""What a seccomp profile says to a system call, whichever rules it says it by; so that two profiles can be compared.

    verdicts(profile, ["SCMP_ARCH_X86_64"], {"clone"})  ->  {("clone", 0, 0x7e020000): "ERRNO 1", ...}

A rule without arguments stands for all. Where rules of either profile look at arguments, the call is tried with every
value at which one of them could change its mind. Source: seccomp_rule_add(3).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Profile = Mapping[str, Any]

_MASK = (1 << 64) - 1


class Call(NamedTuple):
    """A system call with one argument of interest; index and value are None if the rules look at none."""

    name: str
    argument: int | None
    value: int | None

    def __str__(self) -> str:
        """Return it as a person would write it."""
        return self.name if self.argument is None else f"{self.name}(#{self.argument} = {self.value:#x})"


def names(profile: Profile) -> set[str]:
    """Return the calls that a profile has rules for."""
    return {name for rule in profile["syscalls"] for name in rule["names"]}


def calls(*profiles: Profile) -> set[Call]:
    """Return what to try to see all differences between profiles."""
    tried: set[Call] = set()
    for name in set().union(*map(names, profiles)):
        values: dict[int, set[int]] = {}
        for profile in profiles:
            for rule in _rules(profile, name):
                for condition in rule.get("args") or ():
                    value, mask = condition["value"], condition.get("valueTwo") or 0
                    near = {value - 1, value, value + 1, mask, 0, 0xFFFFFFFF} | {
                        1 << bit for bit in range(32) if value >> bit & 1
                    }
                    values.setdefault(condition["index"], set()).update(one & _MASK for one in near if one >= 0)
        if values:
            tried |= {Call(name, index, value) for index, some in values.items() for value in some}
        else:
            tried.add(Call(name, None, None))
    return tried


def verdict(profile: Profile, call: Call) -> str:
    """Return what a profile does with a call: `ALLOW`, `ERRNO 38`, ..."""
    allowed, other = False, ""
    for rule in _rules(profile, call.name):
        if all(_holds(condition, call) for condition in rule.get("args") or ()):
            if rule["action"] == "SCMP_ACT_ALLOW":
                allowed = True
            else:
                other = _spelt(rule["action"], rule.get("errnoRet"))
    if allowed:
        return "ALLOW"
    return other or _spelt(profile["defaultAction"], profile.get("defaultErrnoRet"))


def _rules(profile: Profile, name: str) -> Iterable[Mapping[str, Any]]:
    return (rule for rule in profile["syscalls"] if name in rule["names"])


def _spelt(action: str, number: int | None) -> str:
    word = action.removeprefix("SCMP_ACT_")
    return f"{word} {1 if number is None else number}" if word == "ERRNO" else word  # EPERM, unless it says otherwise


def _holds(condition: Mapping[str, Any], call: Call) -> bool:
    if condition["index"] != call.argument or call.value is None:
        return False
    value, given = condition["value"], call.value
    match condition["op"]:
        case "SCMP_CMP_EQ":
            return given == value
        case "SCMP_CMP_NE":
            return given != value
        case "SCMP_CMP_LT":
            return given < value
        case "SCMP_CMP_LE":
            return given <= value
        case "SCMP_CMP_GT":
            return given > value
        case "SCMP_CMP_GE":
            return given >= value
        case "SCMP_CMP_MASKED_EQ":
            return given & value == (condition.get("valueTwo") or 0)
    raise AssertionError(condition["op"])
