"""Images: names for manifests and indexes."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pyctr_wire.errors import AlreadyExists, NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.events import ImageCreate, ImageDelete, ImageUpdate
from pyctrd.core.filters import compile_filters
from pyctrd.core.images import Image, fields, updated, validate
from pyctrd.core.labels import stored
from pyctrd.core.leases import EXPIRE_LABEL, Resource
from pyctrd.core.reachability import keep_otherwise
from pyctrd.core.times import from_microseconds, to_microseconds
from pyctrd.metadata.database import Database
from pyctrd.metadata.leases import attach, detach
from pyctrd.metadata.rows import decode_labels, encode_labels, ensure_namespace

_COLUMNS: Final = "name, labels, media_type, digest, size, annotations, created_at, updated_at"
_SELECT: Final = f"SELECT {_COLUMNS} FROM images WHERE ns = ?"  # noqa: S608 - a constant
_INTO: Final = f"INTO images (ns, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)"


class Images:
    """The images' rows."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    def get(self, ns: str, name: str) -> Image:
        """Return an image. Raises NotFound."""
        row = self._database.read().execute(f"{_SELECT} AND name = ?", (ns, name)).fetchone()
        if row is None:
            raise NotFound(f'image "{name}"')
        return _from_row(row)

    def list(self, ns: str, filters: Sequence[str] = ()) -> list[Image]:
        """Return the images that pass, by name. Raises InvalidArgument for a bad filter."""
        passes = compile_filters(filters)
        rows = self._database.read().execute(f"{_SELECT} ORDER BY name", (ns,))
        return [image for row in rows if passes(fields(image := _from_row(row)))]

    def create(self, ns: str, image: Image, lease: str = "", created_at: datetime | None = None) -> Image:
        """Store an image, created now or at `created_at`. Raises AlreadyExists, InvalidArgument."""
        validate(image)
        with self._database.transaction() as transaction:
            now = transaction.now
            image = replace(image, labels=stored(image.labels), created_at=created_at or now, updated_at=now)
            ensure_namespace(transaction, ns)
            if not transaction.execute(f"INSERT OR IGNORE {_INTO}", _to_row(ns, image)).rowcount:
                raise AlreadyExists(f'image "{image.name}"')
            if EXPIRE_LABEL in image.labels:
                attach(transaction, ns, lease, Resource(image.name, "images"))
            transaction.publish(ns, ImageCreate(image.name, image.labels))
        return image

    def update(self, ns: str, image: Image, mask: Sequence[str] = (), lease: str = "") -> Image:
        """Change the fields that `mask` names and return the result. Raises NotFound, InvalidArgument."""
        with self._database.transaction() as transaction:
            row = transaction.execute(f"{_SELECT} AND name = ?", (ns, image.name)).fetchone()
            if row is None:
                raise NotFound(f'image "{image.name}"')
            old = _from_row(row)
            result = updated(old, image, tuple(mask), transaction.now)
            transaction.execute(f"REPLACE {_INTO}", _to_row(ns, result))
            if EXPIRE_LABEL in result.labels:
                attach(transaction, ns, lease, Resource(result.name, "images"))
            if result.target.digest != old.target.digest or keep_otherwise(old.labels, result.labels):
                transaction.leaves_garbage()
            transaction.publish(ns, ImageUpdate(result.name, result.labels))
        return result

    def delete(self, ns: str, name: str, target_digest: str = "", lease: str = "") -> None:
        """Delete an image, if `target_digest` is set only while it points there. Raises NotFound."""
        with self._database.freeing() as transaction:
            row = transaction.execute("SELECT digest FROM images WHERE ns = ? AND name = ?", (ns, name)).fetchone()
            if row is None:
                raise NotFound(f'image "{name}"')
            if target_digest and row[0] != target_digest:
                raise NotFound(f'image "{name}" has target {row[0]}, not {target_digest}')
            transaction.execute("DELETE FROM images WHERE ns = ? AND name = ?", (ns, name))
            detach(transaction, ns, lease, Resource(name, "images"))
            transaction.leaves_garbage()
            transaction.publish(ns, ImageDelete(name))


def _to_row(ns: str, image: Image) -> tuple[Any, ...]:
    target = image.target
    return (
        ns,
        image.name,
        encode_labels(image.labels),
        target.media_type,
        target.digest,
        target.size,
        encode_labels(target.annotations),
        to_microseconds(image.created_at),
        to_microseconds(image.updated_at),
    )


def _from_row(row: tuple[Any, ...]) -> Image:
    name, labels, media_type, digest, size, annotations, created_at, updated_at = row
    return Image(
        name=name,
        labels=decode_labels(labels),
        target=Descriptor(media_type, digest, size, decode_labels(annotations)),
        created_at=from_microseconds(created_at),
        updated_at=from_microseconds(updated_at),
    )
