"""`run` and `create`: a container from an image, the image pulled first if it is not here."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from pyctr import arguments, completing, exit_codes, interrupts, run_options, terminal
from pyctr.connection import CONTAINERS, ENGINE, Connection
from pyctr.errors import CommandError, as_ours, tell
from pyctr.http2 import NotSent
from pyctr.session import Session, pass_session
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.errors import ApiError, NotFound, Unavailable
from pyctr_wire.pyctr import engine_pb2

F = TypeVar("F", bound=Callable[..., Any])

# What the daemon was asked for as we were interrupted: seconds in which it is done, or never, and between two looks.
_UNMAKING = 0.5
_PAUSE = 0.025
_ANSWER = 5.0  # seconds

_OPTIONS = (
    click.option("--name", metavar="NAME", help="Give the container a name."),
    click.option("--interactive", "-i", is_flag=True, help="Keep stdin open."),
    click.option("--tty", "-t", is_flag=True, help="Give it a terminal."),
    arguments.env,
    arguments.env_file,
    click.option("--user", "-u", metavar="USER[:GROUP]", help="Run as this user, by name or number."),
    click.option("--group-add", multiple=True, metavar="GROUP", help="Join another group."),
    click.option("--workdir", "-w", metavar="PATH", help="Start in this directory."),
    click.option("--entrypoint", metavar="PROGRAM", help="Replace the image's entry point."),
    click.option("--hostname", "-h", metavar="NAME", help="The container's host name."),
    click.option("--label", "-l", multiple=True, metavar="NAME[=VALUE]", help="Set a label."),
    click.option(
        "--volume",
        "-v",
        multiple=True,
        metavar="[SOURCE:]PATH[:ro]",
        shell_complete=completing.sources,
        help="Show a host path or a volume.",
    ),
    click.option("--mount", multiple=True, metavar="type=...,...", help="A bind, tmpfs or volume: source, target."),
    click.option("--tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="Mount a tmpfs."),
    click.option("--read-only", is_flag=True, help="Make the root file system read-only."),
    click.option(
        "--device",
        multiple=True,
        metavar="PATH[:PATH[:rwm]]|VENDOR/CLASS=NAME",
        shell_complete=completing.files,
        help="Give it a device of this machine.",
    ),
    click.option("--privileged", is_flag=True, help="Take all confinement off."),
    click.option("--cap-add", multiple=True, metavar="CAP", help="Give it a capability."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Take a capability away."),
    click.option("--security-opt", multiple=True, metavar="OPTION", help="seccomp=FILE, no-new-privileges, ..."),
    click.option("--memory", "-m", metavar="SIZE", help="Limit its memory: 512m, 2g."),
    click.option("--cpus", type=float, metavar="NUMBER", help="Limit its CPU time: 1.5."),
    click.option("--pids-limit", type=int, metavar="NUMBER", help="Limit its processes; 0: do not."),
    click.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="Set a resource limit."),
    click.option("--sysctl", multiple=True, metavar="NAME=VALUE", help="Set a kernel parameter in its namespaces."),
    click.option(
        "--network",
        "--net",
        callback=arguments.network,
        metavar="none|host",
        shell_complete=completing.one_of("none", "host"),
        help="None (default for root), or ours.",
    ),
    click.option("--userns", metavar="WHOSE", default="", help="Its users: host, UID:SIZE or NAME's."),
    click.option("--init", is_flag=True, help="Run a small init as its process 1."),
    click.option("--stop-signal", metavar="SIGNAL", help="The signal that `stop` sends."),
    click.option(
        "--log-driver",
        metavar="DRIVER",
        shell_complete=completing.one_of("json-file", "cri", "journald", "none"),
        help="json-file (the default), cri, journald or none.",
    ),
    click.option("--log-opt", multiple=True, metavar="NAME=VALUE", help="Of json-file: max-size=10m, max-file=3."),
    click.option(
        "--restart",
        metavar="POLICY",
        shell_complete=completing.restart_policies,
        default="",
        help="no, always, unless-stopped, on-failure[:RETRIES].",
    ),
    click.option("--rm", is_flag=True, help="Remove the container when it has ended."),
    click.option("--runtime", metavar="NAME", default="", help="Another OCI runtime: runc, crun, a path."),
    click.option("--snapshotter", metavar="NAME", default="", help="What keeps its files: overlayfs, or another."),
    click.option(
        "--platform", metavar="OS/ARCH", default="", help="Which of the image's platforms; else the daemon's."
    ),
    click.option(
        "--cidfile", metavar="FILE", shell_complete=completing.files, help="Write the container's id to this file."
    ),
)


def creation_options(command: F) -> F:
    """Add the options that `run` and `create` share."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_SETTINGS = {"help_option_names": ["--help"], "allow_interspersed_args": False}  # -h is --hostname, as docker's


