"""Signals by name, and stopping a container as its image wants it."""

import signal

from pyctr import tasks
from pyctr.connection import Connection
from pyctr.errors import CommandError
from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.errors import DeadlineExceeded, NotFound

KILL_TIMEOUT = 30.0  # seconds that a process may take to go after SIGKILL


def parse_signal(text: str) -> int:
    """Return the number of a signal given as "TERM", "SIGTERM", "15", "RTMIN+3". Raises CommandError."""
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = getattr(signal, f"SIG{base}", None)
    if isinstance(number, signal.Signals) and (not sign or (base.startswith("RTM") and offset.isdecimal())):
        value = number + int(sign + offset) if sign else int(number)
        if value <= signal.SIGRTMAX:
            return value
    raise CommandError(f"{text} is not a signal")


def stop(connection: Connection, container: containers_pb2.Container, grace: float, how: str = "") -> None:
    """Send the stop signal, then SIGKILL after `grace` seconds; return when the task has ended.

    A container that does not run is stopped already.
    """
    process = tasks.get(connection, container.id)
    if process is None or process.status == 3:  # STOPPED
        return
    number = parse_signal(how or container.labels.get(labels.STOP_SIGNAL) or "TERM")
    try:
        if grace > 0:
            tasks.kill(connection, container.id, number)
            try:
                tasks.wait(connection, container.id, timeout=grace)
            except DeadlineExceeded:
                pass
            else:
                return
        tasks.kill(connection, container.id, signal.SIGKILL)
        tasks.wait(connection, container.id, timeout=KILL_TIMEOUT)
    except NotFound:
        return  # it ended by itself meanwhile
    except DeadlineExceeded:
        raise CommandError(
            f"container {container.id} does not end even after SIGKILL; pyctr top {container.id} shows what hangs"
        ) from None
