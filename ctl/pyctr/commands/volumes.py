"""`volume`: what containers keep outside of their own file system."""

import sys
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import click

from pyctr import completing, exit_codes, output, run_options
from pyctr.connection import ENGINE, Connection
from pyctr.errors import CommandError
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.pyctr import engine_pb2

Volume = engine_pb2.VolumesResponse.Volume
_NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.volumes)


@click.group()
def volume() -> None:
    """Volumes.

    One with a name can be given to any container (run -v NAME:PATH) and stays until it is removed. One without is
    made for a single container (run -v PATH, or by its image), and stays when that is removed without -v or --rm.
    """


def _volumes(connection: Connection) -> list[Volume]:
    answer = connection.call(ENGINE, "Volumes", engine_pb2.VolumesRequest(), engine_pb2.VolumesResponse)
    return sorted(answer.volumes, key=lambda one: (bool(one.container), one.container, one.target, one.name))


def _remove(connection: Connection, name: str) -> None:
    request = engine_pb2.RemoveVolumesRequest(name=name)
    connection.call(ENGINE, "RemoveVolumes", request, engine_pb2.RemoveVolumesResponse, timeout=None)


def _full_name(known: list[Volume], name: str) -> str:
    """Return the name of the volume that is meant: for one without a name of its own, the beginning will do."""
    starting = [one.name for one in known if one.container and one.name.startswith(name)]
    if len(starting) == 1 and all(one.name != name for one in known):
        return starting[0]
    return name


@volume.command()
@click.option("--label", "-l", multiple=True, metavar="NAME[=VALUE]", help="Set a label.")
@click.argument("name", required=False, default="")
@pass_session
def create(session: Session, *, name: str, label: tuple[str, ...]) -> None:
    """Make a volume and print its name.

    Without NAME it gets a random one. A volume that is there already stays as it is.
    """
    request = engine_pb2.CreateVolumeRequest(name=name, labels=run_options.parse_pairs("--label", label))
    answer = session.connection.call(ENGINE, "CreateVolume", request, engine_pb2.CreateVolumeResponse)
    click.echo(answer.name)


@volume.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@click.option("--no-trunc", is_flag=True, help="Whole names and ids.")
@output.format_option
@pass_session
def ls(session: Session, *, quiet: bool, no_trunc: bool) -> None:
    """List volumes."""
    found = _volumes(session.connection)
    if quiet:
        for one in found:
            click.echo(one.name)
        return
    width = None if no_trunc else 12
    rows = [
        {
            "Name": one.name[:width] if one.container else one.name,
            "Container": _shown(_containers(one), width),
            "Used": "yes" if one.used else "no",
            "Target": one.target or "-",
            "Labels": ",".join(f"{name}={value}" for name, value in sorted(one.labels.items())),
            "Mountpoint": one.path,
        }
        for one in found
    ]
    columns = {"Name": "NAME", "Container": "CONTAINER", "Used": "USED", "Target": "TARGET"}
    output.show_rows(session.format, columns, rows)


def _shown(containers: Sequence[str], width: int | None) -> str:
    """Return ids, the first of many unless all shall be shown."""
    most = len(containers) if width is None else 2
    more = [f"+{len(containers) - most}"] if len(containers) > most else []
    return ",".join([*(id[:width] for id in containers[:most]), *more]) or "-"


def _containers(one: Volume) -> list[str]:
    return [one.container] if one.container else list(one.users)


@volume.command()
@output.short_format_option
@_NAMES
@pass_session
def inspect(session: Session, *, names: tuple[str, ...]) -> int:
    """Show everything about volumes."""
    known = _volumes(session.connection)
    by_name = {one.name: one for one in known}

    def describe(name: str) -> dict[str, Any]:
        one = by_name.get(_full_name(known, name))
        if one is None:
            raise CommandError(f"no such volume: {name}")
        return {
            "Name": one.name,
            "Driver": "local",
            "Scope": "local",
            "Mountpoint": one.path,
            "CreatedAt": one.created_at.ToDatetime(UTC).isoformat() if one.HasField("created_at") else "",
            "Labels": dict(one.labels),
            "Anonymous": bool(one.container),
            "Target": one.target,
            "Containers": _containers(one),
            "Used": one.used,
        }

    return output.show_documents(session.format, names, describe)


@volume.command()
@_NAMES
@pass_session
def rm(session: Session, *, names: tuple[str, ...]) -> int:
    """Remove volumes that no container has.

    Of one that was made for a container, the beginning of its name will do.
    """
    known = _volumes(session.connection)
    return each(names, lambda name: _remove(session.connection, _full_name(known, name)))


@volume.command()
@click.option("--all", "-a", "every", is_flag=True, help="Those with a name too.")
@click.option("--force", "-f", is_flag=True, help="Do not ask, as is usual on a terminal.")
@pass_session
def prune(session: Session, *, every: bool, force: bool) -> int:
    """Remove the volumes of containers that are gone."""
    unused = [one.name for one in _volumes(session.connection) if not one.used and (every or one.container)]
    if unused and not force and sys.stdin.isatty():
        noun = "volume" if len(unused) == 1 else "volumes"
        if not click.confirm(f"Remove {len(unused)} {noun} and all that is in them?", err=True):
            return exit_codes.FAILURE
    return each(unused, lambda name: _remove(session.connection, name))
