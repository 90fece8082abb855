"""`checkpoint`; `start --checkpoint` is its counterpart."""

import os

import click

from pyctr import completing, lookup, tasks
from pyctr.errors import CommandError, not_running
from pyctr.session import Session, pass_session
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Status


@click.command()
@click.option("--leave-running", is_flag=True, help="Let it go on afterwards.")
@click.option("--tcp-established", is_flag=True, help="Save open TCP connections, too.")
@click.option("--file-locks", is_flag=True, help="Save file locks, too.")
@click.option("--external-unix-sockets", is_flag=True, help="Save unix sockets whose other end is outside, too.")
@click.argument("container", shell_complete=completing.containers)
@click.argument("directory", type=click.Path(file_okay=False))
@pass_session
def checkpoint(
    session: Session,
    *,
    container: str,
    directory: str,
    leave_running: bool,
    tcp_established: bool,
    file_locks: bool,
    external_unix_sockets: bool,
) -> int:
    """Save a running container in a directory, with CRIU; `pyctr start --checkpoint` goes on from there.

    The container ends then. What it has written to its files stays with it and is not saved. The daemon's
    configuration must allow it: enabled = true in [checkpoint].
    """
    found = lookup.find(session.connection, container)
    process = tasks.get(session.connection, found.id)
    if process is None or process.status not in (Status.RUNNING, Status.PAUSED):
        raise not_running(container)
    if os.path.exists(directory) and os.listdir(directory):
        raise CommandError(f"{directory} is not empty")
    options = oci_pb2.CheckpointOptions(
        exit=not leave_running,
        open_tcp=tcp_established,
        file_locks=file_locks,
        external_unix_sockets=external_unix_sockets,
        image_path=os.path.abspath(directory),
    )
    tasks.checkpoint(session.connection, found.id, options)
    if not leave_running:
        tasks.wait(session.connection, found.id)
    return 0
