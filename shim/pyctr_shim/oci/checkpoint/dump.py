"""Saving a container's processes.

The container stands still while CRIU works and goes on if CRIU fails. What is mounted in it and does not come with it
(bind mounts, cgroups) is only named, to be found again by who restores: see sources.py.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from pyctr_shim.oci import lockdown, validate
from pyctr_shim.oci.cgroups import cgroup_for, mounted
from pyctr_shim.oci.checkpoint import criu, images, mount_table
from pyctr_shim.oci.checkpoint.choices import Dump
from pyctr_shim.oci.checkpoint.mount_table import Mounted
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.handshake import Channel
from pyctr_shim.oci.mounts import clean
from pyctr_shim.oci.state import State
from pyctr_sys.process import set_name
from pyctr_wire.criu import rpc_pb2 as pb

LOG: Final = "dump.log"
# What CRIU itself saves: new file systems of the container's, which come into being with its namespaces.
OWN_KINDS: Final = {"proc", "sysfs", "tmpfs", "devpts", "mqueue"}
CGROUP_KINDS: Final = {"cgroup", "cgroup2"}
EXTERNAL_NAMESPACES: Final = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}
"""Those that may be joined, by their names in the spec: CRIU's name, and the one we give CRIU for them."""

_STREAMS: Final = ("stdin", "stdout", "stderr")
_TERMINALS: Final = {4, *range(136, 144)}  # majors of the machine's own and of pseudo terminals


