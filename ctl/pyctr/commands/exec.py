"""`exec`: another process in a running container."""

import contextlib
import os
import signal

import click
from google.protobuf import any_pb2, empty_pb2

from pyctr import arguments, completing, exit_codes, interrupts, lookup, run_options, run_session, tasks, terminal
from pyctr.connection import ENGINE, TASKS, Connection
from pyctr.errors import CommandError, as_ours, not_running
from pyctr.session import Session, pass_session
from pyctr_wire import exec_ids
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.errors import ApiError, FailedPrecondition, NotFound, Unavailable
from pyctr_wire.pyctr import engine_pb2

_PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"


@click.command(
    "exec", cls=arguments.DockerLike, context_settings={"allow_interspersed_args": False}, epilog=arguments.EXIT_CODES
)
@click.option("--detach", "-d", is_flag=True, help="Leave it in the background.")
@arguments.detach_keys
@arguments.env
@arguments.env_file
@click.option("--interactive", "-i", is_flag=True, help="Pass stdin on.")
@click.option("--tty", "-t", is_flag=True, help="Give it a terminal.")
@click.option("--user", "-u", default="", metavar="USER[:GROUP]", help="Run as this user, by name or number.")
@click.option("--workdir", "-w", default="", metavar="PATH", help="Start in this directory.")
@click.option("--privileged", is_flag=True, help="Give it all capabilities.")
@click.argument("container", shell_complete=completing.containers)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_session
@interrupts.alike()
@as_ours()
def exec_(
    session: Session,
    *,
    container: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive: bool,
    tty: bool,
    user: str,
    workdir: str,
    privileged: bool,
) -> int:
    """Run COMMAND in the running CONTAINER."""
    keys = terminal.parse_detach_keys(detach_keys)
    if not detach:
        session.connection.check_local("the streams of a process")
        terminal.check(tty=tty, interactive=interactive)
    columns, rows = terminal.size() if tty else (0, 0)
    try:
        request = engine_pb2.ExecSpecRequest(
            id=container,
            args=command,
            env=run_options.environment(env, env_file, os.environ),
            working_dir=workdir,
            user=user,
            terminal=tty,
            console_width=columns,
            console_height=rows,
            privileged=privileged,
        )
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{error.object!r} is not UTF-8") from None
    connection = session.connection
    try:
        spec = connection.call(ENGINE, "ExecSpec", request, engine_pb2.ExecSpecResponse)
    except ApiError as error:
        if isinstance(error, FailedPrecondition) and not tasks.runs(connection, lookup.find(connection, container).id):
            raise not_running(container) from None
        raise CommandError(str(error), exit_codes.FAILURE) from None
    return _run(connection, container, spec, keys, detach=detach, interactive=interactive, tty=tty)


def _run(
    connection: Connection,
    container: str,
    spec: engine_pb2.ExecSpecResponse,
    keys: bytes,
    *,
    detach: bool,
    interactive: bool,
    tty: bool,
) -> int:
    """Register, start and follow the exec; return the exit code."""
    exec_id = f"{exec_ids.OURS}{os.urandom(16).hex()}"
    container_id = spec.container_id
    output = "" if detach else tasks.ATTACHED
    request = tasks_pb2.ExecProcessRequest(
        container_id=container_id,
        exec_id=exec_id,
        stdin=tasks.ATTACHED if interactive and not detach else "",
        stdout=output,
        stderr="" if tty else output,
        terminal=tty,
        spec=any_pb2.Any(type_url=_PROCESS_URL, value=spec.process),
    )
    attached = None
    try:
        connection.call(TASKS, "Exec", request, empty_pb2.Empty)
        if not detach:
            attached = run_session.attach(connection, container_id, exec_id, stdin=interactive)
        tasks.start(connection, container_id, exec_id)
    except KeyboardInterrupt:
        if attached is not None:
            attached.close()
        connection.close()  # what was under way on it is cancelled by that
        _give_up(connection, container_id, exec_id)
        raise
    except ApiError as error:
        if attached is not None:
            attached.close()
        _forget(connection, container_id, exec_id)
        process = tasks.get(connection, container_id)
        if process is not None and process.status in tasks.FROZEN:
            raise CommandError(f"container {container} is paused: pyctr unpause {container}") from None
        code = exit_codes.of_start_error(error)
        if code == exit_codes.OURS and not tasks.runs(connection, container_id):
            raise not_running(container) from None
        raise CommandError(str(error), code) from None
    if attached is None:
        return 0
    status = run_session.follow(connection, attached, container_id, exec_id, stdin=interactive, detach_keys=keys)
    if status is None:
        return 0
    _forget(connection, container_id, exec_id)
    return status


def _give_up(connection: Connection, container_id: str, exec_id: str) -> None:
    """End and forget an exec at whose start we were interrupted: nobody would see it, or could end it."""
    with contextlib.suppress(NotFound, Unavailable):
        tasks.give_up(
            lambda: _delete(connection, container_id, exec_id),
            lambda: tasks.kill(connection, container_id, signal.SIGKILL, exec_id),
        )


def _forget(connection: Connection, container_id: str, exec_id: str) -> None:
    """Delete the record of an ended exec; otherwise the daemon does, some minutes later."""
    with contextlib.suppress(NotFound, Unavailable):
        _delete(connection, container_id, exec_id)


def _delete(connection: Connection, container_id: str, exec_id: str) -> None:
    request = tasks_pb2.DeleteProcessRequest(container_id=container_id, exec_id=exec_id)
    connection.call(TASKS, "DeleteProcess", request, tasks_pb2.DeleteResponse, patience=tasks.RECONNECT)
