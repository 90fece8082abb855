"""The system call filter of a spec, as a BPF program.

libseccomp compiles a profile (2 to 15 ms), so the result is kept in a file named by the profile's
hash. That file is also how an exec finds the filter of its container. A filter that asks somebody
(SCMP_ACT_NOTIFY) is loaded with a listener, see listener.py.
"""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys import seccomp as kernel
from pyctr_sys.calls import ffi
from pyctr_sys.steps import Steps

LIBRARY: Final = "libseccomp.so.2"
_CACHE_FORMAT: Final = 2  # another one whenever a profile becomes another program, or is refused
_EPERM: Final = 1
_ENOSYS: Final = 38

# Source: linux/seccomp.h. The low 16 bits of ERRNO and TRACE carry a number.
ACTIONS: Final[Mapping[str, int]] = {
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_NOTIFY": 0x7FC00000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
_WITH_NUMBER: Final = {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}
OPERATORS: Final[Mapping[str, int]] = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
_NOT_EQUAL: Final = "SCMP_CMP_NE"
_ORDERS: Final = {"SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_GE", "SCMP_CMP_GT"}
FLAGS: Final[Mapping[str, int]] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # there is one thread
    "SECCOMP_FILTER_FLAG_LOG": kernel.FilterFlag.LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.FilterFlag.SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": kernel.FilterFlag.WAIT_KILLABLE_RECV,
}
ARCHITECTURES: Final = tuple(
    f"SCMP_ARCH_{name}"
    for name in (
        "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32",
        "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC", "PARISC64", "RISCV64",
    )
)  # fmt: skip
MOST_INSTRUCTIONS: Final = 4096
_X32_BIT: Final = 0x40000000
_X86_64: Final = 0xC000003E
_ATTRIBUTE_NO_NEW_PRIVS, _ATTRIBUTE_OPTIMIZE = 3, 8


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled profile, the file that holds it, and the flags to load it with."""

    program: bytes
    flags: int
    path: str

    @property
    def notifies(self) -> bool:
        """Whether loading it makes a listener, that somebody must be given."""
        return bool(self.flags & kernel.FilterFlag.NEW_LISTENER)


def prepare(profile: Mapping[str, Any] | None, cache: str, state_directory: str) -> Filter | None:
    """Return the compiled profile, None if the spec has none.

    It is kept in `cache`, or beside the state where that cannot be written. Raises OciError, also if
    it has to be compiled and libseccomp is not installed.
    """
    if not profile:
        return None
    flags = flags_of(profile.get("flags"))
    if _notifies(profile):
        if not profile.get("listenerPath"):
            raise OciError("linux.seccomp.listenerPath: SCMP_ACT_NOTIFY needs somebody to notify")
        flags |= kernel.FilterFlag.NEW_LISTENER
    elif profile.get("listenerMetadata") and not profile.get("listenerPath"):
        raise OciError("linux.seccomp.listenerMetadata: needs a listenerPath")
    document = json.dumps([_CACHE_FORMAT, os.uname().machine, profile]).encode()
    name = f"{hashlib.sha256(document).hexdigest()}.bpf"
    path = os.path.join(cache, name)
    try:
        with open(path, "rb") as file:
            return Filter(file.read(), flags, path)
    except (FileNotFoundError, NotADirectoryError):
        program = compile_profile(profile)
    try:
        os.makedirs(cache, 0o700, exist_ok=True)
        _write(path, program)
    except OSError:
        path = os.path.join(state_directory, name)
        _write(path, program)
    return Filter(program, flags, path)


def read(path: str, flags: int) -> Filter | None:
    """Return a filter compiled earlier; None for an empty path."""
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return Filter(file.read(), flags, path)
    except OSError as error:
        raise OciError(f"seccomp filter {path}: {error.strerror}", error.errno or 0) from None


def add_load(steps: Steps, filter_: Filter) -> None:
    """Put the filter over this process."""
    kernel.add_load(steps, "linux.seccomp: loading the filter", filter_.program, filter_.flags)


def _write(path: str, program: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, program)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _notifies(profile: Mapping[str, Any]) -> bool:
    actions = {profile["defaultAction"], *(rule["action"] for rule in profile.get("syscalls") or ())}
    return "SCMP_ACT_NOTIFY" in actions


def flags_of(names: Sequence[str] | None) -> int:
    """Return a profile's flags as the kernel has them. Raises OciError for one that is not known."""
    # Without a word of the spec, speculation is left alone, as in runc since 1.2.
    if names is None:
        return int(kernel.FilterFlag.SPEC_ALLOW)
    flags = 0
    for name in names:
        if name not in FLAGS:
            raise OciError(f"linux.seccomp.flags: {name!r} is not supported")
        flags |= FLAGS[name]
    return flags


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """Turn a profile into a BPF program for all of its architectures. Raises OciError."""
    _check_orders(profile)
    _check_inequalities(profile)
    library = _library()
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"), "defaultAction")
    context = library.seccomp_init(default)
    if context == ffi.NULL:
        raise OciError("linux.seccomp.defaultAction: libseccomp refuses it")
    try:
        library.seccomp_attr_set(context, _ATTRIBUTE_NO_NEW_PRIVS, 0)  # whether it is set is the spec's affair
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, 2)  # a binary tree; 2.4 has only the list, which works
        architectures = [_architecture(library, name) for name in profile.get("architectures") or ()]
        for token in architectures:
            _check(library.seccomp_arch_add(context, token), "architectures", allowed=(-17,))
        for rule in profile.get("syscalls") or ():
            _add_rule(library, context, rule, default)
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    if profile["defaultAction"] == "SCMP_ACT_ERRNO":
        native = int(library.seccomp_arch_native())
        names = {name for rule in profile.get("syscalls") or () for name in rule["names"]}
        program = _unknown_calls(library, {native, *architectures}, names) + program
    if len(program) > MOST_INSTRUCTIONS * kernel.INSTRUCTION_BYTES:
        count = len(program) // kernel.INSTRUCTION_BYTES
        raise OciError(f"linux.seccomp: {count} instructions, where the kernel takes {MOST_INSTRUCTIONS}")
    return program


