"""Failures become OSErrors; small wrappers that need no privilege."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyctr_sys import bpf, calls, capabilities, mount, namespaces, pidfd, process


def test_a_failure_names_call_reason_and_path() -> None:
    with pytest.raises(OSError, match="umount2: ") as caught:
        mount.umount2("/no/such/place")

    assert caught.value.errno in {errno.ENOENT, errno.EPERM}
    assert caught.value.filename == "/no/such/place"
    assert calls.check(3, "call") == 3


def test_flags_show_by_name() -> None:
    with pytest.raises(OSError, match="NEWNET"):
        namespaces.setns(-1, namespaces.Clone.NEWNET)


def test_capability_names_have_the_kernels_numbers() -> None:
    assert [capabilities.NAMES.index(f"CAP_{name}") for name in ("CHOWN", "SYS_ADMIN", "SYS_RESOURCE", "BPF")] == [
        0,
        21,
        24,
        39,
    ]
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    status = {words[0].rstrip(":"): words[1] for words in lines if words[0].startswith("Cap")}

    effective, permitted, inheritable = capabilities.capget()

    assert effective == int(status["CapEff"], 16)
    assert permitted == int(status["CapPrm"], 16)
    assert inheritable == int(status["CapInh"], 16)
    assert capabilities.bounding_set() == int(status["CapBnd"], 16)


def test_pidfds_wait_and_signal() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        fd = pidfd.pidfd_open(child.pid)
        assert pidfd.start_ticks(child.pid) > 0

        pidfd.pidfd_send_signal(fd, signal.SIGTERM)

        result = pidfd.wait(fd)
        assert result is not None
        assert result.si_status == signal.SIGTERM
        assert pidfd.wait(fd) is None
        with pytest.raises(ProcessLookupError):
            pidfd.pidfd_send_signal(fd, signal.SIGTERM)
        os.close(fd)
        child.returncode = -signal.SIGTERM


def test_close_range_and_file_system_types() -> None:
    code = (
        "import os, sys; from pyctr_sys.process import close_range;"
        "fds = [os.dup(0) for _ in range(5)]; close_range(fds[1], fds[3]);"
        "print([os.path.exists(f'/proc/self/fd/{fd}') for fd in fds])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    fd = os.open("/proc", os.O_RDONLY)

    assert output == "[True, False, False, False, True]\n"
    assert process.file_system_type(fd) == process.PROC_SUPER_MAGIC
    os.close(fd)


def test_structures_have_the_kernels_sizes() -> None:
    sizes = {"open_how": 24, "mount_attr": 32, "clone_args": 88, "cap_data": 12, "sched_attr": 56}

    assert {name: calls.ffi.sizeof(f"struct {name}") for name in sizes} == sizes


def test_a_program_that_is_none_is_refused() -> None:
    with pytest.raises(OSError, match="PROG_LOAD"):
        bpf.load_device_program(b"\0" * 8)


def test_a_failed_mount_says_what_was_tried() -> None:
    """In the words of mount(2), for whoever reads the error of a container's start."""
    with pytest.raises(OSError, match=r"mount nonsense \(NOSUID\|NODEV, 'size=1'\): "):
        mount.mount("source", "/nonexistent", "nonsense", mount.MountFlag.NOSUID | mount.MountFlag.NODEV, "size=1")
    with pytest.raises(OSError, match=r"mount nonsense \(0, ''\): "):
        mount.mount("source", "/nonexistent", "nonsense", 0)
