"""The subcommands of `pyctr-oci` that look at or change a container that exists."""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.message import Message

from pyctr_shim.oci import detached, runtime, state
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import Container
from pyctr_shim.oci.state import State, Status
from pyctr_wire.containerd.cgroups.v1 import metrics_pb2 as v1
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2

_END_SECONDS: Final = 10.0

# option, its place in LinuxResources, type
LIMIT_OPTIONS: Final[tuple[tuple[str, tuple[str, str], type], ...]] = (
    ("memory", ("memory", "limit"), int),
    ("memory-reservation", ("memory", "reservation"), int),
    ("memory-swap", ("memory", "swap"), int),
    ("cpu-period", ("cpu", "period"), int),
    ("cpu-quota", ("cpu", "quota"), int),
    ("cpu-burst", ("cpu", "burst"), int),
    ("cpu-share", ("cpu", "shares"), int),
    ("cpu-rt-period", ("cpu", "realtimePeriod"), int),
    ("cpu-rt-runtime", ("cpu", "realtimeRuntime"), int),
    ("cpu-idle", ("cpu", "idle"), int),
    ("cpuset-cpus", ("cpu", "cpus"), str),
    ("cpuset-mems", ("cpu", "mems"), str),
    ("pids-limit", ("pids", "limit"), int),
    ("blkio-weight", ("blockIO", "weight"), int),
)


def version_text() -> str:
    """Return what --version prints; the second line is what callers parse."""
    from importlib import metadata  # slower than most commands, and for this one only

    version = metadata.version("pyctr")
    return f"pyctr-oci version {version}\nspec: {state.OCI_VERSION}"


def directory_of(options: argparse.Namespace) -> str:
    """Return where a container's state lies. Raises OciError for an id that is no file name."""
    name: str = options.id
    if not name or name in {".", ".."} or not all(char.isalnum() or char in "_+-." for char in name):
        raise OciError(f"invalid container id format: {name!r}")
    return os.path.join(options.root, name)


@contextlib.contextmanager
def existing(options: argparse.Namespace) -> Iterator[tuple[str, State, Container]]:
    """Yield state directory, state and container. Raises OciError if there is none of that id."""
    directory = directory_of(options)
    try:
        record = state.read(directory)
        container = runtime.load(directory)
    except FileNotFoundError:
        raise OciError(f"container {options.id!r} does not exist") from None
    try:
        yield directory, record, container
    finally:
        if container.pidfd >= 0:
            os.close(container.pidfd)


def status_of(directory: str, record: State, container: Container) -> Status:
    """Return a container's status now."""
    return detached.status(directory, record, paused=container.cgroup.is_paused())


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def start(options: argparse.Namespace) -> int:
    """Execute a created container's program."""
    with existing(options) as (directory, record, container):
        detached.start(directory)
        try:
            runtime.run_hooks("poststart", record, Status.RUNNING)
        except OciError:
            container.kill(signal.SIGKILL)
            raise
    return 0


def kill(options: argparse.Namespace) -> int:
    """Signal init, or all processes."""
    number = _signal_number(options.signal)
    with existing(options) as (_, record, container):
        if options.all:
            container.kill_all(number)
        elif container.pidfd < 0 or not record.is_alive():
            raise OciError("container not running")
        else:
            container.kill(number)
    return 0


def _signal_number(text: str) -> int:
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signal.Signals[name]
    except KeyError:
        raise OciError(f"unknown signal {text!r}") from None


def delete(options: argparse.Namespace) -> int:
    """Remove a container; one that was created but not started is ended first."""
    directory = directory_of(options)
    if options.force and not os.path.exists(os.path.join(directory, state.NAME)):
        shutil.rmtree(directory, ignore_errors=True)  # a creation that was cut off before it made anything
        return 0
    with existing(options) as (_, record, container):
        status = status_of(directory, record, container)
        if status not in {Status.STOPPED, Status.CREATED} and not options.force:
            raise OciError(f"cannot delete container {options.id} that is not stopped: {status.value}")
        end(container)
        container.delete()
        shutil.rmtree(directory)
    return 0


