"""Signals by name, and stopping a container as its image wants it."""

import contextlib
import signal

from pyctr import records, tasks
from pyctr.connection import Connection
from pyctr.errors import CommandError
from pyctr_wire import labels, signals
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Status
from pyctr_wire.errors import ApiError, DeadlineExceeded, NotFound

KILL_TIMEOUT = 30.0  # seconds that a process may take to go after SIGKILL


def parse_signal(text: str) -> int:
    """Return the number of a signal given as "TERM", "SIGTERM", "15", "RTMIN+3". Raises CommandError."""
    number = signals.parse(text)
    if number is not None:
        return number
    raise CommandError(f"{text} is not a signal")


def stop_signal(container: containers_pb2.Container) -> int:
    """Return the signal that ends a container as it wants to be. Raises CommandError."""
    return parse_signal(container.labels.get(labels.STOP_SIGNAL) or "TERM")


def stop(connection: Connection, container: containers_pb2.Container, grace: float, how: str = "") -> None:
    """Send the stop signal, then SIGKILL after `grace` seconds; return when the task has ended.

    A container that does not run is stopped already; one that is paused goes on, to take its signal.
    """
    records.mark_stopped(connection, container)
    process = tasks.get(connection, container.id)
    if process is None or process.status == Status.STOPPED:
        return
    number = parse_signal(how) if how else stop_signal(container)
    try:
        if grace > 0:
            tasks.kill(connection, container.id, number)
            if process.status in tasks.FROZEN:
                tasks.resume(connection, container.id)
            try:
                tasks.wait(connection, container.id, timeout=grace)
            except DeadlineExceeded:
                pass
            else:
                return
        end(connection, container.id)
    except NotFound:
        return  # it ended by itself meanwhile
    except DeadlineExceeded:
        raise CommandError(
            f"container {container.id} does not end even after SIGKILL; pyctr top {container.id} shows what hangs"
        ) from None


def end(connection: Connection, container_id: str) -> None:
    """Kill a container and wait for its end. Raises NotFound if it has ended, DeadlineExceeded if it does not."""
    tasks.kill(connection, container_id, signal.SIGKILL)
    with contextlib.suppress(ApiError):  # only a frozen one needs it: version 1 keeps SIGKILL waiting
        tasks.resume(connection, container_id)
    tasks.wait(connection, container_id, timeout=KILL_TIMEOUT)
