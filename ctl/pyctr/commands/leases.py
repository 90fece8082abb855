"""`lease`: what keeps things from garbage collection for a while."""

from datetime import UTC, datetime, timedelta
from typing import Final

import click
from google.protobuf import empty_pb2

from pyctr import completing, output, run_options
from pyctr.connection import LEASES
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr.times import parse_moment
from pyctr_wire.containerd.services.leases.v1 import leases_pb2

_EXPIRE: Final = "containerd.io/gc.expire"


@click.group()
def lease() -> None:
    """Leases."""


@lease.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Only ids.")
@output.format_option
@pass_session
def ls(session: Session, *, quiet: bool) -> None:
    """List leases."""
    found = session.connection.call(LEASES, "List", leases_pb2.ListRequest(), leases_pb2.ListResponse).leases
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    rows = [
        {
            "ID": one.id,
            "CreatedSince": output.age(one.created_at.ToDatetime(UTC)),
            "Expires": one.labels.get(_EXPIRE, "never"),
            "Labels": ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()) if name != _EXPIRE)
            or "-",
        }
        for one in found
    ]
    columns = {"ID": "ID", "CreatedSince": "CREATED", "Expires": "EXPIRES", "Labels": "LABELS"}
    output.show_rows(session.format, columns, rows)


@lease.command()
@click.option("--id", "lease_id", default="", metavar="ID", help="Its id; a random one if left out.")
@click.option("--expires", metavar="SPAN", help="When it ends by itself: 24h.")
@click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="Set a label.")
@pass_session
def create(session: Session, *, lease_id: str, expires: str | None, labels: tuple[str, ...]) -> None:
    """Make a lease and print its id."""
    pairs = run_options.parse_pairs("--label", labels)
    if expires is not None:
        now = datetime.now(UTC)
        span: timedelta = now - parse_moment(expires, now)
        pairs[_EXPIRE] = (now + abs(span)).isoformat(timespec="seconds")
    request = leases_pb2.CreateRequest(id=lease_id, labels=pairs)
    click.echo(session.connection.call(LEASES, "Create", request, leases_pb2.CreateResponse).lease.id)


@lease.command()
@click.option("--sync", is_flag=True, help="Collect garbage before returning.")
@click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=completing.leases)
@pass_session
def rm(session: Session, *, ids: tuple[str, ...], sync: bool) -> int:
    """End leases."""

    def one(lease_id: str) -> None:
        request = leases_pb2.DeleteRequest(id=lease_id, sync=sync)
        session.connection.call(LEASES, "Delete", request, empty_pb2.Empty, timeout=600)

    return each(ids, one)
