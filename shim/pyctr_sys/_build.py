"""cffi declarations, compiled out of line into `_abi.py` (no compiler, no pycparser at run time).

`syscall` is declared with six fixed words instead of `...`: a variadic call makes cffi build a
call description each time, and every Linux ABI that CPython runs on passes both forms alike.
"""

from cffi import FFI

ffi = FFI()
ffi.cdef(
    """
    int unshare(int flags);
    int setns(int fd, int nstype);
    int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);
    int umount2(const char *target, int flags);
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
    long syscall(long number, intptr_t a, intptr_t b, intptr_t c, intptr_t d, intptr_t e, intptr_t f);
    int sethostname(const char *name, size_t length);
    int setdomainname(const char *name, size_t length);
    int capget(void *header, void *data);
    int capset(void *header, const void *data);
    int fstatfs(int fd, void *buf);
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset);
    int mprotect(void *addr, size_t length, int prot);
    int madvise(uintptr_t addr, size_t length, int advice);
    int syncfs(int fd);
    int malloc_trim(size_t pad);

    struct open_how { uint64_t flags; uint64_t mode; uint64_t resolve; };
    struct mount_attr { uint64_t attr_set; uint64_t attr_clr; uint64_t propagation; uint64_t userns_fd; };
    struct clone_args {
        uint64_t flags; uint64_t pidfd; uint64_t child_tid; uint64_t parent_tid; uint64_t exit_signal;
        uint64_t stack; uint64_t stack_size; uint64_t tls; uint64_t set_tid; uint64_t set_tid_size; uint64_t cgroup;
    };
    struct cap_header { uint32_t version; int pid; };
    struct cap_data { uint32_t effective; uint32_t permitted; uint32_t inheritable; };
    struct sock_fprog { unsigned short len; void *filter; };
    struct sched_attr {
        uint32_t size; uint32_t sched_policy; uint64_t sched_flags; int32_t sched_nice; uint32_t sched_priority;
        uint64_t sched_runtime; uint64_t sched_deadline; uint64_t sched_period; uint32_t sched_util_min;
        uint32_t sched_util_max;
    };
    struct bpf_prog_load {
        uint32_t prog_type; uint32_t insn_cnt; uint64_t insns; uint64_t license; uint32_t log_level;
        uint32_t log_size; uint64_t log_buf; uint32_t kern_version; uint32_t prog_flags; char prog_name[16];
    };
    struct bpf_prog_attach {
        uint32_t target_fd; uint32_t attach_bpf_fd; uint32_t attach_type; uint32_t attach_flags;
        uint32_t replace_bpf_fd;
    };
    struct bpf_prog_query {
        uint32_t target_fd; uint32_t attach_type; uint32_t query_flags; uint32_t attach_flags;
        uint64_t prog_ids; uint32_t prog_cnt;
    };

    typedef void *scmp_filter_ctx;
    struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
    scmp_filter_ctx seccomp_init(uint32_t def_action);
    void seccomp_release(scmp_filter_ctx ctx);
    int seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch_token);
    int seccomp_attr_set(scmp_filter_ctx ctx, int attr, uint32_t value);
    int seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int arg_cnt,
                               const struct scmp_arg_cmp *arg_array);
    int seccomp_syscall_resolve_name_arch(uint32_t arch_token, const char *name);
    uint32_t seccomp_arch_resolve_name(const char *arch_name);
    uint32_t seccomp_arch_native(void);
    struct scmp_version { unsigned int major; unsigned int minor; unsigned int micro; };
    const struct scmp_version *seccomp_version(void);
    int seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);
    """
)
ffi.set_source("pyctr_sys._abi", None)