def dump(record: State, choices: Dump, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Save a running container into the directory of `choices`, which is made if it is missing.

    Dumps of one container are done one after the other. Before it begins and once it is saved `is_wanted` is asked, and
    unless it says so, that counts as an error.

    Raises OciError naming the stage, with what CRIU has to say; then nothing of the checkpoint is left, and the
    container runs on, unless CRIU could not even undo what it had begun.
    """
    spec = validate.load_spec(f"{record.bundle}/config.json")
    refuse_namespaces(spec)
    with ExitStack() as stack:
        stack.enter_context(_alone(f"{record.bundle}/config.json"))
        if not is_wanted():
            raise OciError("checkpoint: nobody waits for it any more")
        directory_fd = stack.enter_context(_images(choices.common.images))
        work = stack.enter_context(work_directory(choices.common.work))
        work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, work_fd)
        options = _options(record, spec, choices)
        options.images_dir_fd, options.work_dir_fd, options.log_file = directory_fd, work_fd, LOG
        fds = [directory_fd, work_fd]
        if choices.status_fd >= 0:
            options.status_fd = choices.status_fd
            fds.append(choices.status_fd)
        request = pb.Request(type=pb.PRE_DUMP if choices.pre_dump else pb.DUMP, options=options)
        with criu.Criu(choices.common.program, fds) as process:
            response = process.ask(request, lambda told, _fd: told.script != "post-dump" or is_wanted())
        if not response.success and not is_wanted():
            raise OciError("checkpoint: nobody waits for it any more; the container goes on")
        if not response.success:
            kept = f"{choices.common.work}/{LOG}" if choices.common.work else ""
            raise criu.failure("checkpoint the container", response, Path(work, LOG), kept)


def refuse_namespaces(spec: Mapping[str, Any]) -> None:
    """Raise OciError for what CRIU does not do.

    It would read the images as root of a user namespace, who may not, and restores mounts into a new namespace only.
    """
    kinds = {item["type"]: item.get("path") for item in spec["linux"].get("namespaces") or ()}
    if "user" in kinds:
        raise OciError("checkpoint: a container with a user namespace of its own cannot be saved and restored")
    if kinds.get("mount", "another's"):
        raise OciError("checkpoint: a container without a mount namespace of its own cannot be saved and restored")


def become(record: State, choices: Dump, channel: Channel) -> NoReturn:
    """Run in a forked child: save a container, and end. What goes wrong is told over the channel."""
    try:
        null_fd = os.open(os.devnull, os.O_RDWR)
        lockdown.take_stdio((null_fd, null_fd, null_fd), channel, 0)
        set_name("pyctr-dump")
        dump(record, choices, lambda: not channel.peer_has_ended())
    except OciError as error:
        channel.fail(str(error), error.errno)
    except OSError as error:
        channel.fail(f"checkpoint: {describe(error)}", error.errno or 0)
    except Exception as error:
        # A bug of ours; the parent is the top that it reaches.
        channel.fail(f"internal error during checkpoint: {type(error).__name__}: {error}", 0)
    finally:
        os._exit(0)


def _options(record: State, spec: dict[str, Any], choices: Dump) -> pb.Options:
    options = criu.options_for(choices.common)
    options.pid = record.pid
    options.leave_running = choices.leave_running or choices.pre_dump
    options.tcp_skip_in_flight = choices.tcp_skip_in_flight
    options.link_remap = choices.link_remap
    options.root = record.rootfs
    if (frozen := _frozen(record)) is not None:
        options.freeze_cgroup = frozen
    if choices.pre_dump:
        options.track_memory = True
    if choices.parent:
        images.check_parent(choices.parent)
        options.parent_images = choices.parent
        options.track_memory = True
    if choices.page_server:
        options.page_server.address, options.page_server.port = choices.page_server
    if choices.pre_dump:
        return options  # memory alone: what else there is can wait
    seen = mount_table.of(record.pid)
    for item in external_mounts(seen, spec, {item.device for item in mount_table.of("self")}):
        options.external_mounts.add(key=item.where, value=item.where)
    for namespace in spec["linux"].get("namespaces") or ():
        if namespace.get("path") and namespace["type"] in EXTERNAL_NAMESPACES:
            kind, key = EXTERNAL_NAMESPACES[namespace["type"]]
            options.external.append(f"{kind}[{os.stat(f'/proc/{record.pid}/ns/{kind}').st_ino}]:{key}")
    names = [_name_of(record.pid, fd, seen) for fd in range(len(_STREAMS))]
    options.external.extend(dict.fromkeys(name for name in names if name.startswith("file[")))
    images.write_descriptors(choices.common.images, names)
    return options


def external_mounts(seen: list[Mounted], spec: dict[str, Any], of_the_host: set[str]) -> list[Mounted]:
    """Return those of a container's mounts that are not its own, `of_the_host` being the devices that others have.

    What the spec binds, what is below that, and whatever CRIU could not make anew.
    """
    bound = [
        clean(item["destination"])
        for item in spec.get("mounts") or ()
        if item.get("type") == "bind" or {"bind", "rbind"} & set(item.get("options") or ())
    ]

    def is_external(item: Mounted) -> bool:
        if item.where == "/":
            return False
        if item.kind not in OWN_KINDS or item.where in bound:
            return True
        return item.kind in {"tmpfs", "devpts"} and item.device in of_the_host

    return [item for item in seen if is_external(item)]


def _name_of(pid: int, fd: int, seen: list[Mounted]) -> str:
    """Return the name that CRIU has for what is behind a process's fd, "" if there is none.

    For a file of the host, such as the null device or a log, that is a mount and an inode. A terminal of the host's is
    none that CRIU could be given: it would set it up as the checkpoint says, and make it the container's own.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        name = os.readlink(path)
        if not name.startswith("/"):
            return name
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            mount_id = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
        if any(item.id == mount_id for item in seen):
            return name
        status = os.stat(path)
        if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _TERMINALS:
            raise OciError(
                f"checkpoint: {_STREAMS[fd]} is a terminal of the caller's: only one of the container's is saved"
            )
        return f"file[{mount_id:x}:{status.st_ino:x}]"
    except FileNotFoundError:
        return ""


def _frozen(record: State) -> str | None:
    """Return the directory of a container's cgroup if it is paused, None if not.

    Only then has CRIU to know of the freezer: what is frozen it could not stop. What is not, it stops one by one,
    parents before their children. With the freezer it would wait in vain for who is stopped already (SIGSTOP, on
    version 1), and for who has ended and whose parent is frozen before it has waited for that.
    """
    hierarchies = mounted()
    cgroup = cgroup_for(hierarchies, record.cgroup, record.pid)
    if not cgroup.is_paused():
        return None
    return (hierarchies.unified if hierarchies.is_v2 else hierarchies.controllers["freezer"]) + cgroup.path


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Wait until no other dump has a container's file locked, and lock it: what one CRIU has stopped, no other can.

    One that nobody waits for any more is at work for a while yet.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def work_directory(given: str) -> Iterator[str]:
    """Yield the directory for CRIU's log: the given one, made if missing, else one that is gone afterwards."""
    if given:
        os.makedirs(given, 0o700, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="pyctr-criu-") as directory:
        yield directory


@contextmanager
def _images(directory: str) -> Iterator[int]:
    """Yield an fd of the directory for the checkpoint; after an error, what has been put into it is removed."""
    made = not os.path.isdir(directory)
    try:
        if made:
            os.mkdir(directory, 0o700)  # not what it lies in: who has taken that away does not wait for us any more
        before = set(os.listdir(directory))
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OciError(f"checkpoint directory {directory}: {error.strerror}", error.errno or 0) from None
    try:
        yield fd
    except BaseException:
        if made:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            for name in set(os.listdir(directory)) - before:
                os.unlink(f"{directory}/{name}")
        raise
    finally:
        os.close(fd)
