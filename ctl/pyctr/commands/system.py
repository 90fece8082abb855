"""The daemon itself: `version`, `info`, `df`, `gc`, `ops`, `why`, `plugin`."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

import click
from google.protobuf import empty_pb2

from pyctr import completing, lookup, output
from pyctr.connection import ENGINE, INTROSPECTION, VERSION
from pyctr.errors import CommandError
from pyctr.session import Session, pass_session
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2
from pyctr_wire.containerd.services.version.v1 import version_pb2
from pyctr_wire.errors import Code
from pyctr_wire.pyctr import engine_pb2


@click.command()
@output.short_format_option
@pass_session
def version(session: Session) -> None:
    """Show the versions of pyctr and its daemon."""
    client = {"Version": metadata.version("pyctr")}
    if session.format == "table":  # ours is known whether or not a daemon answers
        _show_side("Client", client)
    answer = session.connection.call(VERSION, "Version", empty_pb2.Empty(), version_pb2.VersionResponse)
    server = {"Version": answer.version, "Revision": answer.revision, "Address": session.address}
    if session.format == "table":
        _show_side("Server", server)
    else:
        output.show_one(session.format, {"Client": client, "Server": server})


def _show_side(side: str, fields: Mapping[str, str]) -> None:
    click.echo(f"{side}:")
    for name, value in fields.items():
        click.echo(f"  {name + ':':<10} {value}")


@click.command()
@output.short_format_option
@pass_session
def info(session: Session) -> None:
    """Show what the daemon is and has."""
    connection = session.connection
    server = connection.call(INTROSPECTION, "Server", empty_pb2.Empty(), introspection_pb2.ServerResponse)
    version_ = connection.call(VERSION, "Version", empty_pb2.Empty(), version_pb2.VersionResponse)
    plugins = _plugins(session)
    deprecations: Iterable[Any] = server.deprecations  # whose name is that of a class of Python's to mypy
    document: dict[str, Any] = {
        "Version": version_.version,
        "UUID": server.uuid,
        "Pid": server.pid,
        "Address": session.address,
        "Namespace": session.namespace,
        "Snapshotters": [
            one.id for one in plugins if one.type == "io.containerd.snapshotter.v1" and _plugin_state(one) == "ok"
        ],
        "FailedPlugins": [f"{one.type}.{one.id}" for one in plugins if _plugin_state(one) == "error"],
        "Warnings": [one.message for one in deprecations],
    }
    if session.format == "table":
        for name, value in document.items():
            text = (", ".join(value) or "none") if isinstance(value, list) else value
            click.echo(f"{name + ':':<15} {text}")
    else:
        output.show_one(session.format, document)


def _plugins(session: Session) -> list[introspection_pb2.Plugin]:
    answer = session.connection.call(
        INTROSPECTION, "Plugins", introspection_pb2.PluginsRequest(), introspection_pb2.PluginsResponse
    )
    return list(answer.plugins)


def _plugin_state(one: introspection_pb2.Plugin) -> str:
    """Return what ctr says of a plugin: "skip" is one that this machine cannot have."""
    if not one.HasField("init_err"):
        return "ok"
    return "skip" if one.init_err.code == Code.UNIMPLEMENTED else "error"


@click.group()
def plugin() -> None:
    """The daemon's plugins."""


@plugin.command("ls")
@output.format_option
@pass_session
def plugin_ls(session: Session) -> None:
    """List the daemon's plugins as containerd's clients see them."""
    rows = [
        {
            "Type": one.type,
            "ID": one.id,
            "Platforms": ",".join(f"{platform.os}/{platform.architecture}" for platform in one.platforms) or "-",
            "Status": _plugin_state(one),
        }
        for one in _plugins(session)
    ]
    output.show_rows(session.format, {"Type": "TYPE", "ID": "ID", "Platforms": "PLATFORMS", "Status": "STATUS"}, rows)


