"""Practice: execs planned and containers made, to fit the code to its operands and to learn which pages that touches.

After a fork, a page is copied when it is first written to, and reference counts are written to all the time: some
800 of the interpreter's pages, 3 to 5 microseconds each. A child forked ahead can have that behind it, if it is
known which ones. So one container is made, up to the moment of executing its program, and looked at from outside.
That moment is held by a lease on the program: who opens a leased file waits until the lease is given up.
Source: fcntl(2).
"""

import fcntl
import json
import os
import signal
import struct
from _thread import get_native_id
from array import array
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from pyctr_shim.oci import exec as joining
from pyctr_shim.oci import init, runtime
from pyctr_shim.oci.cgroups import cgroup_for, mounted
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.scratch import cgroup_of, practice_directory
from pyctr_sys import pagemap
from pyctr_sys.namespaces import Clone, setns
from pyctr_sys.pidfd import wait
from pyctr_wire.oci import default_spec

_ROUNDS: Final = 8
_PROGRAM: Final = "/program"
_WITH_A_WAY_BACK: Final = ("pid", "mount")  # the first is for children only, and there are none
_ARRIVAL_SECONDS: Final = 0.1
_F_SETOWN_EX: Final = 15
_F_OWNER_TID: Final = 0
_OWNER: Final = struct.Struct("ii")


def touched_pages() -> pagemap.Ranges:
    """Learn the pages that a container's init touches between fork and exec; none where that cannot be done.

    Makes a container with an empty root and a cgroup of its own and removes it. Must run in the very process, or an
    ancestor of it without an exec between them, that forks ahead: addresses only mean something there.
    """
    was_blocked = signal.SIGIO in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    try:
        with practice_directory() as directory:
            return _learn(Path(directory))
    except (OciError, OSError):
        return array("Q")  # what is wrong, the first container tells whoever wants it
    finally:
        signal.sigtimedwait({signal.SIGIO}, 0)
        if not was_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})


def plan_execs() -> None:
    """Plan an exec a few times, into our own namespaces, without doing it: CPython fits the code to its operands."""
    pid = os.getpid()
    with open(os.devnull, "r+b", buffering=0) as null:
        pidfd = os.pidfd_open(pid)
        request = joining.Request(
            id="practice",
            init_pid=pid,
            init_pidfd=pidfd,
            namespaces=Clone.NEWNS | Clone.NEWNET,
            cgroup=cgroup_for(mounted(), "/"),
            seccomp="",
            seccomp_flags=0,
            linux={},
            process=json.dumps({**default_spec.default_process(), "args": ["/bin/true"]}).encode(),
            stdio=(null.fileno(), null.fileno(), null.fileno()),
            preserve_fds=0,
            no_new_keyring=False,
            console_size=None,
            in_cgroup=False,
        )
        with suppress(OciError, OSError):  # whoever wants to exec is told what is wrong
            for _ in range(_ROUNDS):
                with closing(joining.Joiner(request)) as joiner:
                    joiner.straight()
        os.close(pidfd)


def rehearse() -> None:
    """Make a container in this process a few times, as far as there is a way back: for what `plan_execs` is for.

    This process is in its root directory then.
    """
    own_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    ours, theirs = Channel.pair()
    with practice_directory() as directory, closing(ours), closing(theirs):
        mount = _prepare(Path(directory), _WITH_A_WAY_BACK)
        request = init.Request(
            id=os.path.basename(directory),
            bundle=directory,
            state_directory=directory,
            stdio=(-1, -1, -1),
            preserve_fds=0,
            rootfs=(mount,),
            no_pivot_root=False,
            no_new_keyring=False,
            console_size=None,
            start_fd=-1,
            entered=False,
            seccomp_cache="",
            systemd_cgroup=False,
            hierarchies=mounted(),
            staged=False,
        )
        for _ in range(_ROUNDS):
            try:
                init.rehearse(request, theirs)
            except (OciError, OSError):
                break  # what is wrong, the first container tells whoever wants it
            finally:
                setns(own_fd, Clone.NEWNS)
                cgroup_for(mounted(), mounted().below_base(cgroup_of(directory))).remove()
    os.close(own_fd)


def _learn(directory: Path) -> pagemap.Ranges:
    mount = _prepare(directory)
    program = directory / "rootfs" / _PROGRAM.lstrip("/")
    null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stdio = runtime.Stdio(null_fd, null_fd, null_fd)
    container = runtime.create(directory.name, str(directory), stdio, runtime.CreateOptions(rootfs=(mount,)))
    try:
        assert container.channel is not None
        with _held(program):
            container.channel.send(Message.START)
            # In time or not: what it has touched by then is what we learn.
            signal.sigtimedwait({signal.SIGIO}, _ARRIVAL_SECONDS)
            return pagemap.touched(container.pid)
    finally:
        os.close(null_fd)
        container.kill(signal.SIGKILL)
        wait(container.pidfd)
        container.delete()


def _prepare(directory: Path, namespaces: Collection[str] = ()) -> runtime.RootfsMount:
    """Write a bundle, and return how to mount its root, which has but a file that passes for a program."""
    spec = default_spec.default_spec()
    spec["process"]["args"] = [_PROGRAM]
    linux = spec["linux"]
    linux["cgroupsPath"] = cgroup_of(str(directory))
    if namespaces:
        linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] in namespaces]
    (directory / "config.json").write_text(json.dumps(spec))
    root = directory / "rootfs"
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    (root / _PROGRAM.lstrip("/")).touch(0o755)
    return runtime.RootfsMount("bind", str(root), "", ("rbind", "rw"))


@contextmanager
def _held(program: Path) -> Iterator[None]:
    """Make whoever executes the program wait; SIGIO, which must be blocked, says that somebody does."""
    lease_fd = os.open(program, os.O_RDWR | os.O_CLOEXEC)
    try:
        # To this very thread, which has the signal blocked: another one of the process would die of it.
        fcntl.fcntl(lease_fd, _F_SETOWN_EX, _OWNER.pack(_F_OWNER_TID, get_native_id()))
        fcntl.fcntl(lease_fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(lease_fd)
