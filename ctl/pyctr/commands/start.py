"""`start`, `restart` and `attach`."""

import os
import sys

import click

from pyctr import arguments, completing, lookup, records, run_session, stopping, tasks, terminal
from pyctr.errors import CommandError, not_running
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Status
from pyctr_wire.errors import ApiError


@click.command(cls=arguments.DockerLike)
@click.option("--attach", "-a", "attached", is_flag=True, help="Show its output and pass signals on.")
@click.option("--interactive", "-i", is_flag=True, help="Pass stdin on; implies --attach.")
@click.option(
    "--checkpoint",
    default="",
    metavar="DIRECTORY",
    shell_complete=completing.files,
    help="Go on from what `pyctr checkpoint` saved there.",
)
@arguments.detach_keys
@arguments.containers
@pass_session
def start(
    session: Session,
    *,
    containers: tuple[str, ...],
    attached: bool,
    interactive: bool,
    checkpoint: str,
    detach_keys: str,
) -> int:
    """Start containers that were made or have ended."""
    if checkpoint:
        if len(containers) > 1 or attached or interactive:
            raise CommandError("--checkpoint is for one container, without --attach")
        container = lookup.find(session.connection, containers[0])
        records.ready_task(session.connection, container, os.path.abspath(checkpoint))
        _start(session, container.id)
        return 0
    if attached or interactive:
        if len(containers) > 1:
            raise CommandError("only one container can be attached to")
        container = lookup.find(session.connection, containers[0])
        return _start_attached(session, container, terminal.parse_detach_keys(detach_keys), interactive=interactive)

    def one(reference: str) -> None:
        container = lookup.find(session.connection, reference)
        if records.ready_task(session.connection, container):
            _start(session, container.id)

    return each(containers, one)


def _start(session: Session, container_id: str) -> None:
    try:
        tasks.start(session.connection, container_id)
    except ApiError as error:
        tasks.delete(session.connection, container_id)
        raise CommandError(str(error)) from None


def _start_attached(session: Session, container: containers_pb2.Container, keys: bytes, *, interactive: bool) -> int:
    connection = session.connection
    ready = records.ready_task(connection, container)
    stream = run_session.attach(connection, container.id, stdin=interactive)
    if ready:
        _start(session, container.id)
    status = run_session.follow(connection, stream, container.id, "", stdin=interactive, detach_keys=keys)
    return status or 0


@click.command()
@arguments.grace
@arguments.containers
@pass_session
def restart(session: Session, *, containers: tuple[str, ...], grace: float) -> int:
    """Stop containers and start them again."""

    def one(reference: str) -> None:
        container = lookup.find(session.connection, reference)
        with records.kept(session.connection, container):
            stopping.stop(session.connection, container, grace)
            if records.ready_task(session.connection, container):
                _start(session, container.id)

    return each(containers, one)


@click.command(cls=arguments.DockerLike)
@click.option("--no-stdin", is_flag=True, help="Do not pass stdin on.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, show_default=True, help="Pass signals on.")
@arguments.detach_keys
@click.argument("container", shell_complete=completing.containers)
@pass_session
def attach(session: Session, *, container: str, no_stdin: bool, sig_proxy: bool, detach_keys: str) -> int:
    """Connect this terminal to a running container."""
    keys = terminal.parse_detach_keys(detach_keys)
    found = lookup.find(session.connection, container)
    process = tasks.get(session.connection, found.id)
    if process is not None and process.status in tasks.FROZEN:  # no key and no signal would get us out again
        raise CommandError(f"container {container} is paused: pyctr unpause {container}")
    if process is None or process.status != Status.RUNNING:
        raise not_running(container)
    stdin = found.labels.get(labels.INTERACTIVE) == "true" and not no_stdin
    stream = run_session.attach(session.connection, found.id, stdin=stdin)
    if process.terminal and sys.stdout.isatty():
        # A shell draws itself again when its window changes; a first, different size makes it do so.
        columns, rows = terminal.size()
        stream.resize(max(1, columns - 1), rows)
    status = run_session.follow(
        session.connection, stream, found.id, "", stdin=stdin, detach_keys=keys, proxy_signals=sig_proxy
    )
    return status or 0
