"""`snapshot`: what containers and images have on disk."""

from collections.abc import Sequence
from datetime import UTC
from functools import partial
from typing import Final

import click
from google.protobuf import empty_pb2

from pyctr import completing, output
from pyctr.connection import SNAPSHOTS, Connection
from pyctr.errors import CommandError
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


def _whole_keys(known: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return keys in full: the beginning will do if only one has it. Raises CommandError."""
    found = []
    for start in given:
        starting = [start] if start in known else [key for key in known if key.startswith(start)]
        if len(starting) > 1:
            raise CommandError(f"{start}: the keys of {len(starting)} snapshots begin so, give more of it")
        found += starting or [start]  # the daemon says that it is not there
    return found


@snapshot.command("ls")
@_SNAPSHOTTER
@click.option("--no-trunc", is_flag=True, help="Whole keys.")
@output.format_option
@pass_session
def ls(session: Session, *, snapshotter: str, no_trunc: bool) -> None:
    """List snapshots."""
    shown = partial(output.shown_digest, session.format, whole=no_trunc)
    rows = [
        {
            "Key": shown(info.name),
            "Parent": shown(info.parent) or "-",
            "Kind": _KINDS.get(info.kind, "unknown"),
            "CreatedSince": output.age(info.created_at.ToDatetime(UTC)),
        }
        for info in _list(session.connection, snapshotter)
    ]
    columns = {"Key": "KEY", "Parent": "PARENT", "Kind": "KIND", "CreatedSince": "CREATED"}
    output.show_rows(session.format, columns, rows)


@snapshot.command()
@_SNAPSHOTTER
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=completing.snapshots)
@pass_session
def rm(session: Session, *, snapshotter: str, keys: tuple[str, ...]) -> int:
    """Remove snapshots that nothing is built on.

    The beginning of a key will do if only one has it.
    """
    known = [info.name for info in _list(session.connection, snapshotter)]

    def one(start: str) -> None:
        (key,) = _whole_keys(known, [start])
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        session.connection.call(SNAPSHOTS, "Remove", request, empty_pb2.Empty)

    return each(keys, one)


@snapshot.command()
@_SNAPSHOTTER
@click.option("--no-trunc", is_flag=True, help="Whole keys.")
@output.format_option
@click.argument("keys", nargs=-1, metavar="[KEY...]", shell_complete=completing.snapshots)
@pass_session
def usage(session: Session, *, snapshotter: str, keys: tuple[str, ...], no_trunc: bool) -> None:
    """Show what snapshots take on disk.

    That is what they add to their parents: of all snapshots if no KEY is given.
    """
    known = [info.name for info in _list(session.connection, snapshotter)]
    shown = partial(output.shown_digest, session.format, whole=no_trunc)
    rows = []
    for key in _whole_keys(known, keys) if keys else known:
        request = snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=key)
        used = session.connection.call(SNAPSHOTS, "Usage", request, snapshots_pb2.UsageResponse, timeout=600)
        rows.append({"Key": shown(key), "Size": output.size(used.size), "Bytes": used.size, "Inodes": used.inodes})
    output.show_rows(session.format, {"Key": "KEY", "Size": "SIZE", "Inodes": "INODES"}, rows)