def _library() -> Any:
    try:
        return ffi.dlopen(LIBRARY)
    except OSError:
        raise OciError(f"linux.seccomp: needs {LIBRARY}: install the package libseccomp2 (Debian, Ubuntu)") from None


def _action(name: str, number: int | None, field: str) -> int:
    if name not in ACTIONS:
        raise OciError(f"linux.seccomp.{field}: {name!r} is not supported")
    if name not in _WITH_NUMBER:
        if number is not None:
            raise OciError(f"linux.seccomp.{field}: {name} has no errno to return")
        return ACTIONS[name]
    return ACTIONS[name] | (_EPERM if number is None else number)


def _architecture(library: Any, name: str) -> int:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    if name not in ARCHITECTURES or not token:
        raise OciError(f"linux.seccomp.architectures: {name!r} is not supported")
    return int(token)


def _check_orders(profile: Mapping[str, Any]) -> None:
    """Refuse what libseccomp (2.5) gets wrong without a word: more than one comparison for order of an argument.

    It can do those below 32 bits that are a rule's only condition. Raises OciError naming the system call.
    """
    counts: dict[tuple[str, int], int] = {}
    difficult: set[tuple[str, int]] = set()
    for rule in profile.get("syscalls") or ():
        arguments = rule.get("args") or ()
        together = _hold_together(rule)
        for argument in arguments:
            if argument["op"] in _ORDERS:
                for name in rule["names"]:
                    place = name, argument["index"]
                    counts[place] = counts.get(place, 0) + 1
                    if together or argument["value"] >> 32:
                        difficult.add(place)
    for name, index in difficult:
        if counts[name, index] > 1:
            how = "more than once, with other conditions or beyond 32 bits, which libseccomp gets wrong"
            raise OciError(f"linux.seccomp.syscalls: {name}: argument {index} is compared for order {how}")


