"""What is taken from a worker before it reads the first byte of a stranger's archive.

It keeps the capabilities that making files takes, a few limits, and the system calls listed here. There is no
call among them that makes a socket, starts a program, mounts, or traces; with the file system that `stage` leaves it,
whoever takes the worker over has the layer's directory, the blob and a socket to the daemon.
"""

import os
import resource
import struct

from pyctr_sys import capabilities, process, seccomp
from pyctr_sys.steps import Steps

MAKING_FILES = ("CHOWN", "FOWNER", "DAC_OVERRIDE", "FSETID", "MKNOD", "SETFCAP")
READING_FILES = ("DAC_READ_SEARCH",)

# Address space: threads, their arenas and a zstd window fit several times.
_ADDRESS_SPACE = 1 << 30

_SECCOMP_ALLOW, _SECCOMP_ERRNO_ENOSYS = 0x7FFF0000, 0x00050000 | 38
_LOAD, _EQUALS, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NR, _ARCH, _ARGUMENT_0 = 0, 4, 16  # offsets in struct seccomp_data; the low half of the first argument
_CLONE_THREAD = 0x00010000

# Name, and the number on x86-64 and in the table that aarch64 and riscv64 share; -: not there.
_CALLS = """
read 0 63            readv 19 65          pread64 17 67        write 1 64           writev 20 66
pwrite64 18 68       close 3 57           lseek 8 62           openat 257 56        openat2 437 437
fstat 5 80           newfstatat 262 79    statx 332 291        getdents64 217 61    readlinkat 267 78
fcntl 72 25          dup 32 23            dup3 292 24          fchdir 81 50         ftruncate 77 46
fallocate 285 47     fsync 74 82          fdatasync 75 83      syncfs 306 267       fadvise64 221 223
mkdirat 258 34       mknodat 259 33       unlinkat 263 35      symlinkat 266 36     linkat 265 37
fchown 93 55         fchownat 260 54      fchmod 91 52         fchmodat 268 53      fchmodat2 452 452
utimensat 280 88     setxattr 188 5       lsetxattr 189 6      fsetxattr 190 7      getxattr 191 8
lgetxattr 192 9      fgetxattr 193 10     listxattr 194 11     llistxattr 195 12    flistxattr 196 13
recvmsg 47 212       recvfrom 45 207      sendmsg 46 211       sendto 44 206        poll 7 -
ppoll 271 73         mmap 9 222           munmap 11 215        mremap 25 216        mprotect 10 226
madvise 28 233       brk 12 214           futex 202 98         sched_yield 24 124   getrandom 318 278
gettid 186 178       getpid 39 172        tgkill 234 131       rt_sigaction 13 134  rt_sigprocmask 14 135
rt_sigreturn 15 139  sigaltstack 131 132  restart_syscall 219 128  set_robust_list 273 99  rseq 334 293
clock_gettime 228 113  clock_nanosleep 230 115  exit 60 93     exit_group 231 94    sched_getaffinity 204 123
"""
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}


def drop_privileges(kept: tuple[str, ...]) -> None:
    """Keep these capabilities and no others, for good. Raises OSError."""
    mask = sum(1 << capabilities.NAMES.index("CAP_" + name) for name in kept) & capabilities.capget()[1]
    unwanted = capabilities.bounding_set() & ~mask
    steps = Steps()
    capabilities.add_drop(steps, (n for n in range(unwanted.bit_length()) if unwanted >> n & 1))
    capabilities.add_capset(steps, mask, mask, 0)
    capabilities.add_ambient(steps, ())
    steps.run()
    process.set_no_new_privs()
    process.set_dumpable(0)


def limit_resources(max_file_size: int) -> None:
    """Bound memory, the length of files (bytes) and leave no core dumps."""
    for limit, value in (
        (resource.RLIMIT_AS, _ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, max_file_size),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(limit, (value, value))


def filter_system_calls() -> None:
    """Answer ENOSYS to every system call that is not needed; before threads are started. Raises OSError.

    On an architecture whose numbers are not listed here, the other walls have to do.
    """
    machine = os.uname().machine
    if machine in _AUDIT_ARCH:
        seccomp.load(filter_program(machine))


def filter_program(machine: str) -> bytes:
    """Return the BPF program for a machine as uname calls it.

    Source: kernel Documentation/userspace-api/seccomp_filter.rst.
    """
    words = _CALLS.split()
    numbers = words[1::3] if machine == "x86_64" else words[2::3]
    return _assemble(machine, [int(number) for number in numbers if number != "-"])


def _assemble(machine: str, numbers: list[int]) -> bytes:
    """Return a program that allows `numbers`, and clone for threads."""
    code = [(_LOAD, 0, 0, _ARCH), (_EQUALS, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _SECCOMP_ERRNO_ENOSYS)]
    code.append((_LOAD, 0, 0, _NR))
    for number in numbers:
        code += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, _SECCOMP_ALLOW)]
    code += [
        (_EQUALS, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _ARGUMENT_0),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _SECCOMP_ALLOW),
        (_RETURN, 0, 0, _SECCOMP_ERRNO_ENOSYS),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
