"""`snapshot`: what containers and images have on disk."""

from datetime import UTC
from typing import Final

import click
from google.protobuf import empty_pb2

from pyctr import output
from pyctr.connection import SNAPSHOTS, Connection
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2

_KINDS: Final = {
    snapshots_pb2.Kind.VIEW: "view",
    snapshots_pb2.Kind.ACTIVE: "active",
    snapshots_pb2.Kind.COMMITTED: "committed",
}
_SNAPSHOTTER = click.option("--snapshotter", default="overlayfs", show_default=True, metavar="NAME", help="Whose.")


@click.group()
def snapshot() -> None:
    """Snapshots."""


def _list(connection: Connection, snapshotter: str) -> list[snapshots_pb2.Info]:
    request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
    answers = connection.stream(SNAPSHOTS, "List", request, snapshots_pb2.ListSnapshotsResponse)
    return [info for answer in answers for info in answer.info]


@snapshot.command("ls")
@_SNAPSHOTTER
@output.format_option
@pass_session
def ls(session: Session, *, snapshotter: str) -> None:
    """List snapshots."""
    rows = [
        {
            "Key": info.name,
            "Parent": info.parent or "-",
            "Kind": _KINDS.get(info.kind, "unknown"),
            "CreatedSince": output.age(info.created_at.ToDatetime(UTC)),
        }
        for info in _list(session.connection, snapshotter)
    ]
    columns = {"Key": "KEY", "Parent": "PARENT", "Kind": "KIND", "CreatedSince": "CREATED"}
    output.show_rows(session.format, columns, rows)


@snapshot.command()
@_SNAPSHOTTER
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@pass_session
def rm(session: Session, *, snapshotter: str, keys: tuple[str, ...]) -> int:
    """Remove snapshots that nothing is built on."""

    def one(key: str) -> None:
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        session.connection.call(SNAPSHOTS, "Remove", request, empty_pb2.Empty)

    return each(keys, one)


@snapshot.command()
@_SNAPSHOTTER
@output.format_option
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@pass_session
def usage(session: Session, *, snapshotter: str, keys: tuple[str, ...]) -> None:
    """Show what snapshots add to their parents on disk; all of them if none is named."""
    rows = []
    for key in keys or [info.name for info in _list(session.connection, snapshotter)]:
        request = snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=key)
        used = session.connection.call(SNAPSHOTS, "Usage", request, snapshots_pb2.UsageResponse, timeout=600)
        rows.append({"Key": key, "Size": output.size(used.size), "Bytes": used.size, "Inodes": used.inodes})
    output.show_rows(session.format, {"Key": "KEY", "Size": "SIZE", "Inodes": "INODES"}, rows)
