"""The writing side of the registry client."""

from collections.abc import AsyncIterator, Callable

import pytest

from pyctr_wire.errors import FailedPrecondition, PermissionDenied, Unavailable
from pyctrd.core.descriptors import Descriptor
from pyctrd.registry.client import Repository
from pyctrd.registry.hosts import Capability, Endpoint
from pyctrd.registry.uploads import uploads_to
from support.images import MANIFEST, digest, image
from support.scripted_registry import Answer, ScriptedRegistry, Seen

Open = Callable[..., Repository]

BLOB = bytes(range(256)) * 1000
LAYER = Descriptor("layer", digest(BLOB), len(BLOB))
IMAGE = image({"file": b"content"})
TARGET = Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.manifest))
UPLOADS = "/v2/some/image/blobs/uploads/"


async def body() -> AsyncIterator[bytes]:
    for start in range(0, len(BLOB), 100_000):
        yield BLOB[start : start + 100_000]


def accepted(location: str) -> Answer:
    return Answer(202, headers={"Location": location})


@pytest.mark.parametrize("relative", [True, False])
async def test_a_blob_goes_where_the_registry_says(
    registry: ScriptedRegistry, open_repository: Open, relative: bool
) -> None:
    location = "/upload/1?state=a%3Db"
    registry.on("POST", UPLOADS, accepted(location if relative else registry.url + location))
    registry.on("PUT", "/upload/1", Answer(201))

    await (await uploads_to(open_repository())).blob(LAYER, body)

    [put] = registry.requests("/upload/1")
    assert put.body == BLOB
    assert put.query == {"state": "a=b", "digest": LAYER.digest}
    assert put.headers["Content-Length"] == str(len(BLOB))


async def test_a_blob_is_lent_by_another_repository(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, Answer(201))

    await (await uploads_to(open_repository())).blob(LAYER, body, ("source/image",))

    [post] = registry.seen
    assert post.query == {"mount": LAYER.digest, "from": "source/image"}


async def test_a_blob_that_nobody_lends_is_uploaded(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, accepted("/never"), accepted("/upload"))
    registry.on("PUT", "/upload", Answer(201))

    await (await uploads_to(open_repository())).blob(LAYER, body, ("source/image",))

    assert len(registry.requests("/upload")) == 1


async def test_an_upload_that_breaks_off_starts_again(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, accepted("/first"), accepted("/second"))
    registry.on("PUT", "/first", Answer(500))
    registry.on("PUT", "/second", Answer(201))

    await (await uploads_to(open_repository())).blob(LAYER, body)

    assert registry.requests("/second")[0].body == BLOB


async def test_an_upload_that_keeps_breaking_off_fails(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, accepted("/upload"))
    registry.on("PUT", "/upload", Answer(500))

    with pytest.raises(Unavailable):
        await (await uploads_to(open_repository())).blob(LAYER, body)

    assert len(registry.requests("/upload")) == 3


async def test_an_upload_elsewhere_takes_no_secret_along(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    registry.on("POST", UPLOADS, accepted(f"{other.url}/store"))
    other.on("PUT", "/store", Answer(201))
    own = Endpoint(f"{registry.url}/v2", registry.host, headers={"X-Secret": ("yes",)})

    await (await uploads_to(open_repository(served_by=(own,)))).blob(LAYER, body)

    assert registry.seen[0].headers["X-Secret"] == "yes"
    assert "X-Secret" not in other.seen[0].headers


async def test_a_manifest_goes_under_its_tag(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("PUT", "/v2/some/image/manifests/v1", Answer(201, headers={"Docker-Content-Digest": IMAGE.digest}))

    await (await uploads_to(open_repository())).manifest(TARGET, IMAGE.manifest, "v1")

    [put] = registry.seen
    assert (put.body, put.headers["Content-Type"]) == (IMAGE.manifest, MANIFEST)


async def test_a_registry_that_rewrites_manifests_is_noticed(registry: ScriptedRegistry, open_repository: Open) -> None:
    path = f"/v2/some/image/manifests/{IMAGE.digest}"
    registry.on("PUT", path, Answer(201, headers={"Docker-Content-Digest": digest(b"other")}))

    with pytest.raises(FailedPrecondition):
        await (await uploads_to(open_repository())).manifest(TARGET, IMAGE.manifest)


async def test_what_the_registry_has(registry: ScriptedRegistry, open_repository: Open) -> None:
    uploads = await uploads_to(open_repository())
    registry.on("HEAD", f"/v2/some/image/blobs/{LAYER.digest}", Answer(200))
    registry.on("HEAD", "/v2/some/image/manifests/v1", Answer(200, headers={"Docker-Content-Digest": digest(b"old")}))

    assert await uploads.has(LAYER)
    assert not await uploads.has(TARGET)
    assert not await uploads.has(TARGET, "v1")


async def test_a_refused_push_says_so(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, Answer(403, b"read-only"))

    with pytest.raises(PermissionDenied, match="read-only"):
        await (await uploads_to(open_repository())).blob(LAYER, body)


async def test_a_refused_blob_is_not_sent_again(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("POST", UPLOADS, accepted("/upload"))
    registry.on("PUT", "/upload", Answer(413, b"too large"))

    with pytest.raises(FailedPrecondition, match="413: server message: too large"):
        await (await uploads_to(open_repository())).blob(LAYER, body)

    assert len(registry.requests("/upload")) == 1


async def test_mirrors_are_not_pushed_to(registry: ScriptedRegistry, open_repository: Open) -> None:
    mirror = Endpoint("http://mirror/v2", "mirror", Capability.PULL)
    own = Endpoint(f"{registry.url}/v2", registry.host)

    assert (await uploads_to(open_repository(served_by=(mirror, own)))).endpoint == own
    with pytest.raises(FailedPrecondition):
        await uploads_to(open_repository(served_by=(mirror,)))


async def test_the_token_for_a_push_may_push(registry: ScriptedRegistry, open_repository: Open) -> None:
    def answer(seen: Seen) -> Answer:
        if seen.headers.get("Authorization") == "Bearer t":
            return Answer(201)
        return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'})

    registry.on("POST", UPLOADS, answer)
    registry.on("GET", "/token", Answer(200, b'{"token":"t"}'))

    await (await uploads_to(open_repository())).blob(LAYER, body, ("source/image",))

    assert registry.requests("/token")[0].query.getall("scope") == [  # type: ignore[attr-defined]
        "repository:some/image:pull,push",
        "repository:source/image:pull",
    ]
