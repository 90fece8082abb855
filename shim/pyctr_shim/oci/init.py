"""The steps that make a container, and the forked process that takes them all and becomes its first one.

A crash between two steps leaves what state.json names (written before the first cgroup), and the parent, or
whoever reads that file later, removes it. in_place.py takes most of the same steps without a fork.

Where the first fork is not enough (a user namespace, a joined or no PID namespace, cgroup v2), the
child is a *stager*: it prepares everything as the host's root, clones the real init as its sibling
and ends.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from pyctr_shim.oci import (
    capabilities,
    console,
    devices,
    hooks,
    identity,
    lockdown,
    lsm,
    masked_paths,
    mounts,
    namespaces,
    program,
    rdt,
    rlimits,
    rootfs,
    scheduling,
    seccomp,
    state,
    sysctl,
    user,
    validate,
)  # fmt: skip
from pyctr_shim.oci.cgroups import Cgroup, Hierarchies, cgroup_for, cgroup_path, mount_view, owner_of
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel, Message
from pyctr_shim.oci.mounts import PlannedMount
from pyctr_shim.oci.namespaces import Plan
from pyctr_shim.oci.rootfs import RootfsMount
from pyctr_shim.oci.service import NOTHING, Service
from pyctr_shim.oci.state import State, Status
from pyctr_sys.mount import MountFlag, mount
from pyctr_sys.namespaces import Clone, clone3, in_user_namespace
from pyctr_sys.openat2 import O_PATH, make_directories
from pyctr_sys.pidfd import start_ticks
from pyctr_sys.process import join_session_keyring, set_dumpable, set_name, setdomainname, sethostname

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Restore

_SPEC = "config.json"
_NO_PROCESS: Mapping[str, Any] = {"args": [], "cwd": "/"}  # what is created can be looked at, but not started
_IN_CHILD = Clone.NEWPID | Clone.NEWUSER  # what clone3 makes for the stager
_PLACE = O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Request:
    """What the parent hands to the child by fork."""

    id: str
    bundle: str
    state_directory: str
    stdio: tuple[int, int, int]
    preserve_fds: int
    rootfs: tuple[RootfsMount, ...]
    no_pivot_root: bool
    no_new_keyring: bool
    console_size: tuple[int, int] | None
    start_fd: int  # a listening socket that the start comes over, -1 for the channel itself
    seccomp_cache: str
    systemd_cgroup: bool
    entered: bool  # the container's user namespace
    hierarchies: Hierarchies
    staged: bool
    checkpoint: "Restore | None" = None  # what to restore, instead of executing a program
    service: Service = NOTHING


@dataclass(slots=True)
class Build:
    """What the steps know and make."""

    request: Request
    spec: dict[str, Any]
    plan: Plan
    state: State
    cgroup: Cgroup
    mounts: list[PlannedMount] = field(default_factory=list)
    host_nodes: dict[str, int] = field(default_factory=dict)
    filter: seccomp.Filter | None = None
    groups: rdt.Groups | None = None
    root_fd: int = -1
    place_fd: int = -1  # where the root is attached in a mount namespace that is not the container's own
    proc_fd: int = -1
    terminal_fd: int = -1
    notes: list[str] = field(default_factory=list)
    connection: Channel | None = None  # of a forked process to its parent

    @property
    def channel(self) -> Channel:
        assert self.connection is not None
        return self.connection

    @property
    def linux(self) -> Mapping[str, Any]:
        return self.spec["linux"]  # type: ignore[no-any-return]

    @property
    def process(self) -> Mapping[str, Any]:
        return self.spec.get("process") or _NO_PROCESS


def become(request: Request, channel: Channel) -> NoReturn:
    """Run in the forked child: set up the container, wait for the start, execute its program."""

    def take() -> Request:
        start_fd = lockdown.take_stdio(request.stdio, channel, request.preserve_fds, also=request.start_fd)
        lockdown.die_with_parent(channel)
        return replace(request, start_fd=start_fd)

    _go(channel, take)


def _go(channel: Channel, take: Callable[[], Request]) -> NoReturn:
    """Take the request and its stdio, then all steps; whatever fails is told to the parent."""
    try:
        with explained():
            build = read(take())
            if build is None:
                channel.send(Message.RESTAGE)
            else:
                build.connection = channel
                for step in _STEPS:
                    step(build)
    except OciError as error:
        channel.fail(str(error), error.errno)
    except BrokenPipeError:
        pass  # the parent is gone, and with it the wish for this container
    finally:
        os._exit(1)


@contextmanager
def explained() -> Iterator[None]:
    """Make what goes wrong in the steps an OciError that tells it to a client; BrokenPipeError stays what it is."""
    try:
        yield
    except (OciError, BrokenPipeError):
        raise
    except OSError as error:
        raise OciError(f"error during container init: {describe(error)}", error.errno or 0) from None
    except RecursionError:  # what could be read can be too deep to be written down
        raise OciError(f"{_SPEC}: nested too deeply") from None
    except Exception as error:
        # A bug of ours. The client is the top that it reaches: the process may have no log and no way to make a trace.
        raise OciError(f"internal error during container init: {type(error).__name__}: {error}") from None


def read(request: Request) -> Build | None:
    """Read the spec; None if it takes a stager."""
    spec = _with_service(validate.load_spec(f"{request.bundle}/{_SPEC}"), request.service)
    linux = spec["linux"]
    root = os.path.normpath(os.path.join(request.bundle, spec["root"]["path"]))
    if request.rootfs:
        rootfs.check_place(root, request.bundle)
    plan = namespaces.plan(_without_entered(linux.get("namespaces") or (), request))
    if not request.staged and _needs_stager(plan):
        return None
    path = cgroup_path(linux.get("cgroupsPath") or "", request.id, of_systemd=request.systemd_cgroup)
    if path.startswith("/"):
        path = request.hierarchies.below_base(path)
    record = State(
        id=request.id,
        bundle=request.bundle,
        cgroup=path,
        created_ns=time.time_ns(),
        namespaces=plan.flags,
        own_pid_namespace=bool(plan.new & Clone.NEWPID),
        annotations=spec.get("annotations") or {},
        hooks={kind: list_ for kind, list_ in (spec.get("hooks") or {}).items() if list_},
        rootfs=root,
    )
    cgroup = cgroup_for(request.hierarchies, path)
    cgroup.check_unused()  # before the state names it: who undoes this creation ends what is in it
    return Build(request, spec, plan, record, cgroup)


def _with_service(spec: dict[str, Any], service: Service) -> dict[str, Any]:
    """Add what the container gets of the service that it is."""
    if service.env and spec.get("process"):
        spec["process"]["env"] = [*(spec["process"].get("env") or ()), *service.env]
    if service.mounts:
        spec["mounts"] = [*(spec.get("mounts") or ()), *service.mounts]
    return spec


def _without_entered(kinds: Sequence[Mapping[str, Any]], request: Request) -> list[Mapping[str, Any]]:
    """Leave out the user namespace if the runtime is in it already."""
    return [item for item in kinds if not (request.entered and item["type"] == "user")]


def _needs_stager(plan: Plan) -> bool:
    return not plan.new & Clone.NEWPID or plan.has(Clone.NEWUSER) or plan.has(Clone.NEWTIME)


# -- steps in the runtime's namespaces


def write_state(build: Build, pid: int = 0) -> None:
    """Write down what is about to be made, so that whoever comes after a crash finds it; `pid` is init's, if known."""
    request = build.request
    host_mount = ""
    if request.rootfs and wants_host_mount(build):
        host_mount = rootfs_directory(build)
    filter_ = seccomp.prepare(build.linux.get("seccomp"), request.seccomp_cache, request.state_directory)
    build.filter = filter_
    lsm.check_mount_label(build.linux.get("mountLabel") or "")
    build.groups = rdt.plan(build.linux.get("intelRdt"), request.id)
    build.state = replace(
        build.state,
        pid=pid,
        start_ticks=start_ticks(pid) if pid else 0,
        host_mount=host_mount,
        seccomp=filter_.path if filter_ else "",
        seccomp_flags=filter_.flags if filter_ else 0,
        linux=_for_later(build),
    )
    state.write(request.state_directory, build.state)


