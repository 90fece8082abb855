"""Which names an image gets in the store: only ones that the client asked for, by name or by rule (CVE-2026-50195).

Source: containerd docs/transfer.md, "Image references".
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from pyctr_wire.oci.image_spec import ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.labels import Labels
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.transfer.requests import ExtraReference, ImageStore

_BACK_REFERENCE: Final = "containerd.io/gc.bref.image"
_SEPARATOR: Final = re.compile(r"[/:@]")
# Those of references: any others would be obeyed by a terminal that lists the name, or a shell that completes it.
_CHARACTERS: Final = re.compile(r"[A-Za-z0-9._/:@+\[\]-]+")


def names_of_pulled(destination: ImageStore, digest: str) -> list[str]:
    """Return the names for what was pulled: the one asked for, then the extra ones that are complete."""
    complete = [extra for extra in destination.extra_references if not extra.is_prefix]
    extras = [f"{extra.name}@{digest}" if extra.add_digest else extra.name for extra in complete]
    return [destination.name, *extras] if destination.name else extras


def names_of_imported(references: Sequence[ExtraReference], descriptor: Descriptor) -> list[str]:
    """Return the names for one manifest of an archive: those of the archive that a prefix rule lets through.

    Without a rule there are none, whatever the archive says.
    """
    names: list[str] = []
    for reference in references:
        if not reference.is_prefix:
            continue
        name = _archived_name(reference, descriptor)
        if name:
            names.append(name)
        if reference.add_digest and not (name and reference.skip_named_digest):
            names.append(f"{reference.name}@{descriptor.digest}")
    return names


def images(names: Sequence[str], target: Descriptor, labels: Labels, now: datetime) -> list[Image]:
    """Return the images for one target. The first is the main one; the others vanish with it."""
    main = Image(names[0], target, labels) if names else None
    if main is None:
        return []
    attached = {**labels, _BACK_REFERENCE: main.name, EXPIRE_LABEL: now.astimezone(UTC).isoformat(timespec="seconds")}
    unique = dict.fromkeys(names[1:])
    return [main, *(Image(name, target, attached) for name in unique if name != main.name)]


def _archived_name(reference: ExtraReference, descriptor: Descriptor) -> str:
    """Return the name that the archive gives, under the rule of `reference`; "" if it does not pass."""
    full = descriptor.annotations.get(ANNOTATION_IMAGE_NAME, "")
    if full:
        return full if _pass(reference, full) == full else ""
    short = descriptor.annotations.get(ANNOTATION_REF_NAME, "")
    return _pass(reference, short) if short else ""


def _pass(reference: ExtraReference, name: str) -> str:
    """Return a bare tag completed with the prefix; a longer name as it is if the rule allows it, else ""."""
    if not _CHARACTERS.fullmatch(name):
        return ""
    if not _SEPARATOR.search(name):
        return f"{reference.name}:{name}" if reference.name else ""
    if reference.allow_overwrite:
        return name
    rest = name.removeprefix(reference.name)
    return name if rest != name and (not rest or _SEPARATOR.match(rest)) else ""