def end(container: Container) -> None:
    """Kill everything in a container and wait for init's end. Raises OciError if it outlives that."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if container.pidfd >= 0:
            container.kill(signal.SIGKILL)
        if not container.own_pid_namespace:
            container.kill_all(signal.SIGKILL)
    if container.pidfd >= 0 and not select.select([container.pidfd], [], [], _END_SECONDS)[0]:
        raise OciError(f"process {container.pid} outlives SIGKILL by {_END_SECONDS:g} s")


def pause(options: argparse.Namespace) -> int:
    """Freeze a running container."""
    with existing(options) as (directory, record, container):
        status = status_of(directory, record, container)
        if status not in {Status.RUNNING, Status.CREATED}:
            raise OciError(f"container not running: it is {status.value}")
        container.pause()
    return 0


def resume(options: argparse.Namespace) -> int:
    """Let a frozen container go on."""
    with existing(options) as (_, _, container):
        if not container.cgroup.is_paused():
            raise OciError("container not paused")
        container.resume()
    return 0


def update(options: argparse.Namespace) -> int:
    """Change limits to those of a document and of the options, which win."""
    resources: dict[str, Any] = {}
    if options.resources == "-":
        resources = json.load(sys.stdin)
    elif options.resources:
        with open(options.resources) as file:
            resources = json.load(file)
    for option, (section, field), _ in LIMIT_OPTIONS:
        value = getattr(options, option.replace("-", "_"))
        if value is not None:
            resources.setdefault(section, {})[field] = value
    with existing(options) as (_, _, container):
        container.update(json.dumps(resources).encode())
    return 0


def state_(options: argparse.Namespace) -> int:
    """Print the state document of the specification, with runc's additions."""
    with existing(options) as (directory, record, container):
        _print(_report(record, status_of(directory, record, container)))
    return 0


def _report(record: State, status: Status) -> dict[str, Any]:
    document = json.loads(record.document(status))
    created = datetime.fromtimestamp(record.created_ns / 1e9, UTC)
    return {**document, "rootfs": os.path.join(record.bundle, "rootfs"), "created": created.isoformat(), "owner": ""}


def list_(options: argparse.Namespace) -> int:
    """List the containers below --root."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(options.root)):
            with contextlib.suppress(OciError), existing(argparse.Namespace(root=options.root, id=name)) as item:
                found.append(_report(item[1], status_of(*item)))
    if options.quiet:
        sys.stdout.write("".join(f"{item['id']}\n" for item in found))
    elif options.format == "json":
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [
            tuple(str(item[key]) for key in ("id", "pid", "status", "bundle", "created", "owner")) for item in found
        ]
        _print_table(rows)
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def ps(options: argparse.Namespace) -> int:
    """Print a container's processes: their ids, or ps(1)'s lines about them."""
    with existing(options) as (_, _, container):
        pids = container.pids()
    if options.format == "json":
        sys.stdout.write(json.dumps(pids) + "\n")
        return 0
    import subprocess

    output = subprocess.run(["ps", *(options.ps_options or ["-ef"])], capture_output=True, text=True, check=True).stdout
    header, *lines = output.splitlines()
    column = header.split().index("PID")
    wanted = {str(pid) for pid in pids}
    chosen = [line for line in lines if line.split()[column] in wanted]
    sys.stdout.write("\n".join([header, *chosen]) + "\n")
    return 0


def events(options: argparse.Namespace) -> int:
    """Print counters, once or at an interval until the container ends."""
    with existing(options) as (_, record, container):
        while True:
            if not record.is_alive():
                raise OciError("container not running")
            line = {"type": "stats", "id": options.id, "data": _counters(*container.stats())}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            if options.stats:
                return 0
            time.sleep(options.interval)


def _counters(type_url: str, value: bytes) -> dict[str, Any]:
    """Return the counters under the names of the message that carries them."""
    message = v1.Metrics() if type_url.endswith("v1.Metrics") else v2.Metrics()
    message.ParseFromString(value)
    return _plain(message)


def _plain(message: Message) -> dict[str, Any]:
    """Return a message's fields that are set as what JSON has."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.is_repeated:
            found[field.name] = [_plain(item) if isinstance(item, Message) else item for item in value]
        else:
            found[field.name] = _plain(value) if isinstance(value, Message) else value
    return found


def features_(_options: argparse.Namespace) -> int:
    """Print the features document."""
    from pyctr_shim.oci import features

    _print(features.document())
    return 0


def spec(options: argparse.Namespace) -> int:
    """Write a default config.json into a bundle. Raises OciError if one is there."""
    from pyctr_wire.oci import default_spec

    path = os.path.join(options.bundle, "config.json")
    document = default_spec.default_spec()
    document["process"]["args"] = ["sh"]
    document["process"]["terminal"] = True
    document["root"] = {"path": "rootfs", "readonly": True}
    try:
        with open(path, "x") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
    except FileExistsError:
        raise OciError(f"{path} exists already") from None
    return 0