def _write_own_state(build: Build) -> None:
    """Write it with this process's pid as the host knows it, whose /proc is still ours, if this one will be init."""
    write_state(build, 0 if build.request.staged else int(os.readlink("/proc/self")))


def _for_later(build: Build) -> dict[str, Any]:
    """Return what of linux the state keeps, see there."""
    linux = build.linux
    kept = {name: linux[name] for name in ("personality", "memoryPolicy") if linux.get(name)}
    if build.filter and build.filter.notifies:
        profile = linux["seccomp"]
        kept["listener"] = {"path": profile["listenerPath"], "metadata": profile.get("listenerMetadata") or ""}
    if build.groups:
        kept |= {"rdt": build.groups.joined, "rdtMade": build.groups.made}
    if build.plan.mounts_fd >= 0:
        kept["attached"] = True
    return kept


def wants_host_mount(build: Build) -> bool:
    """Whether the host must see the root: hooks of its side look at it, mounts are to travel out of it, or devices.

    The container's cgroup may not use the devices, and its namespaces may not keep the program, that a mount needs.
    """
    propagation = build.linux.get("rootfsPropagation") or ""
    return (
        bool(build.state.hooks.keys() & {"prestart", "createRuntime"})
        or rootfs.is_shared(propagation)
        or not all(rootfs.is_of_directories(item) for item in build.request.rootfs)
    )


