"""`stop`, `kill`, `pause`, `unpause`, `wait`, `rm`, `rename`."""

import contextlib
import signal
from collections.abc import Iterator

import click
from google.protobuf import empty_pb2

from pyctr import arguments, completing, lookup, records, stopping, tasks
from pyctr.connection import ENGINE, TASKS
from pyctr.errors import CommandError, not_running
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Status
from pyctr_wire.errors import NotFound
from pyctr_wire.pyctr import engine_pb2


@contextlib.contextmanager
def _running(reference: str) -> Iterator[None]:
    """Say of a container without a task what people call it."""
    try:
        yield
    except NotFound:
        raise not_running(reference) from None


@click.command()
@arguments.grace
@click.option("--signal", "-s", "how", default="", metavar="SIGNAL", help="Send this one instead of its own.")
@arguments.containers
@pass_session
def stop(session: Session, *, containers: tuple[str, ...], grace: float, how: str) -> int:
    """Stop containers: their stop signal, then SIGKILL."""
    return each(
        containers, lambda name: stopping.stop(session.connection, lookup.find(session.connection, name), grace, how)
    )


@click.command()
@click.option("--signal", "-s", "how", default="KILL", show_default=True, metavar="SIGNAL", help="By name or number.")
@arguments.containers
@pass_session
def kill(session: Session, *, containers: tuple[str, ...], how: str) -> int:
    """Send a signal to containers."""
    number = stopping.parse_signal(how)

    def one(reference: str) -> None:
        container = lookup.find(session.connection, reference)
        if number in (signal.SIGKILL, signal.SIGTERM, stopping.stop_signal(container)):
            records.mark_stopped(session.connection, container)
        with _running(reference):
            tasks.kill(session.connection, container.id, number)

    return each(containers, one)


@click.command()
@arguments.containers
@pass_session
def pause(session: Session, *, containers: tuple[str, ...]) -> int:
    """Freeze all processes of containers."""

    def one(reference: str) -> None:
        request = tasks_pb2.PauseTaskRequest(container_id=lookup.find(session.connection, reference).id)
        with _running(reference):
            session.connection.call(TASKS, "Pause", request, empty_pb2.Empty)

    return each(containers, one)


@click.command()
@arguments.containers
@pass_session
def unpause(session: Session, *, containers: tuple[str, ...]) -> int:
    """Let frozen containers go on."""

    def one(reference: str) -> None:
        container = lookup.find(session.connection, reference)
        with _running(reference):
            tasks.resume(session.connection, container.id)

    return each(containers, one)


@click.command()
@arguments.containers
@pass_session
def wait(session: Session, *, containers: tuple[str, ...]) -> int:
    """Wait until containers end and print their exit codes."""

    def one(reference: str) -> None:
        container = lookup.find(session.connection, reference)
        with _running(reference):
            click.echo(tasks.wait(session.connection, container.id))

    return each(containers, one, done=lambda _: None)


@click.command(cls=arguments.DockerLike)
@click.option("--force", "-f", is_flag=True, help="Kill it if it runs.")
@click.option("--volumes", "-v", is_flag=True, help="Remove the volumes that were made for it too.")
@arguments.containers
@pass_session
def rm(session: Session, *, containers: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove containers."""
    connection = session.connection

    def one(reference: str) -> None:
        container = lookup.find(connection, reference)
        process = tasks.get(connection, container.id)
        if process is not None and process.status != Status.STOPPED:
            if not force:
                raise CommandError(f"container {reference} is running: stop it first, or use rm -f")
            records.mark_stopped(connection, container)
            with contextlib.suppress(NotFound):  # it ended by itself meanwhile
                stopping.end(connection, container.id)
        tasks.delete(connection, container.id)
        records.remove(connection, container.id, container.snapshotter, container.snapshot_key)
        if volumes:
            request = engine_pb2.RemoveVolumesRequest(container=container.id)
            connection.call(ENGINE, "RemoveVolumes", request, engine_pb2.RemoveVolumesResponse, timeout=None)

    return each(containers, one)


@click.command()
@click.argument("container", shell_complete=completing.containers)
@click.argument("name")
@pass_session
def rename(session: Session, *, container: str, name: str) -> None:
    """Give CONTAINER another name."""
    found = lookup.find(session.connection, container)
    request = engine_pb2.RenameRequest(id=found.id, name=name)
    session.connection.call(ENGINE, "Rename", request, engine_pb2.RenameResponse)
