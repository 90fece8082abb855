"""The subcommands of `pyctr-oci` that change a container that exists, and what all of them share."""

import argparse
import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from pyctr_shim.oci import detached, log, rdt, runtime, service, state
from pyctr_shim.oci.errors import OciError, PoststopFailed
from pyctr_shim.oci.runtime import Container
from pyctr_shim.oci.state import State, Status
from pyctr_sys.pidfd import readable

_END_SECONDS: Final = 10.0
_PAUSE: Final = 0.002

# option, its place in LinuxResources, type
LIMIT_OPTIONS: Final[tuple[tuple[str, tuple[str, str], type], ...]] = (
    ("memory", ("memory", "limit"), int),
    ("memory-reservation", ("memory", "reservation"), int),
    ("memory-swap", ("memory", "swap"), int),
    ("kernel-memory", ("memory", "kernel"), int),
    ("kernel-memory-tcp", ("memory", "kernelTCP"), int),
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


def directory_of(options: argparse.Namespace) -> str:
    """Return where a container's state lies. Raises OciError for an id that is no file name."""
    name: str = options.id
    if not name or name in {".", ".."} or not all(char.isalnum() or char in "_+-." for char in name):
        raise OciError(f"invalid container ID format: {name!r}")
    return os.path.join(options.root, name)


@contextlib.contextmanager
def existing(options: argparse.Namespace) -> Iterator[tuple[str, State, Container]]:
    """Yield state directory, state and container. Raises OciError if there is none of that id."""
    directory = directory_of(options)
    try:
        record = state.read(directory)
        container = runtime.load(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise OciError("container does not exist") from None
    try:
        yield directory, record, container
    finally:
        if container.pidfd >= 0:
            os.close(container.pidfd)


def status_of(directory: str, record: State, container: Container) -> Status:
    """Return a container's status now."""
    return detached.status(directory, record, paused=container.cgroup.is_paused())


def start(options: argparse.Namespace) -> int:
    """Execute a created container's program; for a service manager that wants to know, wait until it is ready."""
    with existing(options) as (directory, record, container), service.Readiness(directory) as ready:
        _begin(directory, record, container)
        if ready.is_awaited:
            ready.relay(container.pidfd, record.pid)
    return 0


def begin(options: argparse.Namespace) -> None:
    """Execute a created container's program."""
    with existing(options) as found:
        _begin(*found)


def _begin(directory: str, record: State, container: Container) -> None:
    status = status_of(directory, record, container)
    if status in {Status.RUNNING, Status.PAUSED}:
        raise OciError("cannot start an already running container")
    if status is Status.STOPPED:
        raise OciError("cannot start a container that has stopped")
    detached.start(directory)
    try:
        runtime.run_hooks("poststart", record, Status.RUNNING)
    except OciError:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            container.kill(signal.SIGKILL)
        raise


def kill(options: argparse.Namespace) -> int:
    """Signal init, or all processes."""
    number = _signal_number(options.signal)
    with existing(options) as (directory, record, container):
        if status_of(directory, record, container) is Status.CREATED:
            number = runtime.before_start(number, own_pid_namespace=container.own_pid_namespace)
        if options.all or (number == signal.SIGKILL and not container.own_pid_namespace):
            _kill_all(container, number)
        elif container.pidfd < 0 or not record.is_alive():
            raise OciError("container not running")
        else:
            container.kill(number)
    return 0


def _kill_all(container: Container, number: int) -> None:
    """Signal init and the rest, which outlives it where its PID namespace is not the container's own."""
    if container.pidfd < 0 and not container.pids():
        raise OciError("container not running")
    container.kill_all(number)


def _signal_number(text: str) -> int:
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    try:
        return signal.Signals[name]
    except KeyError:
        raise OciError(f'unknown signal "{text}"') from None


def delete(options: argparse.Namespace) -> int:
    """Remove a container; one that was created but not started is ended first."""
    directory = directory_of(options)
    if options.force and not os.path.exists(os.path.join(directory, state.NAME)):
        with contextlib.suppress(FileNotFoundError):
            remove_directory(directory)  # a creation that was cut off before it made anything
        return 0
    with existing(options) as (_, record, container):
        status = status_of(directory, record, container)
        if status not in {Status.STOPPED, Status.CREATED} and not options.force:
            raise OciError(f"cannot delete container {options.id} that is not stopped: {status.value}")
        end(container)
        try:
            container.delete()
        except PoststopFailed as error:
            log.warning(options, str(error))
        remove_directory(directory)
    return 0


def remove_directory(directory: str) -> None:
    """Remove what is kept of a container that is gone. Raises OSError for directories of others: who knows whose."""
    service.remove(directory)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(state.attached(directory))
    with os.scandir(directory) as entries:
        for entry in list(entries):
            os.unlink(entry.path)
    os.rmdir(directory)


def end(container: Container) -> None:
    """Kill everything in a container and wait for its end. Raises OciError if something outlives that."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if container.pidfd >= 0:
            container.kill(signal.SIGKILL)
        if not container.own_pid_namespace:
            container.kill_all(signal.SIGKILL)
    if container.pidfd >= 0 and not readable(container.pidfd, _END_SECONDS):
        raise OciError(f"process {container.pid} outlives SIGKILL by {_END_SECONDS:g} s")
    deadline = time.monotonic() + _END_SECONDS
    while not container.own_pid_namespace and (left := container.pids()):
        if time.monotonic() > deadline:
            raise OciError(f"processes {left} outlive SIGKILL by {_END_SECONDS:g} s")
        time.sleep(_PAUSE)


def pause(options: argparse.Namespace) -> int:
    """Freeze a running container."""
    with existing(options) as (directory, record, container):
        status = status_of(directory, record, container)
        if status not in {Status.RUNNING, Status.CREATED}:
            raise OciError("container not running")
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
    """Change limits to those of a document, if one is given, or else of the options; and those of Intel RDT."""
    resources: dict[str, Any] = {}
    if options.resources:
        resources = read_json(options.resources)
    else:
        for option, (section, field), _ in LIMIT_OPTIONS:
            value = getattr(options, option.replace("-", "_"))
            if value is not None:
                resources.setdefault(section, {})[field] = value
    schemata = {"l3CacheSchema": options.l3_cache_schema, "memBwSchema": options.mem_bw_schema}
    with existing(options) as (directory, record, container):
        if not record.is_alive():
            raise OciError("container not running")
        container.update(json.dumps(resources).encode())
        if any(schemata.values()):
            _limit_rdt(directory, container, schemata)
    return 0


def _limit_rdt(directory: str, container: Container, schemata: Mapping[str, str | None]) -> None:
    """Change the limits of the container's resctrl group; one that has none gets one of its own."""
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)  # one after the other
        record = state.read(directory)
        if joined := record.linux.get("rdt"):
            rdt.change(joined[0], schemata)
            return
        groups = rdt.plan(schemata, record.id)
        assert groups is not None
        kept = {**record.linux, "rdt": groups.joined, "rdtMade": groups.made}
        state.write(directory, replace(record, linux=kept))  # first: it names what is to be removed
        try:
            rdt.enclose(groups, container.pids)
        except OciError as error:
            if error.errno != errno.EEXIST:  # or else somebody has made one of this name in the same moment
                rdt.remove(groups.made)
            state.write(directory, record)
            raise
    finally:
        os.close(directory_fd)


def read_json(path: str) -> dict[str, Any]:
    """Return the document in a file, "-" for stdin. Raises OciError if it is no JSON object."""
    try:
        if path == "-":
            document = json.load(sys.stdin)
        else:
            with open(path) as file:
                document = json.load(file)
    except ValueError as error:
        raise OciError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise OciError(f"{path}: not a JSON object")
    return document