def rootfs_directory(build: Build) -> str:
    """Return where root.path of the spec is."""
    return os.path.join(build.request.bundle, build.spec["root"]["path"])


def make_cgroup(build: Build, pid: int = 0) -> None:
    """Make the container's cgroup, with its limits; `pid` as Cgroup.create has it."""
    build.cgroup.create(pid)
    build.cgroup.apply(build.linux.get("resources") or {})
    if (uid := owner_of(build.spec)) is not None:
        build.cgroup.delegate(uid)


def _join_cgroup(build: Build) -> None:
    make_cgroup(build)
    # Moving oneself is cheap on v1. On v2 being cloned into the cgroup is, unless a joined user
    # namespace will by then have taken the right to it away.
    if not build.cgroup.directory_for_clone() or Clone.NEWUSER in build.plan.joined:
        build.cgroup.join()
    if build.groups:
        rdt.make(build.groups)


def open_sources(build: Build) -> None:
    """Open what of the host's the container is to see."""
    label = build.linux.get("mountLabel") or ""
    build.mounts = mounts.plan(build.spec.get("mounts") or (), build.request.bundle, label, partial(_user_maps, build))
    build.notes += mounts.without_effect(build.mounts)
    if build.plan.has(Clone.NEWUSER) or in_user_namespace():
        build.host_nodes = devices.open_host_nodes(build.linux.get("devices") or ())
    build.proc_fd = lockdown.open_proc()


def mount_for_host(build: Build) -> None:
    """Mount the root where the host sees it, if it must; before the cgroup is joined, and with it its devices.

    And make the place for one that is to be seen in another mount namespace.
    """
    if build.plan.mounts_fd >= 0:
        build.place_fd = _make_place(build.plan, state.attached(build.request.state_directory))
    if build.state.host_mount:
        os.makedirs(build.state.host_mount, 0o711, exist_ok=True)
        rootfs.mount_rootfs(build.request.rootfs, build.state.host_mount)


