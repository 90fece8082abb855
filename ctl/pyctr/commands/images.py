"""`image`: ls, pull, push, import, export, rm, tag, inspect, from-host."""

import json
import sys
from contextlib import ExitStack, suppress
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf import empty_pb2

from pyctr import completing, interrupts, output, output_file, references
from pyctr.connection import CONTENT, IMAGES, Connection
from pyctr.errors import CommandError
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.containerd.services.content.v1 import content_pb2
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.errors import ApiError, DataLoss, InvalidArgument, NotFound, Unavailable
from pyctr_wire.oci import image_spec
from pyctr_wire.oci.image_spec import Manifest

_COLUMNS: Final = {
    "Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Platform": "PLATFORM",
    "Size": "SIZE",
}  # fmt: skip
_SHORT: Final = 12
# Of a blob that is not here, is damaged, or is something else than an image's: what has a name need be no image.
_UNREADABLE: Final = (NotFound, InvalidArgument, DataLoss)


@click.group()
def image() -> None:
    """Images."""


def _list(connection: Connection) -> list[images_pb2.Image]:
    return list(connection.call(IMAGES, "List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse).images)


def find(connection: Connection, name: str, missing: str = "") -> images_pb2.Image:
    """Return the image called `name`: in full, as docker shortens it, or by the start of its digest.

    Raises CommandError.
    """
    images = {one.name: one for one in _list(connection)}
    candidates = [name]
    with suppress(CommandError):  # not a name; it may be a digest
        candidates.append(references.complete(name))
    for candidate in candidates:
        if candidate in images:
            return images[candidate]
    start = name.removeprefix("sha256:")
    matching = [one for one in images.values() if one.target.digest.removeprefix("sha256:").startswith(start)]
    if len(start) >= 4 and len({one.target.digest for one in matching}) == 1:
        return matching[0]
    raise CommandError(missing or f"no such image: {name}")


def read_blob(connection: Connection, digest: str) -> bytes:
    """Return a small blob. Raises NotFound, InvalidArgument for one that is too large for a document."""
    data = bytearray()
    request = content_pb2.ReadContentRequest(digest=digest)
    for part in connection.stream(CONTENT, "Read", request, content_pb2.ReadContentResponse):
        data += part.data
        image_spec.check_size(len(data), digest)
    return bytes(data)


def _manifests(connection: Connection, digest: str, media_type: str) -> list[tuple[str, Manifest]]:
    """Return the manifests of an image that are here, with their platforms; attestations left out."""
    try:
        document = image_spec.parse_document(read_blob(connection, digest), media_type)
    except _UNREADABLE:
        return []
    if isinstance(document, Manifest):
        return [("", document)]
    found = []
    for child in document.manifests:
        platform = child.platform
        if child.media_type not in image_spec.MANIFESTS or (platform and platform.os == "unknown"):
            continue
        text = "/".join(filter(None, (platform.os, platform.architecture, platform.variant))) if platform else ""
        found += [(text, manifest) for _, manifest in _manifests(connection, child.digest, child.media_type)]
    return found


def _row(connection: Connection, one: images_pb2.Image, *, whole: bool) -> dict[str, Any]:
    repository, tag_ = references.split_tag(references.familiar(one.name))
    manifests = _manifests(connection, one.target.digest, one.target.media_type)
    size = sum(layer.size for _, manifest in manifests for layer in manifest.layers)
    platforms = [text or _config_platform(connection, manifest) for text, manifest in manifests]
    created = one.created_at.ToDatetime(UTC)
    digest = one.target.digest.removeprefix("sha256:")
    return {
        "Name": one.name,
        "Repository": repository,
        "Tag": tag_,
        "ID": one.target.digest if whole else digest[:_SHORT],
        "Digest": one.target.digest,
        "CreatedAt": created.isoformat(timespec="seconds"),
        "CreatedSince": output.age(created),
        "Platform": ",".join(dict.fromkeys(platforms)) or "-",
        "Size": output.size(size),
    }


def _config_platform(connection: Connection, manifest: Manifest) -> str:
    try:
        platform = image_spec.parse_config(read_blob(connection, manifest.config.digest)).platform
    except _UNREADABLE:
        return "-"
    return "/".join(filter(None, (platform.os, platform.architecture, platform.variant))) or "-"


def _process_config(connection: Connection, manifest: Manifest) -> Any:
    try:
        document = image_spec.load_json(read_blob(connection, manifest.config.digest), "image configuration")
    except _UNREADABLE:
        return None
    return document.get("config", {}) if isinstance(document, dict) else None


@image.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@click.option("--no-trunc", is_flag=True, help="Whole digests.")
@output.format_option
@pass_session
def ls(session: Session, *, quiet: bool, no_trunc: bool) -> None:
    """List images."""
    images = _list(session.connection)
    if quiet:
        for one in images:
            click.echo(one.name)
        return
    output.show_rows(session.format, _COLUMNS, [_row(session.connection, one, whole=no_trunc) for one in images])


@image.command()
@click.option(
    "--platform", default="", metavar="OS/ARCH", help="Which of the image's platforms; the daemon's if left out."
)
@click.option("--all-platforms", is_flag=True, help="All of its platforms; only the daemon's is unpacked.")
@click.option("--snapshotter", default="", metavar="NAME", help="Which snapshotter to unpack for.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print the image's full name.")
@click.argument("name", shell_complete=completing.images)
@pass_session
def pull(session: Session, *, name: str, platform: str, all_platforms: bool, snapshotter: str, quiet: bool) -> None:
    """Fetch an image from its registry and unpack it.

    Of an image for several platforms, that of the daemon's machine.
    """
    with interrupts.held():
        from pyctr import transfer

    full = transfer.pull(
        session.connection, name, platform=platform, every_platform=all_platforms, snapshotter=snapshotter
    )
    if not quiet:
        click.echo(full)


@image.command()
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Only these of its platforms.")
@click.argument("name", shell_complete=completing.images)
@click.argument("target", required=False)
@pass_session
def push(session: Session, *, name: str, target: str | None, platforms: tuple[str, ...]) -> None:
    """Send an image to its registry, or to TARGET.

    Of an image of which only one platform was pulled, that one is sent alone.
    """
    with interrupts.held():
        from pyctr import transfer

    full = references.complete(target or name)
    transfer.push(session.connection, find(session.connection, name).name, full, platforms)
    click.echo(full)


@image.command("import")
@click.option("--platform", default="", metavar="OS/ARCH", help="Only this platform.")
@click.option("--snapshotter", default="", metavar="NAME", help="Which snapshotter to unpack for.")
@click.argument("file", shell_complete=completing.files)
@pass_session
def import_(session: Session, *, file: str, platform: str, snapshotter: str) -> None:
    """Load images from an archive.

    FILE is in OCI's or docker's layout; - is standard input.
    """
    with interrupts.held():
        from pyctr import transfer

    with ExitStack() as stack:
        try:
            stream = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror}") from None
        try:
            names = transfer.import_archive(session.connection, stream, platform=platform, snapshotter=snapshotter)
        except Unavailable:  # nothing about the archive
            raise
        except ApiError as error:
            raise CommandError(f"{'standard input' if file == '-' else file}: {error}") from None
    for name in names:
        click.echo(name)


@image.command()
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Only these of its platforms.")
@click.option("--all-platforms", is_flag=True, help="All of its platforms.")
@click.option(
    "--output",
    "-o",
    "target",
    default="-",
    metavar="FILE",
    shell_complete=completing.files,
    help="Write here instead of standard output.",
)
@click.argument("name", shell_complete=completing.images)
@pass_session
def export(session: Session, *, name: str, target: str, platforms: tuple[str, ...], all_platforms: bool) -> None:
    """Write an image to an archive.

    docker, podman and ctr can load it.
    """
    with interrupts.held():
        from pyctr import transfer

    found = find(session.connection, name)
    if target == "-" and sys.stdout.isatty():
        raise CommandError("an archive is nothing for a terminal: name a file with -o, or use a pipe")
    with ExitStack() as stack:
        stream = sys.stdout.buffer if target == "-" else stack.enter_context(output_file.written(target))
        transfer.export_archive(
            session.connection, found.name, stream, platforms=platforms, every_platform=all_platforms
        )


@image.command()
@click.option("--force", "-f", is_flag=True, help="Also if containers use it.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.images)
@pass_session
def rm(session: Session, *, names: tuple[str, ...], force: bool) -> int:
    """Remove images and what only they needed."""
    connection = session.connection

    def one(name: str) -> None:
        found = find(connection, name)
        users = _users(connection, found.name)
        if users and not force:
            raise CommandError(f"image {name} is used by container {users[0]}: remove that first, or use rm -f")
        connection.call(
            IMAGES, "Delete", images_pb2.DeleteImageRequest(name=found.name, sync=True), empty_pb2.Empty, timeout=600
        )

    return each(names, one)


def _users(connection: Connection, name: str) -> list[str]:
    """Return the ids of the containers that were made from an image."""
    from pyctr.connection import CONTAINERS
    from pyctr_wire.containerd.services.containers.v1 import containers_pb2

    request = containers_pb2.ListContainersRequest(filters=[f"image=={json.dumps(name)}"])
    answer = connection.call(CONTAINERS, "List", request, containers_pb2.ListContainersResponse)
    return [container.id for container in answer.containers]


@image.command()
@click.argument("name", shell_complete=completing.images)
@click.argument("target")
@pass_session
def tag(session: Session, *, name: str, target: str) -> None:
    """Give an image another name."""
    with interrupts.held():
        from pyctr import transfer

    transfer.tag(session.connection, find(session.connection, name).name, references.complete(target))


@image.command()
@output.short_format_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.images)
@pass_session
def inspect(session: Session, *, names: tuple[str, ...]) -> int:
    """Show everything about images."""
    return output.show_documents(session.format, names, lambda name: describe(session.connection, name))


def describe(connection: Connection, name: str, missing: str = "") -> dict[str, Any]:
    """Return the document about an image. Raises CommandError with the text `missing`."""
    found = find(connection, name, missing)
    variants = []
    for platform, manifest in _manifests(connection, found.target.digest, found.target.media_type):
        variant: dict[str, Any] = {
            "Platform": platform or _config_platform(connection, manifest),
            "ConfigDigest": manifest.config.digest,
            "Layers": [{"Digest": layer.digest, "Size": layer.size} for layer in manifest.layers],
            "Config": _process_config(connection, manifest),
        }
        variants.append(variant)
    return {
        "Id": found.target.digest,
        "Name": found.name,
        "MediaType": found.target.media_type,
        "Created": found.created_at.ToDatetime(UTC).isoformat(),
        "Labels": dict(sorted(found.labels.items())),
        "Variants": variants,
    }


@image.command("from-host")
@click.option(
    "--output",
    "-o",
    "target",
    metavar="FILE",
    shell_complete=completing.files,
    help="Write an archive instead of storing the image.",
)
@click.argument("name")
@click.argument("programs", nargs=-1, required=True, metavar="PROGRAM...", shell_complete=completing.files)
@pass_session
def from_host(session: Session, *, name: str, programs: tuple[str, ...], target: str | None) -> None:
    """Make an image from programs of this machine.

    The libraries that they load are in it too. It runs the first program unless told otherwise.
    """
    with interrupts.held():
        from pyctr import from_host as builder
        from pyctr import transfer

    with builder.build(references.complete(name), programs) as archive:
        if target is not None:
            import shutil

            with output_file.written(target) as file:
                shutil.copyfileobj(archive, file)
            return
        for stored in transfer.import_archive(session.connection, archive, platform="", snapshotter=""):
            click.echo(stored)
