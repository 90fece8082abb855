"""`pyctr-oci` for one who is not root: it enters the container's user namespace first, in which it is.

So the namespace is the runtime's own as far as all the rest is concerned. Whoever made a user namespace may enter it
again as long as something is in it.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pyctr_shim.oci import commands, process_commands, state
from pyctr_shim.oci.errors import OciError
from pyctr_sys import user_namespace
from pyctr_sys.user_namespace import CannotEnter, Range


def enter(options: argparse.Namespace) -> None:
    """Enter the user namespace that the command takes, if it takes one. Raises OciError."""
    if options.command in (process_commands.create, process_commands.run):
        _enter_new(options.bundle)
        options.entered = True
    elif "id" in options:
        _enter_of(commands.directory_of(options))


def _enter_new(bundle: str) -> None:
    linux = commands.read_json(os.path.join(bundle, "config.json")).get("linux")
    linux = linux if isinstance(linux, dict) else {}
    kinds = linux.get("namespaces") or ()
    if not any(isinstance(item, dict) and item.get("type") == "user" and not item.get("path") for item in kinds):
        raise OciError("linux.namespaces: whoever is not root needs a new user namespace for a container")
    try:
        user_namespace.enter(_ranges(linux, "uidMappings"), _ranges(linux, "gidMappings"))
    except CannotEnter as error:
        raise OciError(f"linux.uidMappings, linux.gidMappings: {error}") from None


def _ranges(linux: Mapping[str, Any], name: str) -> Sequence[Range]:
    try:
        return [Range(int(item["containerID"]), int(item["hostID"]), int(item["size"])) for item in linux[name]]
    except (KeyError, TypeError, ValueError):
        raise OciError(f"linux.{name}: a new user namespace needs it, with containerID, hostID and size") from None


def _enter_of(directory: str) -> None:
    """Enter that of a container that is alive; whether it is, is the command's own business."""
    try:
        record = state.read(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    if record.is_alive():
        user_namespace.rejoin(record.pid)