def make(session: Session, image: str, command: tuple[str, ...], given: dict[str, Any]) -> engine_pb2.RunSpecResponse:
    """Make the container, pulling its image if need be; print what the daemon warns of."""
    with _id_file(given["cidfile"]) as write_id:
        made = _made(session, image, command, given)
        write_id(made.id)
    for warning in made.warnings:
        tell(warning)
    return made


@contextlib.contextmanager
def _id_file(path: str | None) -> Iterator[Callable[[str], object]]:
    """Make the file for a container's id before there is one; without an id, it goes again. Raises CommandError."""
    if path is None:
        yield str
        return
    try:
        file = open(path, "x", encoding="ascii")  # noqa: SIM115 - closed below
    except FileExistsError:
        raise CommandError(f"--cidfile {path}: the file is there already; remove it first", exit_codes.OURS) from None
    except OSError as error:
        raise CommandError(f"--cidfile {path}: {error.strerror}", exit_codes.OURS) from None
    with file:
        try:
            yield file.write
        except BaseException:
            os.unlink(path)
            raise


def _made(session: Session, image: str, command: tuple[str, ...], given: dict[str, Any]) -> engine_pb2.RunSpecResponse:
    try:
        options = run_options.to_options(command, given, os.environ)
        request = engine_pb2.RunSpecRequest(
            image=image,
            id=os.urandom(32).hex(),  # ours, so that it is known what to remove if we are interrupted
            name=given["name"] or "",
            snapshotter=given["snapshotter"],
            runtime=given["runtime"],
            platform=given["platform"],
            options=options,
        )
    except UnicodeEncodeError as error:
        raise click.BadParameter(f"{error.object!r} is not UTF-8") from None
    if options.terminal:
        request.options.console_width, request.options.console_height = terminal.size()
    try:
        with run_options.missing_sources(options, given["volume"]):
            return _made_from_image(session.connection, request)
    except ApiError as error:
        raise CommandError(str(error), exit_codes.OURS) from None
    except CommandError as error:
        raise CommandError(error.message, exit_codes.OURS) from None


def _made_from_image(connection: Connection, request: engine_pb2.RunSpecRequest) -> engine_pb2.RunSpecResponse:
    """Make the container; an image that is not here is pulled."""

    def made() -> engine_pb2.RunSpecResponse:
        try:
            return connection.call(ENGINE, "RunSpec", request, engine_pb2.RunSpecResponse, meanwhile=_load)
        except NotSent:
            raise
        except (KeyboardInterrupt, Unavailable):
            connection.close()  # what was under way on it is cancelled by that
            _unmake(connection, request.id)
            raise

    try:
        return made()
    except NotFound:
        with interrupts.held():
            from pyctr.transfer import pull

        print(f"Unable to find image '{request.image}' locally", file=sys.stderr)
        pull(connection, request.image, platform=request.platform, snapshotter=request.snapshotter)
    return made()


def _unmake(connection: Connection, container_id: str) -> None:
    """Remove a container whose making we did not see the end of: the daemon may be at it for a moment more.

    If it was the daemon that went away, the next one knows what there is.
    """
    with _clearing_away(container_id):
        give_up = time.monotonic() + _UNMAKING
        while not _removed(connection, container_id) and time.monotonic() < give_up:
            time.sleep(_PAUSE)


