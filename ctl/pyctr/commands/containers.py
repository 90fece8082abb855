"""`ps`, `inspect`, `top`: what containers are there and what they are."""

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from pyctr import arguments, completing, lookup, output, records, references, tasks
from pyctr.connection import CONTAINERS, ENGINE, TASKS, Connection
from pyctr.errors import CommandError, not_running, plain
from pyctr.session import Session, pass_session
from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from pyctr_wire.containerd.types.task.task_pb2 import Process, Status
from pyctr_wire.errors import NotFound, Unimplemented
from pyctr_wire.pyctr import engine_pb2

_COLUMNS: Final = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "RunningFor": "CREATED", "Status": "STATUS",
    "Names": "NAMES",
}  # fmt: skip
_SHORT: Final = 12
_PROPAGATIONS: Final = frozenset({"private", "shared", "slave"})
_COMMAND_WIDTH: Final = 20


@click.command(cls=arguments.DockerLike)
@click.option("--all", "-a", "everything", is_flag=True, help="Also those that do not run.")
@click.option("--quiet", "-q", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--filter", "-f", "filters", multiple=True, metavar="NAME=VALUE", help="name=, id=, label=, status=.")
@output.format_option
@pass_session
def ps(session: Session, *, everything: bool, quiet: bool, no_trunc: bool, filters: tuple[str, ...]) -> None:
    """List containers."""
    wanted = _parsed(filters)
    connection = session.connection
    containers = connection.call(
        CONTAINERS, "List", containers_pb2.ListContainersRequest(), containers_pb2.ListContainersResponse
    ).containers
    running = connection.call(TASKS, "List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse).tasks
    processes = {process.id: process for process in running}
    started = _start_times(connection) if running else {}
    rows = []
    for container in sorted(containers, key=lambda one: one.created_at.ToNanoseconds(), reverse=True):
        process = processes.get(container.id)
        row = _row(container, process, started.get(container.id), whole=no_trunc)
        if (everything or "status" in wanted or row["State"] in _UP) and _matches(container, row, wanted):
            rows.append(row)
    if quiet:
        for row in rows:
            click.echo(row["ID"])
    else:
        output.show_rows(session.format, _COLUMNS, rows)


_UP: Final = frozenset({"running", "paused"})
_STATES: Final = {Status.CREATED: "created", Status.RUNNING: "running", Status.STOPPED: "exited",
                  Status.PAUSED: "paused", Status.PAUSING: "paused"}  # fmt: skip
_UNRESPONSIVE: Final = "unresponsive"
# Docker has some more, which no container of ours is ever in: who asks for them finds none.
_ALL_STATES: Final = (*dict.fromkeys(_STATES.values()), _UNRESPONSIVE, "restarting", "removing", "dead")


def state_of(process: Process | None) -> str:
    """Return a container's state in docker's words."""
    return "created" if process is None else _STATES.get(process.status, _UNRESPONSIVE)


def _status(process: Process | None, started: datetime | None) -> str:
    state = state_of(process)
    if process is None or state == "created":
        return "Created"
    if state == "exited":
        return f"Exited ({process.exit_status}) {output.age(process.exited_at.ToDatetime(UTC))}"
    up = f"Up {output.duration(datetime.now(UTC) - started)}" if started else "Up"
    return {"paused": f"{up} (Paused)", "running": up}.get(state, state.capitalize())


def _start_times(connection: Connection) -> dict[str, datetime]:
    """Return when tasks were started, by container id; nothing from a daemon that cannot say."""
    try:
        answer = connection.call(ENGINE, "StartTimes", engine_pb2.StartTimesRequest(), engine_pb2.StartTimesResponse)
    except Unimplemented:
        return {}
    return {container: moment.ToDatetime(UTC) for container, moment in answer.started_at.items()}


def _row(
    container: containers_pb2.Container, process: Process | None, started: datetime | None, *, whole: bool
) -> dict[str, Any]:
    args = records.spec_of(container).get("process", {}).get("args", [])
    command = shlex.join(args)
    if not whole and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    created = container.created_at.ToDatetime(UTC)
    return {
        "ID": container.id if whole else container.id[:_SHORT],
        "Image": references.familiar(container.image),
        "Command": json.dumps(command, ensure_ascii=False),
        "CreatedAt": created.isoformat(timespec="seconds"),
        "RunningFor": output.age(created),
        "Status": _status(process, started),
        "State": state_of(process),
        "Names": container.labels.get(labels.NAME, ""),
        "Labels": ",".join(f"{name}={value}" for name, value in sorted(container.labels.items())),
    }


def _parsed(filters: Iterable[str]) -> dict[str, list[str]]:
    """Return docker's filters: the values that are wanted, by name. Raises click.BadParameter."""
    wanted: dict[str, list[str]] = {}
    for entry in filters:
        name, separator, value = entry.partition("=")
        if not separator or name not in ("name", "id", "label", "status"):
            raise click.BadParameter(f"--filter {entry}: give name=, id=, label= or status=")
        if name == "status" and value not in _ALL_STATES:
            raise click.BadParameter(f"--filter {entry}: it can be {', '.join(_ALL_STATES)}")
        if name == "name":
            _check_expression(entry, value)
        wanted.setdefault(name, []).append(value)
    return wanted


def _check_expression(entry: str, value: str) -> None:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:  # the others for repetitions and groups beyond measure
        raise click.BadParameter(f"--filter {entry[:200]}: {error}") from None


def _matches(container: containers_pb2.Container, row: Mapping[str, Any], wanted: Mapping[str, list[str]]) -> bool:
    """Tell whether a container passes filters: values of one name are alternatives, names all hold."""

    def one(name: str, value: str) -> bool:
        if name == "label":
            key, separator, content = value.partition("=")
            return key in container.labels and (not separator or container.labels[key] == content)
        if name == "name":  # docker's names begin with a slash, which its users may leave out
            return any(re.search(value, prefix + str(row["Names"])) for prefix in ("", "/"))
        return container.id.startswith(value) if name == "id" else row["State"] == value

    return all(any(one(name, value) for value in values) for name, values in wanted.items())


@click.command()
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="What the names are of.")
@output.short_format_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.containers_and_images)
@pass_session
def inspect(session: Session, *, names: tuple[str, ...], kind: str | None) -> int:
    """Show everything about containers or images."""
    return output.show_documents(session.format, names, lambda name: _find_and_describe(session.connection, name, kind))


