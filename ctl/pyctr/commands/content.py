"""`content`: stored blobs."""

from datetime import UTC

import click
from google.protobuf import empty_pb2

from pyctr import completing, interrupts, output
from pyctr.connection import CONTENT, Connection
from pyctr.errors import CommandError
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.containerd.services.content.v1 import content_pb2


@click.group()
def content() -> None:
    """Stored blobs."""


def _list(connection: Connection) -> list[content_pb2.Info]:
    answers = connection.stream(CONTENT, "List", content_pb2.ListContentRequest(), content_pb2.ListContentResponse)
    return [info for answer in answers for info in answer.info]


@content.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Only digests.")
@click.option("--no-trunc", is_flag=True, help="Whole digests, and labels.")
@output.format_option
@pass_session
def ls(session: Session, *, quiet: bool, no_trunc: bool) -> None:
    """List blobs."""
    infos = _list(session.connection)
    if quiet:
        for info in infos:
            click.echo(info.digest)
        return
    rows = [
        {
            "Digest": output.shown_digest(session.format, info.digest, whole=no_trunc),
            "Size": output.size(info.size),
            "Bytes": info.size,
            "CreatedSince": output.age(info.created_at.ToDatetime(UTC)),
            "Labels": ",".join(f"{name}={value}" for name, value in sorted(info.labels.items())) or "-",
        }
        for info in infos
    ]
    columns = {"Digest": "DIGEST", "Size": "SIZE", "CreatedSince": "CREATED"}
    output.show_rows(session.format, columns | ({"Labels": "LABELS"} if no_trunc else {}), rows)


@content.command()
@click.option(
    "--platform", default="", metavar="OS/ARCH", help="Which of the image's platforms; the daemon's if left out."
)
@click.option("--all-platforms", is_flag=True, help="All of its platforms.")
@click.argument("name", shell_complete=completing.images)
@pass_session
def fetch(session: Session, *, name: str, platform: str, all_platforms: bool) -> None:
    """Fetch an image's blobs from its registry without unpacking them."""
    with interrupts.held():
        from pyctr import transfer

    full = transfer.pull(session.connection, name, platform=platform, every_platform=all_platforms, unpack=False)
    click.echo(full)


@content.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...", shell_complete=completing.digests)
@pass_session
def rm(session: Session, *, digests: tuple[str, ...]) -> int:
    """Remove blobs, given by their digests or unique beginnings of them."""
    connection = session.connection
    known = [info.digest for info in _list(connection)]

    def one(digest: str) -> None:
        start = digest if ":" in digest else f"sha256:{digest}"
        found = [one for one in known if one.startswith(start)]
        if not found:
            raise CommandError(f"no such blob: {digest}")
        if len(found) > 1:
            raise CommandError(f"{digest}: the digests of {len(found)} blobs begin so, give more of it")
        request = content_pb2.DeleteContentRequest(digest=found[0])
        connection.call(CONTENT, "Delete", request, empty_pb2.Empty)

    return each(digests, one)
