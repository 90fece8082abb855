"""The subcommands of `pyctr-oci` that only look: state, list, ps, events, features, spec."""

import argparse
import contextlib
import json
import math
import os
import pwd
import select
import stat
import sys
import time
from typing import Any, Final

from pyctr_shim.oci import state
from pyctr_shim.oci.commands import existing, status_of
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import Container
from pyctr_shim.oci.state import State, Status

_LIST_COLUMNS: Final = ("id", "pid", "status", "bundle", "created", "owner")
_CELL: Final = 12  # of runc's tables, whose columns are cut by scripts
_GAP: Final = 3
_SECOND_LOOK: Final = 0.1  # seconds
_EVENT_BYTES: Final = 4096


def version_text() -> str:
    """Return what --version prints; the second line is what callers parse."""
    from importlib import metadata  # slower than most commands, and for this one only

    version = metadata.version("pyctr")
    return f"pyctr-oci version {version}\nspec: {state.OCI_VERSION}"


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def state_(options: argparse.Namespace) -> int:
    """Print the state document of the specification, with runc's additions."""
    with existing(options) as (directory, record, container):
        _print(_report(record, status_of(directory, record, container), directory))
    return 0


def _report(record: State, status: Status, directory: str) -> dict[str, Any]:
    document = json.loads(record.document(status))
    seconds, nanoseconds = divmod(record.created_ns, 1_000_000_000)
    created = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09}Z"
    rootfs = record.rootfs or os.path.join(record.bundle, "rootfs")
    return {**document, "rootfs": rootfs, "created": created, "owner": _owner(directory)}


def _owner(directory: str) -> str:
    uid = os.stat(directory).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def list_(options: argparse.Namespace) -> int:
    """List the containers below --root."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(options.root)):
            with contextlib.suppress(OciError), existing(argparse.Namespace(root=options.root, id=name)) as item:
                found.append(_report(item[1], status_of(*item), item[0]))
    if options.quiet:
        sys.stdout.write("".join(f"{item['id']}\n" for item in found))
    elif options.format == "json":
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        rows = [tuple(name.upper() for name in _LIST_COLUMNS)]
        rows += [tuple(str(item[key]) for key in _LIST_COLUMNS) for item in found]
        _print_table(rows)
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(_CELL, *(len(row[column]) + _GAP for row in rows)) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))
        sys.stdout.write("".join(cells) + "\n")


def ps(options: argparse.Namespace) -> int:
    """Print a container's processes: their ids, or ps(1)'s lines about them."""
    with existing(options) as (_, _, container):
        pids = container.pids()
    if options.format == "json":
        sys.stdout.write(json.dumps(pids) + "\n")
        return 0
    import subprocess

    command = ["ps", *(options.ps_options or ["-ef"])]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    header, *lines = done.stdout.splitlines() or [""]
    if done.returncode != 0 or "PID" not in header.split():
        raise OciError(f"ps: {done.stderr.strip() or 'no column PID in what it prints'}")
    column = header.split().index("PID")
    wanted = {str(pid) for pid in pids}
    chosen = [line for line in lines if line.split()[column] in wanted]
    sys.stdout.write("\n".join([header, *chosen]) + "\n")
    return 0


def events(options: argparse.Namespace) -> int:
    """Print counters once, or at an interval until the container ends, and then also each kill for memory."""
    with existing(options) as (_, record, container):
        if not record.is_alive():
            raise OciError(f"container with id {options.id} is not running")
        if options.stats:
            _print_counters(container)
        else:
            _follow(container, options.interval)
    return 0


def _follow(container: Container, interval: float) -> None:
    """Print counters every `interval` seconds, and kills for memory at once, until the container has ended."""
    killed, due, look_again = container.oom_kills(), 0.0, math.inf
    with contextlib.ExitStack() as stack:
        waiting = select.poll()
        waiting.register(container.pidfd, select.POLLIN)
        memory_fd = _watch_memory(container, waiting, stack)
        while True:
            now = time.monotonic()
            if now >= due:
                _print_counters(container)
                due = now + interval
            ready = [fd for fd, _ in waiting.poll(max(0.0, min(due, look_again) - now) * 1000)]
            if time.monotonic() >= look_again:
                look_again = math.inf
            if memory_fd in ready:
                look_again = time.monotonic() + _SECOND_LOOK  # version 1 tells of the shortage, and counts later
                if not _take(memory_fd):
                    waiting.unregister(memory_fd)
            if (kills := container.oom_kills()) > killed:
                killed = kills
                _print_event("oom", container.id)
            if container.pidfd in ready:
                return


def _watch_memory(container: Container, waiting: select.poll, stack: contextlib.ExitStack) -> int:
    """Have `waiting` tell of kills for memory too, and return the fd by which it does, -1 where none are counted."""
    fds = container.cgroup.oom_watch()
    if fds is None:
        return -1
    for fd in fds:
        stack.callback(os.close, fd)
    # A file of version 2 is readable at any time, an eventfd of version 1 when there is something.
    is_file = stat.S_ISREG(os.fstat(fds[0]).st_mode)
    waiting.register(fds[0], select.POLLPRI if is_file else select.POLLIN)
    return fds[0]


def _take(fd: int) -> bool:
    """Take what an fd of `oom_watch` tells, and return whether it may tell more: the cgroup is not gone."""
    try:
        os.read(fd, _EVENT_BYTES)
    except OSError:
        return False
    os.lseek(fd, 0, os.SEEK_SET)
    return True


def _print_counters(container: Container) -> None:
    from pyctr_shim.oci import counters  # and with them protobuf, for this command only

    _print_event("stats", container.id, data=counters.document(*container.stats()))


def _print_event(kind: str, id: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"type": kind, "id": id, **fields}) + "\n")
    sys.stdout.flush()


def features_(_options: argparse.Namespace) -> int:
    """Print the features document."""
    from pyctr_shim.oci import features

    _print(features.document())
    return 0


def spec(options: argparse.Namespace) -> int:
    """Write a default config.json into a bundle. Raises OciError if one is there."""
    from pyctr_wire.oci import default_spec

    document = default_spec.default_spec()
    document["process"]["args"] = ["sh"]
    document["process"]["terminal"] = True
    document["root"] = {"path": "rootfs", "readonly": True}
    if options.rootless:
        _for_one_who_is_not_root(document)
    try:
        with open(os.path.join(options.bundle, "config.json"), "x") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
    except FileExistsError:
        raise OciError("File config.json exists. Remove it first") from None
    return 0


def _for_one_who_is_not_root(document: dict[str, Any]) -> None:
    """Have root be the caller: a user namespace with one id, the host's network and /sys, no limits."""
    linux = document["linux"]
    kept = [item for item in linux["namespaces"] if item["type"] not in {"network", "user"}]
    linux["namespaces"] = [*kept, {"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    linux.pop("resources", None)
    document["process"]["user"].pop("additionalGids", None)  # who has one id alone may have no others
    for mount in document["mounts"]:
        mount["options"] = [option for option in mount["options"] if not option.startswith(("gid=", "uid="))]
        if mount["destination"] == "/sys":  # a new one would need the network namespace to be ours
            mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
