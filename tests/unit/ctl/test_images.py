"""What is said of images that are none, or are damaged."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest

from pyctr.commands import images
from pyctr.connection import Connection
from pyctr_wire.containerd.services.content.v1 import content_pb2
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.types.descriptor_pb2 import Descriptor
from pyctr_wire.errors import DataLoss
from pyctr_wire.oci import image_spec


class Blobs:
    """A connection to a daemon that has these blobs, of which one without bytes is damaged, and one image."""

    def __init__(self, blobs: Mapping[str, bytes], target: Descriptor) -> None:
        self._blobs = blobs
        self._image = images_pb2.Image(name="registry/image:v1", target=target)

    def stream(self, service: str, method: str, request: Any, reply: Any) -> Iterator[content_pb2.ReadContentResponse]:
        data = self._blobs[request.digest]
        if not data:
            raise DataLoss("pull it again")
        yield content_pb2.ReadContentResponse(data=data)

    def call(self, service: str, method: str, request: Any, reply: Any) -> images_pb2.ListImagesResponse:
        return images_pb2.ListImagesResponse(images=[self._image])


def connection(config: bytes, *, damaged: bool = False) -> Connection:
    def described(media_type: str, data: bytes) -> image_spec.Descriptor:
        return image_spec.Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    made = described("text/plain", config)
    manifest = image_spec.encode(image_spec.Manifest(made, ()))
    top = described(image_spec.OCI_MANIFEST, manifest)
    blobs = {made.digest: config, top.digest: b"" if damaged else manifest}
    return cast(Connection, Blobs(blobs, Descriptor(media_type=top.media_type, digest=top.digest, size=top.size)))


@pytest.mark.parametrize("config", [b"no JSON", b"[]", b'{"os":5}', b""])
def test_an_artifact_is_listed_beside_images(config: bytes) -> None:
    ours = connection(config)

    [row] = [images._row(ours, one, whole=False) for one in images._list(ours)]

    assert row["Platform"] == "-"
    assert images.describe(ours, "registry/image:v1")["Variants"][0]["Config"] in (None, {})


def test_a_damaged_image_is_listed_beside_others() -> None:
    ours = connection(b"{}", damaged=True)

    [row] = [images._row(ours, one, whole=False) for one in images._list(ours)]

    assert (row["Name"], row["Size"]) == ("registry/image:v1", "0B")
    assert json.dumps(images.describe(ours, "registry/image:v1")["Variants"]) == "[]"
