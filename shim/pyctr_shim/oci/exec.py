"""A further process of a running container, from fork to exec.

The parent has forked this child into the container's PID namespace already; here it joins the
cgroup, then all other namespaces in one setns, and becomes what the process document says.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from pyctr_shim.oci import (
    console,
    identity,
    lockdown,
    lsm,
    program,
    rlimits,
    scheduling,
    seccomp,
    user,
    validate,
)
from pyctr_shim.oci.cgroups import Cgroup
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_sys.namespaces import Clone, setns
from pyctr_sys.process import join_session_keyring, set_dumpable, set_name

_BY_FORK: Final = Clone.NEWPID | Clone.NEWTIME  # what a process only gets for its children


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent hands to the child by fork."""

    id: str
    init_pid: int
    init_pidfd: int
    namespaces: int
    cgroup: Cgroup
    seccomp: str
    seccomp_flags: int
    process: bytes
    stdio: tuple[int, int, int]
    preserve_fds: int
    no_new_keyring: bool
    console_size: tuple[int, int] | None
    in_cgroup: bool  # the fork has put it there already


def become(request: Request, channel: Channel) -> NoReturn:
    """Run in the forked child: join the container and execute the program; whatever fails is told to the parent."""
    try:
        lockdown.die_with_parent(channel)
        init_pidfd = lockdown.take_stdio(request.stdio, channel, request.preserve_fds, also=request.init_pidfd)
        error = _join(replace(request, init_pidfd=init_pidfd), channel)
        channel.fail(str(error), error.errno)
    except OciError as error:
        channel.fail(str(error), error.errno)
    except BrokenPipeError:
        pass  # the parent is gone
    except OSError as error:
        channel.fail(f"error during exec: {describe(error)}", error.errno or 0)
    except Exception as error:
        # A bug of ours. The parent is the top that it reaches: this process has no log and no way to make a trace.
        channel.fail(f"internal error during exec: {type(error).__name__}: {error}", 0)
    finally:
        os._exit(1)


def _join(request: Request, channel: Channel) -> OciError:
    """Go through all steps; returns only if the last one, the exec, fails."""
    process = validate.load_process(request.process)
    if not request.in_cgroup:
        request.cgroup.join()
    rlimits.raise_hard(process.get("rlimits") or ())
    scheduling.set_oom_score(process.get("oomScoreAdj"))
    scheduling.apply(process)
    scheduling.set_affinity(process)
    filter_ = seccomp.read(request.seccomp, request.seccomp_flags)
    lsm.set_exec_label(lockdown.open_proc(), process)  # as the host's root: another user may not write it

    # From here on the container can see this process, and its files can be found by it.
    lockdown.forbid_imports()
    set_dumpable(0)
    set_name("pyctr-exec")
    setns(request.init_pidfd, request.namespaces & ~_BY_FORK)
    if request.namespaces & Clone.NEWUSER:
        user.become_root()
    os.umask(0)
    os.setsid()
    if not request.no_new_keyring:
        _join_keyring(request.id)
    uid = (process.get("user") or {}).get("uid") or 0
    if process.get("terminal"):
        _open_terminal(process, request.console_size, uid, channel)
    else:
        user.give_stdio(uid)
    ready = identity.assume(process, filter_)
    env = user.environment(process)
    user.add_home(env, uid)
    path = program.find(process["args"][0], env)
    program.reset_signals()
    lockdown.outlive_parent()
    ready.seal()
    return program.execute(path, process["args"], env)


def _join_keyring(container: str) -> None:
    try:
        join_session_keyring(f"_ses.{container}")
    except OSError:
        return  # a kernel without keyrings, or a full quota: then there is none to share either


def _open_terminal(process: Mapping[str, Any], size: tuple[int, int] | None, uid: int, channel: Channel) -> None:
    root_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    master_fd, peer_fd = console.open_pair(root_fd, console.size_of(process) or size)
    channel.send(Message.CONSOLE, [master_fd])
    os.close(master_fd)
    os.close(root_fd)
    console.take(peer_fd, uid)