def _make_place(plan: Plan, directory: str) -> int:
    """Make an empty directory and return an fd of it as the mount namespace that is to be joined has it.

    Raises OciError for a namespace that is none of mounts, or has something else there: whoever removes the directory
    would leave the root in it.
    """
    os.mkdir(directory, 0o711)
    own_fd = os.open(directory, _PLACE)
    if not plan.mounts_by_path:
        return own_fd
    try:
        with namespaces.visited(plan.mounts_fd, Clone.NEWNS):
            place_fd = os.open(directory, _PLACE)
    except (FileNotFoundError, NotADirectoryError):
        place_fd = -1
    except OSError as error:
        raise OciError(f"linux.namespaces: mount: {describe(error)}", error.errno or 0) from None
    if place_fd < 0 or not os.path.samestat(os.fstat(place_fd), os.fstat(own_fd)):
        raise OciError(f"linux.namespaces: mount: the host's {directory} is not to be seen there", errno.ENOENT)
    os.close(own_fd)
    return place_fd


def _user_maps(build: Build) -> int:
    """Return an fd of a user namespace with the maps of the container's, which may not be there yet."""
    if Clone.NEWUSER in build.plan.joined:
        return os.dup(build.plan.joined[Clone.NEWUSER])
    return namespaces.with_maps(build.linux["uidMappings"], build.linux["gidMappings"])


def _set_own_limits(build: Build) -> None:
    process = build.process
    build.notes += scheduling.set_oom_score(process.get("oomScoreAdj"))
    rlimits.raise_hard(process.get("rlimits") or ())
    scheduling.apply(process)
    if build.plan.has(Clone.NEWUSER):
        # Root of a user namespace may not write here any more. It holds for the next exec of whoever is cloned.
        lsm.set_exec_label(build.proc_fd, process)


def _enter_namespaces(build: Build) -> None:
    """Leave the runtime's namespaces. In a stager, the process that returns from here is the clone."""
    plan, with_user = build.plan, build.plan.has(Clone.NEWUSER)
    first = Clone.NEWNS if with_user else plan.new & ~(Clone.NEWPID | Clone.NEWTIME | Clone.NEWCGROUP)
    if not build.request.staged:
        first |= Clone.NEWCGROUP  # the cgroup has been joined already
    plan.enter_new(first)
    prepare_root(build)
    plan.join()
    if build.request.staged:
        _clone_init(build)
        plan.enter_new(plan.new & ~(Clone.NEWPID | Clone.NEWUSER | Clone.NEWTIME | (0 if with_user else first)))
    scheduling.set_lasting(build.linux)


def prepare_root(build: Build) -> None:
    """Mount the root file system in the container's mount namespace, and open a copy of all of it."""
    propagation = rootfs.propagation_flag(build.linux.get("rootfsPropagation") or "")
    # The copy of the host's mounts must not send anything back.
    mount(None, "/", None, MountFlag.REC | MountFlag.SLAVE)
    directory = rootfs_directory(build)
    if build.request.rootfs and not build.state.host_mount:
        os.makedirs(directory, 0o711, exist_ok=True)
        rootfs.mount_rootfs(build.request.rootfs, directory)
    build.root_fd = rootfs.clone_tree(directory)
    rootfs.set_propagation(build.root_fd, propagation)