def _removed(connection: Connection, container_id: str) -> bool:
    """Remove a container that has no task, and tell whether it was there."""
    from pyctr import records, tasks

    request, answer = containers_pb2.GetContainerRequest(id=container_id), containers_pb2.GetContainerResponse
    try:
        made = connection.call(CONTAINERS, "Get", request, answer, timeout=_ANSWER, patience=tasks.RECONNECT).container
    except NotFound:
        return False
    records.remove(connection, made.id, made.snapshotter, made.snapshot_key)
    return True


@contextlib.contextmanager
def _clearing_away(container_id: str) -> Iterator[None]:
    """Say how to remove a container if we cannot."""
    try:
        yield
    except ApiError as error:
        remedy = f"remove it with: pyctr rm -f {container_id}"
        tell(f"clearing away {container_id}: {error}; {remedy}")


def _load() -> None:
    """Import what the next steps need while the daemon makes the container."""
    with interrupts.held():
        from pyctr import records, run_session, tasks  # noqa: F401


@click.command(cls=arguments.DockerLike, context_settings=_SETTINGS, epilog=arguments.EXIT_CODES)
@creation_options
@click.option("--detach", "-d", is_flag=True, help="Leave it in the background and print its id.")
@arguments.detach_keys
@click.argument("image", shell_complete=completing.images)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
@interrupts.alike()
@as_ours()
def run(
    session: Session, /, image: str, command: tuple[str, ...], *, detach: bool, detach_keys: str, **given: Any
) -> int:
    """Make a container from IMAGE and run COMMAND in it."""
    keys = terminal.parse_detach_keys(detach_keys)
    if not detach:
        session.connection.check_local("the streams of a container")
        terminal.check(tty=given["tty"], interactive=given["interactive"])
    made = make(session, image, command, given)
    from pyctr import run_session, tasks

    connection = session.connection
    attached = None
    try:
        tasks.create(
            connection, made.id, made.rootfs, made.log_uri, terminal=given["tty"], interactive=given["interactive"]
        )
        if not detach:
            attached = run_session.attach(connection, made.id, stdin=given["interactive"])
        tasks.start(connection, made.id)
    except (ApiError, KeyboardInterrupt) as error:
        if attached is not None:
            attached.close()
        if not isinstance(error, ApiError):
            connection.close()  # what was under way on it is cancelled by that
        _give_up(connection, made, remove=given["rm"])
        if not isinstance(error, ApiError):
            raise
        raise CommandError(str(error), exit_codes.of_start_error(error)) from None
    if attached is None:
        click.echo(made.id)
        return 0
    from pyctr import records  # the container runs by now

    status = run_session.follow(connection, attached, made.id, "", stdin=given["interactive"], detach_keys=keys)
    if status is None:
        return 0
    if given["rm"]:
        try:
            tasks.delete(connection, made.id)
            records.remove(connection, made.id, made.snapshotter, made.id)
        except Unavailable as error:  # the next daemon removes it; its exit code is the caller's all the same
            tell(f"{made.id} is not removed yet: {error}")
    return status


def _give_up(connection: Connection, made: engine_pb2.RunSpecResponse, *, remove: bool) -> None:
    """Clear away the task of a container that did not start, the container too with --rm."""
    from pyctr import records, stopping, tasks

    with _clearing_away(made.id):
        tasks.give_up(lambda: tasks.delete(connection, made.id), lambda: stopping.end(connection, made.id))
        if remove:
            records.remove(connection, made.id, made.snapshotter, made.id)


@click.command(cls=arguments.DockerLike, context_settings=_SETTINGS)
@creation_options
@click.argument("image", shell_complete=completing.images)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
@interrupts.alike()
@as_ours()
def create(session: Session, /, image: str, command: tuple[str, ...], **given: Any) -> None:
    """Make a container from IMAGE and do not start it."""
    click.echo(make(session, image, command, given).id)