@click.command()
@output.format_option
@pass_session
def df(session: Session) -> None:
    """Show what takes disk space."""
    answer = session.connection.call(
        ENGINE, "DiskUsage", engine_pb2.DiskUsageRequest(), engine_pb2.DiskUsageResponse, timeout=600
    )
    rows = [
        {
            "Type": item.kind.capitalize(),
            "TotalCount": item.count,
            "Active": item.active,
            "Size": output.size(item.size),
            "Reclaimable": output.size(item.reclaimable),
        }
        for item in answer.items
    ]
    columns = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
    output.show_rows(session.format, columns, rows)


@click.command()
@output.format_option
@pass_session
def gc(session: Session) -> None:
    """Collect garbage now: what no image, container or lease needs."""
    answer = session.connection.call(
        ENGINE, "CollectGarbage", engine_pb2.CollectGarbageRequest(), engine_pb2.CollectGarbageResponse, timeout=600
    )
    if session.format != "table":
        removed = {"RemovedContent": list(answer.removed_content), "RemovedSnapshots": dict(answer.removed_snapshots)}
        output.show_one(session.format, {**removed, "Reclaimed": answer.reclaimed})
        return
    for digest in answer.removed_content:
        click.echo(f"removed {digest}")
    for snapshotter, count in answer.removed_snapshots.items():
        if count:
            click.echo(f"removed {count} snapshots of {snapshotter}")
    click.echo(f"reclaimed {output.size(answer.reclaimed)}")


_OPERATION_COLUMNS: Final = {
    "ID": "ID", "Namespace": "NAMESPACE", "Name": "OPERATION", "Object": "OBJECT", "Started": "STARTED",
    "Result": "RESULT", "Stage": "STAGE",
}  # fmt: skip


def _operation_row(operation: engine_pb2.Operation) -> dict[str, Any]:
    ended = operation.HasField("ended_at")
    overdue = operation.HasField("deadline") and not ended and operation.deadline.ToDatetime(UTC) < datetime.now(UTC)
    if operation.error:
        result = f"failed: {operation.error}"
    elif ended:
        result = "done"
    else:
        result = "under way, past its deadline" if overdue else "under way"
    return {
        "ID": operation.id,
        "Namespace": operation.namespace,
        "Object": operation.object,
        "Name": operation.name,
        "Stage": operation.stage,
        "Started": output.age(operation.started_at.ToDatetime(UTC)),
        "Result": result,
    }


@click.command()
@output.format_option
@pass_session
def ops(session: Session) -> None:
    """Show what the daemon is doing, in all namespaces, oldest first."""
    answer = session.connection.call(ENGINE, "Ops", engine_pb2.OpsRequest(), engine_pb2.OpsResponse)
    rows = [_operation_row(one) for one in answer.operations]
    rows = [row | {"Object": output.shown_digest(session.format, row["Object"], whole=False)} for row in rows]
    output.show_rows(session.format, _OPERATION_COLUMNS, rows)


@click.command()
@output.format_option
@click.argument("object_id", metavar="CONTAINER|OPERATION", shell_complete=completing.containers)
@pass_session
def why(session: Session, *, object_id: str) -> None:
    """Show what happened to a container or an operation."""
    # If not a container, it is an operation's id, or a container that is gone: the daemon may remember either.
    with suppress(CommandError):
        object_id = lookup.find(session.connection, object_id).id
    answer = session.connection.call(ENGINE, "Why", engine_pb2.WhyRequest(id=object_id), engine_pb2.WhyResponse)
    rows = [_operation_row(one) for one in answer.operations]
    if session.format != "table":
        output.show_rows(session.format, _OPERATION_COLUMNS, rows)
        return
    for row in rows:  # errors are long: a line for each fact
        click.echo(f"{row['ID']}: {row['Name']} {row['Object']}")
        for title in ("Started", "Stage", "Result"):
            click.echo(f"  {title + ':':<9}{row[title]}")