def _clone_init(build: Build) -> None:
    """Clone the real init where this process cannot be it; returns in whoever goes on as init."""
    plan, cgroup_directory = build.plan, build.cgroup.directory_for_clone()
    if Clone.NEWUSER in plan.joined:
        cgroup_directory = ""
    if not (plan.has(Clone.NEWPID) or plan.has(Clone.NEWUSER) or plan.has(Clone.NEWTIME) or cgroup_directory):
        build.state = build.state.with_pid(os.getpid())
        state.write(build.request.state_directory, build.state)
        return
    if plan.new & Clone.NEWTIME:
        namespaces.enter_time(build.linux.get("timeOffsets") or {})
    flags = Clone.PARENT | plan.new & _IN_CHILD
    cgroup_fd = -1
    if cgroup_directory:
        cgroup_fd = os.open(cgroup_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flags |= Clone.INTO_CGROUP
    ready_fd, go_fd = os.pipe()
    # A sibling, not a child: the parent is who waits for it. It inherits this process's exit signal.
    pid, _pidfd = clone3(flags, 0, max(cgroup_fd, 0))
    if pid:
        # Told first: whatever fails now, the parent knows whom to end.
        build.channel.send(Message.INIT, pid=pid)
        if plan.new & Clone.NEWUSER:
            namespaces.write_maps(pid, build.linux["uidMappings"], build.linux["gidMappings"])
        build.state = build.state.with_pid(pid)
        state.write(build.request.state_directory, build.state)
        os.write(go_fd, b"1")
        os._exit(0)
    lockdown.die_with_parent(build.channel)
    os.close(go_fd)
    if os.read(ready_fd, 1) != b"1":
        os._exit(1)  # the stager has failed and said why
    os.close(ready_fd)
    if cgroup_fd >= 0:
        os.close(cgroup_fd)
    if plan.has(Clone.NEWUSER):
        user.become_root(build.process.get("user") or {})


# -- steps in the container's namespaces, still on the host's root


def _detach(build: Build) -> None:
    """From here on the container's files are within reach: nothing of ours may be replaced by them."""
    lockdown.forbid_imports()
    set_dumpable(0)
    set_name("pyctr-init")
    os.setsid()
    os.umask(0)
    if not build.request.no_new_keyring:
        try:
            join_session_keyring(f"_ses.{build.request.id}")
        except OSError as error:
            build.notes.append(f"no session keyring: {error.strerror}")
    set_up_namespaces(build)


def set_up_namespaces(build: Build) -> None:
    """Give new network and UTS namespaces what they begin with."""
    if build.plan.new & Clone.NEWNET:
        namespaces.bring_loopback_up()
    if name := build.spec.get("hostname"):
        sethostname(name)
    if name := build.spec.get("domainname"):
        setdomainname(name)


def mount_everything(build: Build) -> None:
    """Mount all of the spec, and fill /dev."""
    linux = build.linux
    propagation = rootfs.propagation_flag(linux.get("rootfsPropagation") or "")
    rootfs.attach(build.root_fd)
    own_namespace = build.plan.has(Clone.NEWCGROUP)

    def mount_cgroup(destination: str, flags: int) -> None:
        hierarchies = build.request.hierarchies
        mount_view(build.root_fd, destination, flags, build.cgroup, hierarchies, own_namespace=own_namespace)

    mounts.mount_all(build.root_fd, build.mounts, propagation, mount_cgroup)
    if not any(item.destination == "/dev" and item.tree_fd >= 0 for item in build.mounts):
        devices.populate(build.root_fd, linux.get("devices") or (), build.host_nodes)


def open_console(build: Build) -> int:
    """Make the terminal that the spec asks for, and return its master; -1 if it does not."""
    if not build.process.get("terminal"):
        return -1
    size = console.size_of(build.process) or build.request.console_size
    master_fd, build.terminal_fd = console.open_pair(build.root_fd, size)
    console.bind_console(build.root_fd, build.terminal_fd)
    return master_fd


def _send_console(build: Build) -> None:
    master_fd = open_console(build)
    if master_fd >= 0:
        build.channel.send(Message.CONSOLE, [master_fd])
        os.close(master_fd)


def _run_hooks(build: Build) -> None:
    found = build.state.hooks
    if devices_ := build.linux.get("netDevices"):
        build.channel.send(Message.NETWORK, devices=devices_)
        if build.channel.receive() is None:
            os._exit(1)
    if found.keys() & {"prestart", "createRuntime"}:
        build.channel.send(Message.HOOKS)
        if build.channel.receive() is None:
            os._exit(1)  # a hook failed; the parent knows
    if create := found.get("createContainer"):
        hooks.run("createContainer", create, build.state.document(Status.CREATING))


def hide(build: Build) -> None:
    """Set sysctls, and keep from the container what it shall not see or change."""
    linux = build.linux
    _make_working_directory(build)
    sysctl.apply(build.proc_fd, linux.get("sysctl") or {})
    masked_paths.make_readonly(build.root_fd, linux.get("readonlyPaths") or ())
    masked_paths.mask(build.root_fd, linux.get("maskedPaths") or ())
    if build.spec["root"].get("readonly"):
        rootfs.make_readonly(build.root_fd)


def _set_label(build: Build) -> None:
    if not build.plan.has(Clone.NEWUSER):
        lsm.set_exec_label(build.proc_fd, build.process)  # after the hooks, which are not to run under it


def _make_working_directory(build: Build) -> None:
    """Make it where it is missing, as runc does; what cannot be made is reported by who enters it."""
    with suppress(OSError):
        os.close(make_directories(build.root_fd, build.process["cwd"]))


def pivot(build: Build) -> None:
    """Leave the host's root behind."""
    if build.plan.mounts_fd >= 0:
        rootfs.move_to(build.plan.mounts_fd, build.root_fd, build.place_fd)
    elif build.request.no_pivot_root:
        rootfs.move(build.root_fd)
    else:
        rootfs.pivot(build.root_fd, rootfs.propagation_flag(build.linux.get("rootfsPropagation") or ""))
    os.close(build.root_fd)
    os.close(build.proc_fd)


# -- steps in the container's root


def _become_user(build: Build) -> None:
    process = build.process
    uid = (process.get("user") or {}).get("uid") or 0
    if build.terminal_fd >= 0:
        console.take(build.terminal_fd, uid)
    else:
        user.give_stdio(uid)
    own = capabilities.own() if build.plan.has(Clone.NEWUSER) else capabilities.inherited()
    ready = identity.Identity(process, build.filter, *own)
    build.notes += ready.notes
    ready.assume()
    env = user.environment(process)
    user.add_home(env, uid)
    path = program.find(process["args"][0], env) if process["args"] else ""
    program.reset_signals()  # before the wait: after it, only what must be is left to do
    lockdown.outlive_parent()  # from here on, the end of the channel says the same; a detached container is to live on
    tell_created(build)
    _wait_for_start(build)
    if not path:
        raise OciError("process: is required to start a container")
    if found := build.state.hooks.get("startContainer"):
        hooks.run("startContainer", found, build.state.document(Status.CREATED, 1))
    ready.seal(build.channel)
    error = program.execute(path, process["args"], env)
    build.channel.fail(str(error), error.errno)


def tell_created(build: Build) -> None:
    """Tell the parent that the container is ready to be started, and what it has to know of it."""
    build.channel.send(Message.CREATED, **created(build))


def created(build: Build) -> dict[str, Any]:
    """Return what a container's parent has to know of it."""
    return {
        "pid": build.state.pid,
        "namespaces": build.state.namespaces,
        "own_pid_namespace": build.state.own_pid_namespace,
        "cgroup": build.state.cgroup,
        "seccomp": build.state.seccomp,
        "seccomp_flags": build.state.seccomp_flags,
        "linux": build.state.linux,
        "hooks": sorted(build.state.hooks),
        "host_mount": build.state.host_mount,
        "notes": build.notes,
    }


def _wait_for_start(build: Build) -> None:
    if build.request.start_fd >= 0:
        build.channel.accept_in_place(build.request.start_fd)
    if build.channel.receive() is None:
        os._exit(0)  # deleted before it was started, or the shim is gone


_STEPS: tuple[Callable[[Build], None], ...] = (
    _write_own_state, mount_for_host, _join_cgroup, open_sources, _set_own_limits, _enter_namespaces, _detach,
    mount_everything, _send_console, _run_hooks, hide, _set_label, pivot, _become_user,
)  # fmt: skip
