"""The default seccomp profile: what programs need, and nothing that reaches past a container.

A list of what is allowed; anything else fails with EPERM. As tight as docker's: no modules, no keyrings,
no io_uring, no userfaultfd, no clock, no namespaces without CAP_SYS_ADMIN, no AF_ALG or AF_VSOCK sockets.
Source: the system call tables of Linux 6.12; man pages; moby's documentation of its profile.
"""

import errno
from collections.abc import Collection
from typing import Any, Final

from pyctr_wire.errors import InvalidArgument

_ALLOW: Final = "SCMP_ACT_ALLOW"
_ERRNO: Final = "SCMP_ACT_ERRNO"
_AF_ALG: Final = 38
_AF_VSOCK: Final = 40
# Clone flags that make namespaces: NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET.
_NAMESPACE_FLAGS: Final = 0x7E020000
_PER_LINUX: Final = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

_ALWAYS: Final = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32
clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv
futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority
getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc
kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules
lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync
munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv
recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2
restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes
vfork vmsplice wait4 waitid waitpid write writev process_vm_readv process_vm_writev ptrace
"""

_WITH_CAPABILITY: Final = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount
        mount_setattr move_mount open_tree perf_event_open quotactl
        quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}
_ONLY_ON: Final = {
    "x86_64": "arch_prctl modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "armv7l": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "riscv64": "riscv_flush_icache",
    "ppc64le": "sync_file_range2 swapcontext",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
}


def _rule(names: list[str], action: str = _ALLOW, *args: dict[str, Any], errno_: int | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    if args:
        rule["args"] = list(args)
    if errno_ is not None:
        rule["errnoRet"] = errno_
    return rule


def _equals(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def default_profile(capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return `linux.seccomp` for a process with these capabilities on this machine (uname -m)."""
    allowed = set(_ALWAYS.split()) | set(_ONLY_ON.get(machine, "").split())
    for capability, names in _WITH_CAPABILITY.items():
        if capability in capabilities:
            allowed |= set(names.split())
    rules = [_rule(sorted(allowed))]
    # The socket families are numbered without gaps, so "neither of two" is three ranges.
    rules += [
        _rule(["socket"], _ALLOW, {"index": 0, "value": _AF_ALG, "op": "SCMP_CMP_LT"}),
        _rule(["socket"], _ALLOW, _equals(0, _AF_ALG + 1)),
        _rule(["socket"], _ALLOW, {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_GT"}),
        # The old way to the same on x86 and s390, with its arguments in memory where a filter cannot look.
        _rule(["socketcall"], _ERRNO, errno_=errno.ENOSYS),
    ]
    rules += [_rule(["personality"], _ALLOW, _equals(0, value)) for value in _PER_LINUX]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags_at = 1 if machine.startswith("s390") else 0
        no_namespaces = {"index": flags_at, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append(_rule(["clone"], _ALLOW, no_namespaces))
        # Its flags lie in memory too: C libraries fall back to clone.
        rules.append(_rule(["clone3"], _ERRNO, errno_=errno.ENOSYS))
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": errno.EPERM,
        "architectures": list(_ARCHITECTURES.get(machine, ())),
        "syscalls": rules,
    }


def from_docker_profile(document: dict[str, Any], capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return `linux.seccomp` for a profile in docker's form, which an OCI profile is a simple case of.

    Rules whose `includes` or `excludes` do not fit this container are left out. Raises InvalidArgument.
    Source: moby's documentation of seccomp profiles.
    """
    result: dict[str, Any] = {key: document[key] for key in _COPIED if key in document}
    if "archMap" in document:
        result["architectures"] = list(_ARCHITECTURES.get(machine, ()))
    rules = []
    for rule in _list(document.get("syscalls"), "syscalls"):
        if not isinstance(rule, dict) or "action" not in rule:
            raise InvalidArgument("the seccomp profile has a rule without an action")
        if not _applies(rule, capabilities, machine):
            continue
        names = rule.get("names") or [rule.get("name")]
        kept = {key: rule[key] for key in ("action", "errnoRet", "args") if rule.get(key) is not None}
        rules.append({"names": names, **kept})
    result["syscalls"] = rules
    return result


_COPIED: Final = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata")
_GO_MACHINES: Final = {"x86_64": ("amd64", "x86", "x32"), "aarch64": ("arm64", "arm"), "armv7l": ("arm",)}


def _list(value: Any, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidArgument(f"{name} of the seccomp profile is not a list")
    return value


def _applies(rule: dict[str, Any], capabilities: Collection[str], machine: str) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    here = _GO_MACHINES.get(machine, (machine,))
    if any(name not in capabilities for name in includes.get("caps") or ()):
        return False
    if includes.get("arches") and not set(includes["arches"]) & set(here):
        return False
    return not (set(excludes.get("caps") or ()) & set(capabilities) or set(excludes.get("arches") or ()) & set(here))