def _find_and_describe(connection: Connection, name: str, kind: str | None) -> dict[str, Any]:
    """Return the document of a container, or else of an image, of that name. Raises CommandError."""
    if kind != "image":
        try:
            return _describe(connection, lookup.find(connection, name))
        except CommandError:
            if kind == "container":
                raise
    from pyctr.commands.images import describe

    missing = f"no such image: {name}" if kind else f"no such container or image: {name}"
    return describe(connection, name, missing)


def _describe(connection: Connection, container: containers_pb2.Container) -> dict[str, Any]:
    process = tasks.get(connection, container.id)
    spec = records.spec_of(container)
    running = state_of(process) in _UP
    # As with docker, a template finds what there is not yet, too.
    state: dict[str, Any] = {
        "Status": state_of(process),
        "Running": running,
        "Pid": process.pid if process is not None and running else 0,
        "StartedAt": _NEVER,
        "ExitCode": 0,
        "FinishedAt": _NEVER,
        "OOMKilled": False,
    }
    if process is not None:
        started = _start_times(connection).get(container.id)
        if started is not None:
            state["StartedAt"] = started.isoformat()
        if process.status == Status.STOPPED:
            state |= _exit(connection, container.id, process)
    restarts = container.labels.get(labels.RESTART_COUNT, "")
    return {
        "Id": container.id,
        "Name": container.labels.get(labels.NAME, ""),
        "Created": container.created_at.ToDatetime(UTC).isoformat(),
        "State": state,
        "Image": container.image,
        "Runtime": container.runtime.name,
        "Snapshotter": container.snapshotter,
        "SnapshotKey": container.snapshot_key,
        "LogDriver": container.labels.get(labels.LOG_DRIVER, ""),
        "LogPath": container.labels.get(labels.LOG_PATH, ""),
        "RestartPolicy": container.labels.get(labels.RESTART_POLICY, "") or "no",
        "RestartCount": int(restarts) if restarts.isdecimal() else 0,  # who writes labels may write anything
        "Mounts": _mounts(connection, container.id, spec),
        "Labels": dict(sorted(container.labels.items())),
        "Spec": spec,
    }


