"""An image: a name for a manifest or an index."""

from dataclasses import field, replace
from datetime import datetime

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.digests import validate_digest
from pyctrd.core.filters import Adaptor, label_field, text_field
from pyctrd.core.labels import Labels, stored, validate_labels
from pyctrd.core.times import UNSET
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class Image:
    """A name, its labels, and what it points at; the blob need not exist."""

    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)
    created_at: datetime = UNSET
    updated_at: datetime = UNSET


def validate(image: Image) -> None:
    """Raise InvalidArgument for an image that cannot be stored."""
    if not image.name:
        raise InvalidArgument("Image.Name required")
    validate_labels("image.Labels", image.labels)
    try:
        validate_digest(image.target.digest)
    except InvalidArgument as error:
        raise InvalidArgument(f'Target.Digest "{image.target.digest}" is not a digest') from error
    if image.target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("Target.MediaType must be set")


def updated(old: Image, new: Image, mask: tuple[str, ...], now: datetime) -> Image:
    """Return `old` with the fields of `new` that `mask` names; an empty mask names all but the creation time.

    Raises InvalidArgument for an unknown path or an invalid result.
    """
    result = old
    for path in mask or ("labels", "target"):
        field_name, _, key = path.partition(".")
        match field_name, key:
            case "labels", "":
                result = replace(result, labels=new.labels)
            case "labels", _:
                result = replace(result, labels={**result.labels, key: new.labels.get(key, "")})
            case "target", "":
                result = replace(result, target=new.target)
            case "annotations", "":
                result = _annotated(result, dict(new.target.annotations))
            case "annotations", _:
                value = new.target.annotations.get(key, "")
                result = _annotated(result, {**result.target.annotations, key: value})
            case _:
                raise InvalidArgument(f'cannot update "{path}" field on image "{old.name}"')
    result = replace(result, labels=stored(result.labels), updated_at=now)
    validate(result)
    return result


def _annotated(image: Image, annotations: dict[str, str]) -> Image:
    return replace(image, target=replace(image.target, annotations=stored(annotations)))


def fields(image: Image) -> Adaptor:
    """Return `image` as filters see it."""

    def adaptor(path: tuple[str, ...]) -> tuple[str, bool]:
        match path:
            case ("name",):
                return text_field(image.name)
            case ("target", "digest"):
                return text_field(image.target.digest)
            case ("target", "mediatype"):
                return text_field(image.target.media_type)
            case ("labels", *rest):
                return label_field(image.labels, tuple(rest))
            case ("annotations", *rest):
                return label_field(image.target.annotations, tuple(rest))
        return "", False

    return adaptor
