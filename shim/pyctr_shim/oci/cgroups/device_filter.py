"""Which devices a container may use: the spec's rules, the nodes that every container has, and v2's BPF."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; the last one that fits an access decides. `None` stands for any number."""

    allow: bool
    kind: str  # "a" both, "c" character, "b" block
    major: int | None
    minor: int | None
    access: str  # of r, w and m (mknod)

    def v1_line(self) -> str:
        """Return the line for devices.allow or devices.deny."""
        if self.kind == "a":
            return "a"
        numbers = ["*" if number is None else str(number) for number in (self.major, self.minor)]
        return f"{self.kind} {numbers[0]}:{numbers[1]} {self.access}"


# Making any node is harmless without leave to open it; the rest is /dev's usual content and ptys.
ALWAYS: Final = (
    Rule(True, "c", None, None, "m"),
    Rule(True, "b", None, None, "m"),
    Rule(True, "c", 1, 3, "rwm"),
    Rule(True, "c", 1, 8, "rwm"),
    Rule(True, "c", 1, 7, "rwm"),
    Rule(True, "c", 5, 0, "rwm"),
    Rule(True, "c", 1, 5, "rwm"),
    Rule(True, "c", 1, 9, "rwm"),
    Rule(True, "c", 136, None, "rwm"),
    Rule(True, "c", 5, 2, "rwm"),
)


def with_defaults(rules: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """Return the spec's rules followed by those that always hold."""
    parsed = [parse(rule) for rule in rules]
    if parsed and parsed[-1].kind == "a" and parsed[-1].allow:
        return parsed  # everything is allowed: nothing to add
    return [*parsed, *ALWAYS]


def parse(rule: Mapping[str, Any]) -> Rule:
    """Return a rule of the spec; -1 and absence both mean any number."""
    numbers = [None if rule.get(key) in {None, -1} else int(rule[key]) for key in ("major", "minor")]
    kind = rule.get("type") or "a"
    access = rule.get("access") or "rwm"
    return Rule(rule["allow"], "c" if kind == "u" else kind, numbers[0], numbers[1], access)
