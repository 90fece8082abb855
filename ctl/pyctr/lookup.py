"""Finds containers by what people call them: id, name, or a beginning of an id that only one has."""

import json
import re
from typing import Final

from pyctr.connection import CONTAINERS, Connection
from pyctr.errors import CommandError
from pyctr_wire import labels
from pyctr_wire.containerd.services.containers.v1 import containers_pb2

_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def find(connection: Connection, reference: str) -> containers_pb2.Container:
    """Return the container that `reference` means. Raises CommandError if none or several do."""
    missing = CommandError(f"no such container: {reference}")
    if not _REFERENCE.fullmatch(reference):
        raise missing
    quoted = json.dumps(reference)
    filters = [f"id=={quoted}", f'labels."{labels.NAME}"=={quoted}', f"id~={json.dumps('^' + re.escape(reference))}"]
    answer = connection.call(
        CONTAINERS,
        "List",
        containers_pb2.ListContainersRequest(filters=filters),
        containers_pb2.ListContainersResponse,
    )
    found = list(answer.containers)
    for container in found:
        if container.id == reference:
            return container
    for container in found:
        if container.labels.get(labels.NAME) == reference:
            return container
    if len(found) > 1:
        raise CommandError(f"{reference} is the beginning of {len(found)} ids: give more of it")
    if not found:
        raise missing
    return found[0]


def display_name(container: containers_pb2.Container) -> str:
    """Return the container's name, its id if it has none."""
    return container.labels.get(labels.NAME, "") or container.id
