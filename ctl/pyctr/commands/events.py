"""`events`: what happens, as it happens."""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import click
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict

from pyctr import output, tasks
from pyctr.connection import EVENTS, Connection
from pyctr.errors import tell
from pyctr.http2 import NotSent
from pyctr.session import Session, pass_session
from pyctr_wire.containerd.services.events.v1 import events_pb2
from pyctr_wire.containerd.types.event_pb2 import Envelope
from pyctr_wire.errors import Unavailable

_PAUSE: Final = 0.05  # seconds between two looks for the next daemon

# Where the messages of each package are; image events have a package of their own.
_MODULES: Final = {
    "containerd.events.Container": "container_pb2",
    "containerd.events.Content": "content_pb2",
    "containerd.events.Namespace": "namespace_pb2",
    "containerd.events.Sandbox": "sandbox_pb2",
    "containerd.events.Snapshot": "snapshot_pb2",
    "containerd.events.Task": "task_pb2",
    "containerd.services.images.v1.Image": "image_pb2",
}


def decode(event: AnyMessage) -> dict[str, Any]:
    """Return what an event says; its type alone if we do not know it."""
    full_name = event.type_url.rpartition("/")[2]
    for prefix, module in _MODULES.items():
        if full_name.startswith(prefix):
            messages = importlib.import_module(f"pyctr_wire.containerd.events.{module}")
            message = getattr(messages, full_name.rpartition(".")[2], None)
            if message is not None:
                fields: dict[str, Any] = MessageToDict(
                    message.FromString(event.value), preserving_proto_field_name=True
                )
                return fields
    return {"type_url": event.type_url}


@click.command()
@click.option(
    "--filter", "-f", "filters", multiple=True, metavar="FILTER", help="containerd's filters: topic~=^/tasks/"
)
@click.option("--all-namespaces", "-A", is_flag=True, help="Not only this namespace.")
@output.format_option
@pass_session
def events(session: Session, *, filters: tuple[str, ...], all_namespaces: bool) -> None:
    """Show events until interrupted."""
    scope = "" if all_namespaces else f"namespace=={session.namespace}"
    wanted = [",".join(filter(None, (scope, one))) for one in filters or ("",)]
    request = events_pb2.SubscribeRequest(filters=[one for one in wanted if one])
    for envelope in _subscribed(session.connection, request):
        document = {
            "Time": envelope.timestamp.ToJsonString(),
            "Namespace": envelope.namespace,
            "Topic": envelope.topic,
            "Event": decode(envelope.event),
        }
        if session.format == "table":
            click.echo(f"{document['Time']} {envelope.namespace} {envelope.topic} {json.dumps(document['Event'])}")
        elif session.format == "json":
            click.echo(json.dumps(document))
        else:
            click.echo(output.render(session.format, document))
        sys.stdout.flush()


def _subscribed(connection: Connection, request: events_pb2.SubscribeRequest) -> Iterator[Envelope]:
    """Yield events, from the next daemon too if one comes in time. Raises Unavailable."""
    give_up = 0.0  # where there is no daemon to begin with, nobody waits for one
    while True:
        try:
            yield from connection.stream(EVENTS, "Subscribe", request, Envelope)
        except NotSent:
            if time.monotonic() >= give_up:
                raise
        except Unavailable as error:
            tell(f"{error}; what happens until another one serves may not be shown")
            give_up = time.monotonic() + tasks.RECONNECT
        time.sleep(_PAUSE)
