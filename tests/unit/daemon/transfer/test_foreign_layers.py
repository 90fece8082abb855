"""Addresses inside images: nobody is asked because a manifest says so."""

import json

import pytest

from pyctr_wire.errors import ApiError
from pyctrd.core.platforms import Platform
from pyctrd.core.references import Reference
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from pyctrd.registry.hosts import HostsConfig, endpoints
from pyctrd.registry.transport import Transport
from pyctrd.transfer.progress import Progress
from pyctrd.transfer.pull import pull
from pyctrd.transfer.requests import ImageStore
from pyctrd.transfer.stores import Session
from pyctrd.transfer.unpack import ChainLocks
from support.images import CONFIG, MANIFEST, descriptor, digest, image
from support.scripted_registry import Answer, ScriptedRegistry, scripted_registry

IMAGE = image({"a": b"1"})
HOST = Platform("linux", "amd64")


async def secret(host: str, challenges: tuple[str, ...]) -> Credentials | None:
    return Credentials("me", "secret")


def serve(registry: ScriptedRegistry, manifest: bytes) -> None:
    answer = Answer(200, manifest, {"Content-Type": MANIFEST, "Docker-Content-Digest": digest(manifest)})
    for name in ("v1", digest(manifest)):
        for method in ("HEAD", "GET"):
            registry.on(method, f"/v2/some/image/manifests/{name}", answer)
    registry.on("GET", f"/v2/some/image/blobs/{digest(IMAGE.config)}", Answer(200, IMAGE.config))


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ],
)
async def test_cve_2020_15157_urls_of_a_layer_are_not_followed(opened: Session, media_type: str) -> None:
    """A layer's `urls` get no request, with credentials or without."""
    async with scripted_registry() as registry, scripted_registry() as evil:
        evil.on("GET", "/layer", Answer(401, headers={"WWW-Authenticate": 'Basic realm="give"'}))
        layer = descriptor(IMAGE.layers[0], media_type, urls=[f"{evil.url}/layer"])
        manifest = json.dumps({"config": descriptor(IMAGE.config, CONFIG), "layers": [layer]}).encode()
        serve(registry, manifest)
        reference = Reference(registry.host, "some/image", "v1")
        transport = Transport(secret, "test", opened.stores.bulk.run)
        repository = Repository(reference, endpoints(registry.host, HostsConfig(())), transport)

        with pytest.raises(ApiError, match="does not have it"):
            await pull(opened, repository, ImageStore("name"), HOST, ChainLocks(), Progress())
        await transport.close()

        assert registry.requests(f"/v2/some/image/blobs/{digest(IMAGE.layers[0])}") != []
        assert evil.seen == []
