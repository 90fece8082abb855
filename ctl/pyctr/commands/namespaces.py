"""`namespace`: separate worlds of images and containers in one daemon."""

import click
from google.protobuf import empty_pb2, field_mask_pb2

from pyctr import completing, output, run_options
from pyctr.connection import ENGINE, NAMESPACES, Connection
from pyctr.errors import CommandError
from pyctr.session import Session, pass_session
from pyctr.several import each
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2
from pyctr_wire.errors import Unimplemented
from pyctr_wire.pyctr import engine_pb2


@click.group()
def namespace() -> None:
    """Namespaces."""


@namespace.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Only names.")
@output.format_option
@pass_session
def ls(session: Session, *, quiet: bool) -> None:
    """List namespaces."""
    found = session.connection.call(
        NAMESPACES, "List", namespace_pb2.ListNamespacesRequest(), namespace_pb2.ListNamespacesResponse
    ).namespaces
    if quiet:
        for one in found:
            click.echo(one.name)
        return
    rows = [
        {"Name": one.name, "Labels": ",".join(f"{name}={value}" for name, value in sorted(one.labels.items())) or "-"}
        for one in found
    ]
    output.show_rows(session.format, {"Name": "NAME", "Labels": "LABELS"}, rows)


@namespace.command()
@click.option("--label", "-l", "labels", multiple=True, metavar="NAME=VALUE", help="Set a label.")
@click.argument("name")
@pass_session
def create(session: Session, *, name: str, labels: tuple[str, ...]) -> None:
    """Make a namespace; using one for the first time makes it too."""
    made = namespace_pb2.Namespace(name=name, labels=run_options.parse_pairs("--label", labels))
    session.connection.call(
        NAMESPACES,
        "Create",
        namespace_pb2.CreateNamespaceRequest(namespace=made),
        namespace_pb2.CreateNamespaceResponse,
    )
    click.echo(name)


@namespace.command()
@click.argument("name", shell_complete=completing.namespaces)
@click.argument("labels", nargs=-1, required=True, metavar="NAME=VALUE...")
@pass_session
def label(session: Session, *, name: str, labels: tuple[str, ...]) -> None:
    """Set labels of a namespace; NAME= takes one away."""
    pairs = run_options.parse_pairs("label", labels)
    request = namespace_pb2.UpdateNamespaceRequest(
        namespace=namespace_pb2.Namespace(name=name, labels=pairs),
        update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in pairs]),
    )
    session.connection.call(NAMESPACES, "Update", request, namespace_pb2.UpdateNamespaceResponse)


@namespace.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completing.namespaces)
@pass_session
def rm(session: Session, *, names: tuple[str, ...]) -> int:
    """Remove empty namespaces."""

    def one(name: str) -> None:
        count = _count_volumes(session, name)
        if count:
            remedy = f"pyctr -n {name} volume prune --all"
            raise CommandError(f"namespace {name} must be empty, but it still has {count} volumes: {remedy}")
        request = namespace_pb2.DeleteNamespaceRequest(name=name)
        session.connection.call(NAMESPACES, "Delete", request, empty_pb2.Empty)

    return each(names, one)


def _count_volumes(session: Session, name: str) -> int:
    """Return how many volumes a namespace has; the Namespaces service does not know of them."""
    connection = Connection(session.address, name, session.tls)
    try:
        answer = connection.call(ENGINE, "Volumes", engine_pb2.VolumesRequest(), engine_pb2.VolumesResponse)
    except Unimplemented:  # another daemon: it has none
        return 0
    finally:
        connection.close()
    return len(answer.volumes)
