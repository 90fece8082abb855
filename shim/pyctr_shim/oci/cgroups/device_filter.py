"""Which devices a container may use: the spec's rules, the nodes that every container has, and v2's BPF.

Version 1 takes one rule after another. Version 2 asks a BPF program about each access: it is
given struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor;} with the kind of device in
the low half of access_type and the kind of access in the high half, and answers 1 or 0.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci.errors import OciError

_KIND_BITS: Final = {"b": 1, "c": 2}
_ACCESS_BITS: Final = {"m": 1, "r": 2, "w": 4}


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
    """Return a rule of the spec; -1 and absence both mean any number.

    Raises OciError for accesses that do not exist, and for a rule about all devices that is not about
    all that can be done with them: version 1 has none such.
    """
    numbers = [None if rule.get(key) in {None, -1} else int(rule[key]) for key in ("major", "minor")]
    kind = rule.get("type") or "a"
    access = rule.get("access") or "rwm"
    if not set(access) <= set(_ACCESS_BITS):
        raise OciError(f"linux.resources.devices: access {access!r} is not of r, w and m")
    if kind == "a" and (numbers != [None, None] or set(access) != set(_ACCESS_BITS)):
        raise OciError("linux.resources.devices: a rule of type a covers all devices and all accesses")
    return Rule(rule["allow"], "c" if kind == "u" else kind, numbers[0], numbers[1], access)


# eBPF opcodes. Source: kernel Documentation/bpf/standardization/instruction-set.rst.
_LOAD_WORD: Final = 0x61  # dst = *(u32 *)(src + offset)
_MOVE, _MOVE_REGISTER = 0xB7, 0xBF
_AND, _SHIFT_RIGHT = 0x57, 0x77
_JUMP_NOT_EQUAL, _JUMP_NOT_EQUAL_REGISTER, _JUMP_EQUAL_REGISTER = 0x55, 0x5D, 0x1D
_EXIT: Final = 0x95
_KIND, _ACCESS, _MAJOR, _MINOR, _SCRATCH = 2, 3, 4, 5, 1


def _instruction(opcode: int, target: int, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhI", opcode, target | source << 4, offset, value & 0xFFFFFFFF)


def bpf_program(rules: Iterable[Rule]) -> bytes:
    """Return a program of type CGROUP_DEVICE: the last rule that covers the whole access decides; without any, no."""
    code = [
        _instruction(_LOAD_WORD, _KIND, 1, 0),
        _instruction(_LOAD_WORD, _ACCESS, 1, 0),
        _instruction(_LOAD_WORD, _MAJOR, 1, 4),
        _instruction(_LOAD_WORD, _MINOR, 1, 8),
        _instruction(_AND, _KIND, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, _ACCESS, value=16),
    ]
    for rule in reversed(list(rules)):
        code += _rule_block(rule)
        if rule.kind == "a":
            return b"".join(code)  # it covers everything; the verifier refuses code that nothing reaches
    code += [_instruction(_MOVE, 0, value=0), _instruction(_EXIT, 0)]
    return b"".join(code)


def _rule_block(rule: Rule) -> list[bytes]:
    """Return the checks of one rule, each jumping past its end, and its answer."""
    block = [_instruction(_MOVE, 0, value=int(rule.allow)), _instruction(_EXIT, 0)]
    if rule.minor is not None:
        block.insert(0, _instruction(_JUMP_NOT_EQUAL, _MINOR, 0, len(block), rule.minor))
    if rule.major is not None:
        block.insert(0, _instruction(_JUMP_NOT_EQUAL, _MAJOR, 0, len(block), rule.major))
    bits = sum(_ACCESS_BITS[letter] for letter in set(rule.access))
    if bits != sum(_ACCESS_BITS.values()):
        # To be allowed, an access must be part of the rule's; to be denied, it only has to have a part in common.
        mask, jump = (bits, _JUMP_NOT_EQUAL_REGISTER) if rule.allow else (~bits, _JUMP_EQUAL_REGISTER)
        block = [
            _instruction(_MOVE_REGISTER, _SCRATCH, _ACCESS),
            _instruction(_AND, _SCRATCH, value=mask),
            _instruction(jump, _SCRATCH, _ACCESS, len(block)),
            *block,
        ]
    if rule.kind != "a":
        block.insert(0, _instruction(_JUMP_NOT_EQUAL, _KIND, 0, len(block), _KIND_BITS[rule.kind]))
    return block
