"""What a shell offers for an argument that names something the daemon has."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from pyctr.connection import CONTAINERS, ENGINE, IMAGES, Answer
from pyctr.session import Session
from pyctr.transport import TlsFiles
from pyctr_wire import labels
from pyctr_wire.errors import ApiError

if TYPE_CHECKING:
    from google.protobuf.message import Message

_PATIENCE = 5.0  # seconds; a shell waits


def _session(ctx: click.Context) -> Session:
    """Return a session with the root's options: its own callback does not run for a completion."""
    given = ctx.find_root().params
    tls = TlsFiles.of(given["tls_ca"], given["tls_cert"], given["tls_key"])
    return Session(given["address"], given["namespace"], tls=tls)


def _beginning(candidates: Iterable[str], incomplete: str) -> list[str]:
    return sorted({one for one in candidates if one and one.startswith(incomplete)})


def _listed(ctx: click.Context, service: str, method: str, request: "Message", response: type[Answer]) -> Answer:
    """Return what the daemon lists; nothing if it does not answer."""
    session = _session(ctx)
    try:
        return session.connection.call(service, method, request, response, timeout=_PATIENCE)
    except ApiError:
        return response()
    finally:
        session.close()


def containers(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of containers; ids where there is no name, or where an id is being typed."""
    from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb

    found = _listed(ctx, CONTAINERS, "List", pb.ListContainersRequest(), pb.ListContainersResponse).containers
    names = _beginning((one.labels.get(labels.NAME, "") or one.id for one in found), incomplete)
    return names or _beginning((one.id for one in found), incomplete)


def images(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of images as docker shortens them."""
    from pyctr import references
    from pyctr_wire.containerd.services.images.v1 import images_pb2 as pb

    found = _listed(ctx, IMAGES, "List", pb.ListImagesRequest(), pb.ListImagesResponse).images
    return _beginning((references.familiar(one.name) for one in found), incomplete)


def volumes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return names of volumes."""
    from pyctr_wire.pyctr import engine_pb2 as pb

    found = _listed(ctx, ENGINE, "Volumes", pb.VolumesRequest(), pb.VolumesResponse).volumes
    return _beginning((one.name for one in found), incomplete)
