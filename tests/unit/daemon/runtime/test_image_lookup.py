"""Which of an image's manifests a container is made of."""

from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.platforms import Platform
from pyctrd.runtime.image_lookup import read_image
from support.images import INDEX, MANIFEST, digest, image
from support.stores import NS, open_stores


def test_indexes_that_all_list_each_other_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = image({"a": b""}, architecture="arm64")
    with open_stores(tmp_path) as stores:
        arm = image_spec.Platform("linux", "arm64")
        level = [image_spec.Descriptor(MANIFEST, foreign.digest, len(foreign.manifest), platform=arm)]
        for depth, width in enumerate((5, 5, 5, 1)):
            made = [image_spec.Index(tuple(level), annotations={"at": f"{depth} {number}"}) for number in range(width)]
            written = [image_spec.encode(one) for one in made]
            level = [image_spec.Descriptor(INDEX, digest(data), len(data)) for data in written]
            for data in written:
                stores.content.write_blob(NS, digest(data), data)
        reads = []
        opening = stores.content.open_blob

        def open_blob(ns: str, name: str) -> tuple[int, int]:
            reads.append(name)
            return opening(ns, name)

        monkeypatch.setattr(stores.content, "open_blob", open_blob)
        named = Image("evil", Descriptor(INDEX, level[0].digest, level[0].size))

        with pytest.raises(FailedPrecondition, match="nothing for linux/amd64"):
            read_image(stores.content, NS, named, Platform("linux", "amd64"))

    assert len(reads) == 16
