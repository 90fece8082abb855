"""Images as the CRI knows them: records of the store, merged by image id, and found by all that people call them.

An image's id is the digest of its configuration. A record is a name in the store: several records, of several
manifests even, may be one image. Source: CRI v1; containerd internal/cri/store/image.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyctr_wire.errors import InvalidArgument, NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import validate_digest
from pyctrd.core.labels import Labels
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.core.references import Reference, normalize_reference
from pyctrd.core.values import dataclass

# Labels of records, the same as containerd's.
MANAGED_LABEL: Final = "io.cri-containerd.image"
MANAGED: Final = "managed"
PINNED_LABEL: Final = "io.cri-containerd.pinned"
PINNED: Final = "pinned"

# Fewer digits than these are not the start of an id: they are rather a name that was mistyped.
_ID_START: Final = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})")
# Characters: a name of 255, a tag of 128 and a sha512 fit. Names come from pods, and to read a long one takes its time.
_LONGEST: Final = 1024
_BARE_ID: Final = re.compile(r"[0-9a-f]{64}")


class Ambiguous(NotFound):
    """Several images have an id that begins so."""


@dataclass(frozen=True, slots=True)
class Details:
    """What an image's documents say; `size` in bytes, `chain_id` names its uppermost snapshot, "" without layers.

    `saved` is the digest of its only layer if that is a checkpoint.
    """

    id: str
    size: int
    user: str
    chain_id: str
    saved: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A name in the store, of an image that can be used here; `reference` is what the name says, if it is one."""

    name: str
    reference: Reference | None
    target: Descriptor
    labels: Labels
    details: Details

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else made it and nobody has told the kubelet; what expires soon is not worth it."""
        return MANAGED_LABEL not in self.labels and EXPIRE_LABEL not in self.labels


@dataclass(frozen=True, slots=True)
class CriImage:
    """An image; `names` are its records' names, `tags` and `digests` are those that are references, in full."""

    id: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    user: str
    chain_id: str
    pinned: bool
    saved: str = ""  # the digest of its only layer if that is a checkpoint


class ImageIndex:
    """The records, and the images that they are. No I/O."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Begin with `records`."""
        self._records = {record.name: record for record in records}
        self._images: Mapping[str, CriImage] | None = None
        self._listed: tuple[CriImage, ...] = ()
        self._named: Mapping[str, str] = {}

    def replace(self, records: Mapping[str, Record | None]) -> None:
        """Take in what has changed; None is a record that is gone."""
        for name, record in records.items():
            self._records.pop(name, None)
            if record is not None:
                self._records[name] = record
        self._images = None

    def record(self, name: str) -> Record | None:
        """Return a record by its exact name, None without one."""
        return self._records.get(name)

    def records(self, image_id: str = "") -> Sequence[Record]:
        """Return all records, or those of one image."""
        return [one for one in self._records.values() if image_id in ("", one.details.id)]

    def details(self) -> Mapping[str, Details]:
        """Return what is known already, by the digest of what a record points at."""
        return {record.target.digest: record.details for record in self._records.values()}

    def list(self) -> tuple[CriImage, ...]:
        """Return all images, by id: the same tuple until something changes."""
        self._merged()
        return self._listed

    def find(self, text: str) -> CriImage:
        """Return the image that `text` means: an id or the start of one, a record's name, or a reference.

        A reference may leave out what docker's users leave out; a tag beside a digest does not count.
        Raises NotFound; its subclass Ambiguous if several ids begin so.
        """
        images = self._merged()
        if found := images.get(text) or images.get(f"sha256:{text}"):
            return found
        reference = reference_of(text)
        for name in (text, str(reference) if reference else ""):
            if record := self._records.get(name):
                return images[record.details.id]
            if image_id := self._named.get(name):
                return images[image_id]
        if match := _ID_START.fullmatch(text):
            found_ids = [one for one in images if one.startswith(f"sha256:{match[1]}")]
            if len(found_ids) > 1:
                raise Ambiguous(f'image "{text}": {len(found_ids)} images have ids that begin so')
            if found_ids:
                return images[found_ids[0]]
        raise NotFound(f'image "{text}"')

    def _merged(self) -> Mapping[str, CriImage]:
        if self._images is None:
            by_id: defaultdict[str, list[Record]] = defaultdict(list)
            for _, record in sorted(self._records.items()):
                by_id[record.details.id].append(record)
            self._images = {image_id: _merge(records) for image_id, records in sorted(by_id.items())}
            self._listed = tuple(self._images.values())
            self._named = {name: image.id for image in self._images.values() for name in (*image.tags, *image.digests)}
        return self._images


def _merge(records: Sequence[Record]) -> CriImage:
    references = [record.reference for record in records if record.reference]
    details = records[0].details
    return CriImage(
        id=details.id,
        names=tuple(record.name for record in records),
        tags=tuple(dict.fromkeys(str(one) for one in references if not one.digest)),
        digests=tuple(dict.fromkeys(str(one) for one in references if one.digest)),
        size=details.size,
        user=details.user,
        chain_id=details.chain_id,
        saved=details.saved,
        pinned=any(record.labels.get(PINNED_LABEL) == PINNED for record in records),
    )


def reference_of(text: str) -> Reference | None:
    """Return the full reference that `text` means, without its tag if it has a digest; None for what is none.

    An id is none, though `sha256:…` could be read as a repository with a tag.
    """
    if len(text) > _LONGEST:
        return None
    if _BARE_ID.fullmatch(text) or _is_digest(text):
        return None
    try:
        reference = normalize_reference(text)
    except InvalidArgument:
        return None
    return Reference(reference.domain, reference.path, "", reference.digest) if reference.digest else reference


def _is_digest(text: str) -> bool:
    try:
        validate_digest(text)
    except InvalidArgument:
        return False
    return True
