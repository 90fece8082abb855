"""`logs`: what a container wrote, read from the files that its shim writes."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from pyctr import arguments, completing, log_files, lookup, tasks
from pyctr.connection import ENGINE
from pyctr.errors import CommandError
from pyctr.http2 import ConnectionLost
from pyctr.session import Session, pass_session
from pyctr.times import parse_moment
from pyctr_wire.containerd.types.task.task_pb2 import Status
from pyctr_wire.pyctr import engine_pb2


@click.command(cls=arguments.DockerLike)
@click.option("--follow", "-f", is_flag=True, help="Go on as more is written, until the container ends.")
@click.option("--tail", "-n", default="all", show_default=True, metavar="LINES", help="Only the last lines.")
@click.option("--since", metavar="TIME", help="Only since a moment (2026-01-31T12:00:00Z) or for a span (10m).")
@click.option("--timestamps", "-t", is_flag=True, help="Show when each line was written.")
@click.argument("container", shell_complete=completing.containers)
@pass_session
def logs(session: Session, *, container: str, follow: bool, tail: str, since: str | None, timestamps: bool) -> None:
    """Show what CONTAINER wrote."""
    count = None if tail == "all" else _count(tail)
    start = parse_moment(since, datetime.now(UTC)) if since else None
    found = lookup.find(session.connection, container)
    session.connection.check_local("a container's log")
    where = session.connection.call(ENGINE, "Logs", engine_pb2.LogsRequest(id=found.id), engine_pb2.LogsResponse)
    if where.driver not in log_files.READERS:
        remedy = f": use journalctl CONTAINER_ID={found.id}" if where.driver == "journald" else ""
        raise CommandError(f"logs of the driver {where.driver!r} cannot be shown here{remedy}")

    def ended() -> bool:
        try:
            process = tasks.get(session.connection, found.id)
        except ConnectionLost:
            return False  # the daemon is away; the container and its log go on without it
        return process is None or process.status == Status.STOPPED

    with log_files.LogReader(Path(where.path), log_files.READERS[where.driver]) as reader:
        reader.seek(count)
        for entry in reader.follow(ended) if follow else reader.read():
            if start is None or entry.time >= start:
                _show(entry, timestamps=timestamps)


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:  # also of thousands of digits
        count = -1
    if count < 0:
        raise click.BadParameter(f"--tail {text}: give a number of lines or 'all'")
    return count


def _show(entry: log_files.Entry, *, timestamps: bool) -> None:
    stream = sys.stderr.buffer if entry.stream == "stderr" else sys.stdout.buffer
    stamp = f"{entry.stamp} ".encode() if timestamps else b""
    stream.write(stamp + entry.text.encode(errors="surrogateescape"))
    stream.flush()
