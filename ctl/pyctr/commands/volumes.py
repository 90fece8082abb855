"""`volume`: what containers keep outside of their own file system."""

import click

from pyctr import output
from pyctr.connection import ENGINE, Connection
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.pyctr import engine_pb2


@click.group()
def volume() -> None:
    """Volumes: each is made for one container, and stays when that is removed without -v or --rm."""


def _volumes(connection: Connection) -> list[engine_pb2.VolumesResponse.Volume]:
    answer = connection.call(ENGINE, "Volumes", engine_pb2.VolumesRequest(), engine_pb2.VolumesResponse)
    return sorted(answer.volumes, key=lambda one: (one.container, one.target))


def _remove(connection: Connection, name: str) -> None:
    request = engine_pb2.RemoveVolumesRequest(name=name)
    connection.call(ENGINE, "RemoveVolumes", request, engine_pb2.RemoveVolumesResponse, timeout=None)


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
            "Name": one.name[:width],
            "Container": one.container[:width],
            "Used": "yes" if one.used else "no",
            "Target": one.target or "-",
            "Mountpoint": one.path,
        }
        for one in found
    ]
    columns = {"Name": "NAME", "Container": "CONTAINER", "Used": "USED", "Target": "TARGET"}
    output.show_rows(session.format, columns, rows)


@volume.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@pass_session
def rm(session: Session, *, names: tuple[str, ...]) -> int:
    """Remove volumes of containers that are gone; the beginning of a name will do if only one has it."""
    known = [one.name for one in _volumes(session.connection)]

    def one(name: str) -> None:
        starting = [candidate for candidate in known if candidate.startswith(name)]
        _remove(session.connection, starting[0] if len(starting) == 1 else name)

    return each(names, one)


@volume.command()
@pass_session
def prune(session: Session) -> int:
    """Remove all volumes of containers that are gone."""
    unused = [one.name for one in _volumes(session.connection) if not one.used]
    return each(unused, lambda name: _remove(session.connection, name))