def _check_inequalities(profile: Mapping[str, Any]) -> None:
    """Refuse what libseccomp (2.5) also gets wrong without a word: to compare an argument for inequality, and again.

    It can do that where each such comparison is a rule's only condition, unless a rule of the same action has it beside
    others. Raises OciError naming the system call.
    """
    counts: Counter[tuple[str, int]] = Counter()
    joint: set[tuple[str, int, str]] = set()
    unequal_joint: set[tuple[str, int]] = set()
    unequal_alone: set[tuple[str, int, str]] = set()
    for rule in profile.get("syscalls") or ():
        together = _hold_together(rule)
        for argument, name in product(rule.get("args") or (), rule["names"]):
            place = name, argument["index"]
            counts[place] += 1
            if together:
                joint.add((*place, rule["action"]))
            if argument["op"] == _NOT_EQUAL:
                if together:
                    unequal_joint.add(place)
                else:
                    unequal_alone.add((*place, rule["action"]))
    wrong = {place for place in unequal_joint if counts[place] > 1} | {key[:2] for key in unequal_alone & joint}
    if wrong:
        name, index = min(wrong)
        how = "for inequality and once more, with other conditions, which libseccomp gets wrong"
        raise OciError(f"linux.seccomp.syscalls: {name}: argument {index} is compared {how}")


def _hold_together(rule: Mapping[str, Any]) -> bool:
    """Whether a rule has several conditions, of which all are to be met: those of one argument are alternatives."""
    arguments = rule.get("args") or ()
    return len({argument["index"] for argument in arguments}) == len(arguments) > 1


def _add_rule(library: Any, context: Any, rule: Mapping[str, Any], default: int) -> None:
    action = _action(rule["action"], rule.get("errnoRet"), "syscalls.action")
    if action == default:
        return  # it says what holds anyway; libseccomp takes that for an error
    conditions = [_condition(argument) for argument in rule.get("args") or ()]
    indexes = [condition[0] for condition in conditions]
    # Conditions on one argument are alternatives, on different arguments they hold together. Source: runc.
    groups = [[condition] for condition in conditions] if len(set(indexes)) < len(indexes) else [conditions]
    groups = [group for group in groups if not any(map(_is_never_met, group))]
    native = library.seccomp_arch_native()
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name_arch(native, name.encode())
        if number == -1:
            continue  # newer than the library: the default action covers it
        for group in groups:
            array = ffi.new("struct scmp_arg_cmp[]", group)
            result = library.seccomp_rule_add_array(context, action, number, len(group), array)
            _check(result, f"syscalls: {name}")


def _condition(argument: Mapping[str, Any]) -> tuple[int, int, int, int]:
    operator = argument["op"]
    if operator not in OPERATORS:
        raise OciError(f"linux.seccomp.syscalls.args.op: {operator!r} is not supported")
    return argument["index"], OPERATORS[operator], argument["value"], argument.get("valueTwo") or 0


def _is_never_met(condition: tuple[int, int, int, int]) -> bool:
    """Whether it asks for bits that its own mask takes away, which libseccomp would not see."""
    _, operator, mask, value = condition
    return operator == OPERATORS["SCMP_CMP_MASKED_EQ"] and bool(value & ~mask)


def _export(library: Any, context: Any) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "export")
        os.lseek(fd, 0, os.SEEK_SET)
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def _check(result: int, what: str, allowed: tuple[int, ...] = ()) -> None:
    if result < 0 and result not in allowed:
        raise OciError(f"linux.seccomp: {what}: {os.strerror(-result)}", -result)


def _unknown_calls(library: Any, architectures: Iterable[int], names: Iterable[str]) -> bytes:
    """Return instructions that answer ENOSYS to system calls younger than every one that the profile names.

    With the profile's own default, EPERM, programs do not fall back to the older call. Source: runc.
    """
    load_word, jump_equal, jump_greater, answer = 0x20, 0x15, 0x25, 0x06
    program = []
    for token in sorted(architectures):
        numbers = [library.seccomp_syscall_resolve_name_arch(token, name.encode()) for name in names]
        largest = max((number & ~_X32_BIT for number in numbers if number >= 0), default=-1)
        if largest < 0:
            continue
        block = [
            (load_word, 0, 0, 0),  # seccomp_data.nr
            (jump_greater, 0, 1, largest),
            (answer, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS),
        ]
        if token == _X86_64:  # x32's numbers have a bit set and are judged by the profile
            block.insert(1, (jump_greater, 2, 0, _X32_BIT - 1))
        program += [(load_word, 0, 0, 4), (jump_equal, 0, len(block), token), *block]  # seccomp_data.arch
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
