"""Classic BPF as seccomp uses it: what the kernel demands of a program, and what a program answers.

Source: kernel/seccomp.c (seccomp_check_filter), net/core/filter.c (bpf_check_classic), seccomp(2).
"""

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

MOST_INSTRUCTIONS: Final = 4096
_DATA: Final = struct.Struct("=iIQ6Q")  # struct seccomp_data: nr, arch, instruction pointer, args
_LOAD, _AND, _RETURN, _JUMP = 0x20, 0x54, 0x06, 0x05
_CONDITIONS: Final[Mapping[int, Callable[[int, int], object]]] = {
    0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge, 0x45: operator.and_,
}  # fmt: skip


class Instruction(NamedTuple):
    """One instruction; jumps count from the next one."""

    code: int
    if_true: int
    if_false: int
    value: int


def parse(program: bytes) -> list[Instruction]:
    """Return a program's instructions; fails for one that the kernel would refuse, or that is not of libseccomp's."""
    assert len(program) % 8 == 0
    code = [Instruction(*fields) for fields in struct.iter_unpack("=HBBI", program)]
    assert 0 < len(code) <= MOST_INSTRUCTIONS
    assert code[-1].code == _RETURN
    for place, item in enumerate(code):
        if item.code == _LOAD:
            assert item.value % 4 == 0
            assert item.value < _DATA.size
        elif item.code in _CONDITIONS:
            assert place + 1 + max(item.if_true, item.if_false) < len(code)
        elif item.code == _JUMP:
            assert place + 1 + item.value < len(code)
        else:
            assert item.code in {_AND, _RETURN}, item
    return code


def answer(code: Sequence[Instruction], number: int, architecture: int, arguments: Sequence[int]) -> int:
    """Return what a program answers to a system call."""
    data = _DATA.pack(number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    word = place = 0
    while True:
        item = code[place]
        place += 1
        if item.code == _RETURN:
            return item.value
        if item.code == _LOAD:
            (word,) = struct.unpack_from("=I", data, item.value)
        elif item.code == _AND:
            word &= item.value
        elif item.code == _JUMP:
            place += item.value
        else:
            place += item.if_true if _CONDITIONS[item.code](word, item.value) else item.if_false