_NEVER: Final = "0001-01-01T00:00:00Z"  # docker's word for a time that has not come
_OURS: Final = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/init")  # mounted unless the user does


def _mounts(connection: Connection, container_id: str, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the host's directories and files, and the volumes, that a container has, as docker lists them."""
    binds = [mount for mount in spec.get("mounts", []) if mount.get("type") == "bind"]
    volumes = {}
    if any("volumes/" in mount["source"] for mount in binds):
        answer = connection.call(ENGINE, "Volumes", engine_pb2.VolumesRequest(), engine_pb2.VolumesResponse)
        volumes = {volume.path: volume.name for volume in answer.volumes}
    found = []
    for mount in binds:
        source, target, options = mount["source"], mount["destination"], mount.get("options", [])
        if target in _OURS and (source == target or f"/{container_id}/" in source or target == "/dev/init"):
            continue
        kind = {"Type": "volume", "Name": volumes[source]} if source in volumes else {"Type": "bind"}
        propagation = next((option for option in options if option.removeprefix("r") in _PROPAGATIONS), "")
        found.append(
            {**kind, "Source": source, "Destination": target, "RW": "ro" not in options, "Propagation": propagation}
        )
    return found


def _exit(connection: Connection, container_id: str, process: Process) -> dict[str, Any]:
    exit_state: dict[str, Any] = {
        "ExitCode": process.exit_status,
        "FinishedAt": process.exited_at.ToDatetime(UTC).isoformat(),
    }
    try:
        known = connection.call(
            ENGINE, "ExitInfo", engine_pb2.ExitInfoRequest(id=container_id), engine_pb2.ExitInfoResponse
        )
    except NotFound:
        return exit_state
    return exit_state | {"OOMKilled": known.oom_killed, "Reason": known.reason, "Signal": known.signal}


_TOP_COLUMNS: Final = {
    "Pid": "PID",
    "Ppid": "PPID",
    "User": "USER",
    "State": "STATE",
    "Time": "TIME",
    "Command": "COMMAND",
}


@click.command()
@output.format_option
@click.argument("container", shell_complete=completing.containers)
@pass_session
def top(session: Session, *, container: str) -> None:
    """Show the processes of a container, as this machine numbers them."""
    found = lookup.find(session.connection, container)
    ended = not_running(container)
    if not tasks.runs(session.connection, found.id):
        raise ended
    try:
        pids = session.connection.call(
            TASKS, "ListPids", tasks_pb2.ListPidsRequest(container_id=found.id), tasks_pb2.ListPidsResponse
        ).processes
    except NotFound:
        raise ended from None
    rows = [row for process in pids if (row := _process_row(process.pid)) is not None]
    output.show_rows(session.format, _TOP_COLUMNS, rows)


def _process_row(pid: int) -> dict[str, Any] | None:
    """Return what /proc says about a process, None if it has just ended. Source: proc(5)."""
    folder = Path(f"/proc/{pid}")
    try:
        name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        uid = folder.stat().st_uid
    except OSError:
        return None
    seconds = (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")
    return {
        "Pid": pid,
        "Ppid": int(fields[1]),
        "User": uid,  # a number: its name inside the container is the container's own affair
        "State": fields[0],
        "Time": f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "Command": plain(command or f"[{name}]"),  # as ps(1) does it
    }
