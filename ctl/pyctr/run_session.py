"""One attached session: relay until the process ends, then say how."""

import sys

from pyctr import exit_codes, relay, tasks
from pyctr.attach import AttachSocket
from pyctr.connection import Connection
from pyctr.errors import CommandError, tell
from pyctr_wire.errors import ApiError, NotFound

_LOST_GRACE = 10.0  # seconds until the daemon must know how a process ended whose shim went away


def attach(connection: Connection, container_id: str, exec_id: str = "", *, stdin: bool) -> AttachSocket:
    """Connect to the streams of a process, before it starts if nothing is to be missed."""
    path = tasks.attach_path(connection, container_id, exec_id)
    return AttachSocket(path, exec_id, stdin=stdin)


def follow(
    connection: Connection,
    attached: AttachSocket,
    container_id: str,
    exec_id: str,
    *,
    stdin: bool,
    detach_keys: bytes,
    proxy_signals: bool = True,
) -> int | None:
    """Relay a session; return the process's exit status, None if the user detached.

    Signals go to the process unless it has a terminal or `proxy_signals` is off. Restarts of the
    daemon are not noticed.
    """

    def forward(number: int) -> None:
        try:
            tasks.kill(connection, container_id, number, exec_id, patience=tasks.RECONNECT)
        except NotFound:
            pass  # it has ended; the exit is on its way
        except ApiError as error:
            tell(f"signal {number} was not delivered: {error}")

    try:
        outcome = relay.Relay(
            attached, stdin=stdin, detach_keys=detach_keys, on_signal=forward if proxy_signals else None
        ).run()
    finally:
        attached.close()
    if outcome.end is relay.End.EXITED:
        return outcome.exit_status
    if outcome.end is relay.End.DETACHED:
        print(file=sys.stderr)  # the shell's prompt begins a line of its own
        return None
    if outcome.message:
        raise CommandError(f"{outcome.message} (the container goes on: pyctr attach {container_id})", exit_codes.OURS)
    return tasks.wait(connection, container_id, exec_id, timeout=_LOST_GRACE)
