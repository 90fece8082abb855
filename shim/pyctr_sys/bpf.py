"""bpf(2): programs that judge what the processes of a version 2 cgroup do with devices."""

import os
from typing import Final

from pyctr_sys.calls import address, check, ffi, syscall

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_TYPE_CGROUP_DEVICE: Final = 6
_F_ALLOW_MULTI: Final = 2
_INSTRUCTION_BYTES: Final = 8
_MOST_PROGRAMS: Final = 64


def _bpf(command: int, attributes: object, kind: str, what: str) -> int:
    return check(syscall("bpf", command, address(attributes), ffi.sizeof(kind)), f"bpf({what})")


def load_device_program(instructions: bytes) -> int:
    """Return an fd of a verified program of type CGROUP_DEVICE. Raises OSError: EPERM, EINVAL, EACCES."""
    program = ffi.from_buffer(instructions)
    license_ = ffi.new("char[]", b"Apache")
    attributes = ffi.new("struct bpf_prog_load *")
    attributes.prog_type = _PROG_TYPE_CGROUP_DEVICE
    attributes.insn_cnt = len(instructions) // _INSTRUCTION_BYTES
    attributes.insns = address(program)
    attributes.license = address(license_)
    return _bpf(_PROG_LOAD, attributes, "struct bpf_prog_load", "PROG_LOAD")


def attach_device_program(cgroup_fd: int, program_fd: int) -> None:
    """Attach beside what is attached already: an access must pass all programs. Raises OSError."""
    attributes = ffi.new("struct bpf_prog_attach *")
    attributes.target_fd, attributes.attach_bpf_fd = cgroup_fd, program_fd
    attributes.attach_type, attributes.attach_flags = _ATTACH_TYPE_CGROUP_DEVICE, _F_ALLOW_MULTI
    _bpf(_PROG_ATTACH, attributes, "struct bpf_prog_attach", "PROG_ATTACH")


def detach_device_program(cgroup_fd: int, program_id: int) -> None:
    """Detach the program of that id. Raises OSError: ENOENT if it is not attached."""
    query = ffi.new("uint32_t[3]", [program_id, 0, 0])  # prog_id, next_id, open_flags
    program_fd = check(syscall("bpf", _PROG_GET_FD_BY_ID, address(query), ffi.sizeof(query)), "bpf(GET_FD_BY_ID)")
    try:
        attributes = ffi.new("struct bpf_prog_attach *")
        attributes.target_fd, attributes.attach_bpf_fd = cgroup_fd, program_fd
        attributes.attach_type = _ATTACH_TYPE_CGROUP_DEVICE
        _bpf(_PROG_DETACH, attributes, "struct bpf_prog_attach", "PROG_DETACH")
    finally:
        os.close(program_fd)


def device_programs(cgroup_fd: int) -> list[int]:
    """Return the ids of the device programs attached to a cgroup itself. Raises OSError."""
    ids = ffi.new("uint32_t[]", _MOST_PROGRAMS)
    attributes = ffi.new("struct bpf_prog_query *")
    attributes.target_fd, attributes.attach_type = cgroup_fd, _ATTACH_TYPE_CGROUP_DEVICE
    attributes.prog_ids, attributes.prog_cnt = address(ids), _MOST_PROGRAMS
    _bpf(_PROG_QUERY, attributes, "struct bpf_prog_query", "PROG_QUERY")
    return [ids[number] for number in range(attributes.prog_cnt)]
