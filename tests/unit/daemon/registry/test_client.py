"""The reading side of the registry client, against a server that misbehaves on purpose."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from pyctr_wire.errors import (
    ApiError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from pyctr_wire.oci import image_spec
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.references import Reference
from pyctrd.registry import transport
from pyctrd.registry.client import Repository
from pyctrd.registry.credentials import Credentials
from pyctrd.registry.errors import Interrupted
from pyctrd.registry.hosts import Capability, Endpoint
from pyctrd.registry.transport import redirected
from support.images import MANIFEST, digest, image
from support.scripted_registry import Answer, ScriptedRegistry, Seen

IMAGE = image({"file": b"content"})
BLOB = bytes(range(256)) * 400
LAYER = Descriptor("layer", digest(BLOB), len(BLOB))
TAG = "/v2/some/image/manifests/v1"
BY_DIGEST = f"/v2/some/image/manifests/{IMAGE.digest}"
BLOB_PATH = f"/v2/some/image/blobs/{LAYER.digest}"

Open = Callable[..., Repository]


def manifest_answer(body: bytes = IMAGE.manifest, media_type: str = MANIFEST) -> Answer:
    return Answer(200, body, {"Content-Type": media_type, "Docker-Content-Digest": digest(body)})


async def read(repository: Repository, offset: int = 0, descriptor: Descriptor = LAYER) -> bytes:
    async with repository.blob(descriptor, offset) as parts:
        return b"".join([part async for part in parts])


async def test_a_tag_is_resolved_by_head(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("HEAD", TAG, manifest_answer())

    assert await open_repository().resolve() == Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.manifest))

    [request] = registry.seen
    assert image_spec.DOCKER_LIST in request.headers["Accept"]
    assert request.headers["User-Agent"] == "test/1"
    assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    "head",
    [
        Answer(405),
        Answer(200, b"", {"Content-Type": MANIFEST}),
        Answer(200, b"<html>", {"Content-Type": "text/html", "Docker-Content-Digest": IMAGE.digest}),
    ],
    ids=["not allowed", "without digest", "html"],
)
async def test_a_head_that_does_not_tell_is_followed_by_get(
    registry: ScriptedRegistry, open_repository: Open, head: Answer
) -> None:
    registry.on("HEAD", TAG, head)
    registry.on("GET", TAG, manifest_answer())

    assert (await open_repository().resolve()).digest == IMAGE.digest


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, b"<html><body>Sign in", {"Content-Type": "text/html"}), InvalidArgument),
        (Answer(200, b"{}", {"Content-Type": MANIFEST}), InvalidArgument),
        (Answer(200, b"x" * 1000, {}, endless=True), ResourceExhausted),
        (Answer(404), NotFound),
        (Answer(403, b'{"errors":[{"message":"no"}]}'), PermissionDenied),
        (Answer(400), InvalidArgument),
        (Answer(418), FailedPrecondition),
        (Answer(501), Unavailable),
    ],
    ids=["html with 200", "empty manifest", "endless", "missing", "forbidden", "bad", "odd", "failing"],
)
async def test_what_is_no_manifest_is_refused(
    registry: ScriptedRegistry, open_repository: Open, answer: Answer, error: type[ApiError]
) -> None:
    registry.on("HEAD", TAG, Answer(405))
    registry.on("GET", TAG, answer)

    with pytest.raises(error):
        await open_repository().resolve()


async def test_a_refusal_shows_what_the_server_says(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("HEAD", TAG, Answer(405))
    registry.on("GET", TAG, Answer(403, b"quota\x1b[31m exceeded"))

    with pytest.raises(PermissionDenied, match=r"pull access denied.*server message: quota \[31m exceeded"):
        await open_repository().resolve()


@pytest.mark.parametrize("status", [400, 409])
async def test_any_refusal_shows_what_the_server_says(
    registry: ScriptedRegistry, open_repository: Open, status: int
) -> None:
    """Which the answer to HEAD cannot: GET is asked for it."""
    registry.on("HEAD", TAG, Answer(status))
    registry.on("GET", TAG, Answer(status, b'{"errors":[{"code":"MANIFEST_INVALID"}]}'))

    with pytest.raises(ApiError, match=f"GET request to .*: {status}: server message: .*MANIFEST_INVALID"):
        await open_repository().resolve()

    assert len(registry.seen) == 2


async def test_a_reference_by_digest_is_not_taken_for_another(
    registry: ScriptedRegistry, open_repository: Open
) -> None:
    evil = image({"file": b"evil"})
    registry.on("HEAD", BY_DIGEST, manifest_answer(evil.manifest))

    with pytest.raises(DataLoss):
        await open_repository(reference=Reference(registry.host, "some/image", digest=IMAGE.digest)).resolve()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, IMAGE.manifest.replace(b"layers", b"Layers")), DataLoss),
        (Answer(200, IMAGE.manifest[:-1]), DataLoss),
        (Answer(200, IMAGE.manifest, cut=10), Unavailable),
        (Answer(200, b"x" * 100, endless=True), ResourceExhausted),
    ],
    ids=["other bytes", "shorter", "cut", "endless"],
)
async def test_a_manifest_with_wrong_bytes_is_refused(
    registry: ScriptedRegistry, open_repository: Open, answer: Answer, error: type[ApiError]
) -> None:
    registry.on("GET", BY_DIGEST, answer)

    with pytest.raises(error):
        await open_repository().manifest(Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.manifest)))


async def test_a_manifest_may_be_among_the_blobs_alone(registry: ScriptedRegistry, open_repository: Open) -> None:
    blob = f"/v2/some/image/blobs/{IMAGE.digest}"
    registry.on("HEAD", BY_DIGEST, Answer(404))
    registry.on("GET", BY_DIGEST, Answer(404))
    registry.on("GET", blob, Answer(200, IMAGE.manifest, {"Content-Type": "application/octet-stream"}))
    repository = open_repository(reference=Reference(registry.host, "some/image", digest=IMAGE.digest))

    found = await repository.resolve()

    assert found == Descriptor(MANIFEST, IMAGE.digest, len(IMAGE.manifest))
    assert await repository.manifest(found) == IMAGE.manifest


async def test_a_digest_that_is_nowhere_is_not_found(registry: ScriptedRegistry, open_repository: Open) -> None:
    blob = f"/v2/some/image/blobs/{IMAGE.digest}"
    for method, path in (("HEAD", BY_DIGEST), ("GET", BY_DIGEST), ("GET", blob)):
        registry.on(method, path, Answer(404))

    with pytest.raises(NotFound):
        await open_repository(reference=Reference(registry.host, "some/image", digest=IMAGE.digest)).resolve()

    assert [(seen.method, seen.path) for seen in registry.seen] == [
        ("HEAD", BY_DIGEST),
        ("GET", BY_DIGEST),
        ("GET", blob),
    ]


async def test_a_manifest_of_an_absurd_size_is_refused(registry: ScriptedRegistry, open_repository: Open) -> None:
    """2**63 bytes would fit no message to a client, and no column."""
    claims = {"Content-Type": MANIFEST, "Docker-Content-Digest": IMAGE.digest, "Content-Length": str(1 << 63)}
    registry.on("HEAD", TAG, Answer(200, headers=claims))

    with pytest.raises(InvalidArgument, match="over the limit"):
        await open_repository().resolve()


async def test_a_huge_manifest_is_refused_before_it_is_asked_for(
    registry: ScriptedRegistry, open_repository: Open
) -> None:
    with pytest.raises(InvalidArgument):
        await open_repository().manifest(Descriptor(MANIFEST, IMAGE.digest, image_spec.MAX_DOCUMENT + 1))

    assert registry.seen == []


async def test_a_blob_is_read_from_the_middle(registry: ScriptedRegistry, open_repository: Open) -> None:
    def ranged(seen: Seen) -> Answer:
        assert seen.headers["Range"] == f"bytes=1000-{len(BLOB) - 1}"
        return Answer(206, BLOB[1000:], {"Content-Range": f"bytes 1000-{len(BLOB) - 1}/{len(BLOB)}"})

    registry.on("GET", BLOB_PATH, ranged)

    assert await read(open_repository(), 1000) == BLOB[1000:]


async def test_a_server_without_ranges_serves_the_rest_too(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("GET", BLOB_PATH, Answer(200, BLOB))

    assert await read(open_repository(), 70_000) == BLOB[70_000:]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(200, BLOB, cut=5000), Interrupted),
        (Answer(200, BLOB[:5000]), Interrupted),
        (Answer(200, BLOB + b"more"), DataLoss),
        (Answer(200, BLOB, endless=True), DataLoss),
        (Answer(206, BLOB, {"Content-Range": "bytes nonsense"}), Unavailable),
        (Answer(206, BLOB, {"Content-Range": f"bytes {'9' * 5000}-"}), Unavailable),
        (Answer(404), NotFound),
    ],
    ids=["cut", "short", "long", "endless", "no range", "no place", "missing"],
)
async def test_a_blob_of_another_size_is_noticed(
    registry: ScriptedRegistry, open_repository: Open, answer: Answer, error: type[ApiError]
) -> None:
    registry.on("GET", BLOB_PATH, answer)

    with pytest.raises(error):
        await read(open_repository(), 1 if answer.status == 206 else 0)


async def test_busy_servers_are_asked_again_when_they_say(
    registry: ScriptedRegistry, open_repository: Open, pauses: list[float]
) -> None:
    registry.on("HEAD", TAG, Answer(429, headers={"Retry-After": "7"}), Answer(503), manifest_answer())

    assert (await open_repository().resolve()).digest == IMAGE.digest
    assert pauses[0] == 7
    assert 0 < pauses[1] <= 10


async def test_a_server_that_names_no_time_is_asked_again(registry: ScriptedRegistry, open_repository: Open) -> None:
    far_off = f"Mon, 01 Jan 2026 00:00:00 +{'9' * 20}"
    registry.on("HEAD", TAG, Answer(429, headers={"Retry-After": far_off}), manifest_answer())

    assert (await open_repository().resolve()).digest == IMAGE.digest


async def test_a_server_that_asks_for_an_hour_is_given_up(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("HEAD", TAG, Answer(429, headers={"Retry-After": "3600"}))

    with pytest.raises(Unavailable):
        await open_repository().resolve()

    assert len(registry.seen) == 1


async def test_a_server_that_keeps_failing_is_given_up(
    registry: ScriptedRegistry, open_repository: Open, pauses: list[float]
) -> None:
    registry.on("HEAD", TAG, Answer(500))

    with pytest.raises(Unavailable, match="500"):
        await open_repository().resolve()

    assert len(registry.seen) == len(pauses) + 1 == 5


async def test_an_answer_that_never_gets_to_its_end_is_given_up(
    open_repository: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_SILENCE", 0.1)
    peers = []

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        host = "{}:{}".format(*server.sockets[0].getsockname())
        slow = Endpoint(f"http://{host}/v2", host, dial_timeout=0.1)
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await open_repository(served_by=(slow,)).resolve()
            await asyncio.gather(*(peer.wait_closed() for peer in peers), return_exceptions=True)
    assert len(peers) == 5


async def test_nobody_listening_is_unavailable(open_repository: Open) -> None:
    closed = Endpoint("http://127.0.0.1:1/v2", "127.0.0.1:1")

    with pytest.raises(Unavailable):
        await open_repository(served_by=(closed,)).resolve()


async def test_cve_2020_15157_a_redirect_takes_no_secret_to_another_host(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    secret = {"Authorization": "", "X-Secret": ""}
    registry.on(
        "GET",
        BLOB_PATH,
        Answer(401, headers={"WWW-Authenticate": "Basic realm=x"}),
        Answer(307, headers={"Location": f"{other.url}/storage?sig=a%2Fb"}),
    )
    other.on("GET", "/storage", Answer(200, BLOB))
    own = Endpoint(f"{registry.url}/v2", registry.host, headers={"X-Secret": ("yes",)})
    repository = open_repository({registry.host: Credentials("me", "pass")}, (own,))

    assert await read(repository) == BLOB

    authorized = registry.seen[1].headers
    assert authorized["Authorization"].startswith("Basic ")
    assert authorized["X-Secret"] == "yes"
    [redirected] = other.seen
    assert redirected.query["sig"] == "a/b"
    assert not any(name in redirected.headers for name in secret)


async def test_cve_2020_15157_a_redirect_to_another_host_that_asks_who_we_are_gets_no_answer(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    registry.on("GET", BLOB_PATH, Answer(302, headers={"Location": f"{other.url}/trap"}))
    other.on("GET", "/trap", Answer(401, b"internal page", {"WWW-Authenticate": "Basic realm=x"}))
    repository = open_repository({registry.host: Credentials("me", "pass"), other.host: Credentials("me", "pass")})

    with pytest.raises(Unauthenticated) as raised:
        await read(repository)

    assert "internal page" not in str(raised.value)
    assert len(other.seen) == 1


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "http://user:pass@127.0.0.1/",
        "http://",
        "https://[::1",
        "https://[:::]/",
        "//127.0.0.1:99999/",
        "https://a..b/",
    ],
)
async def test_a_redirect_to_no_server_is_refused(
    registry: ScriptedRegistry, open_repository: Open, target: str
) -> None:
    registry.on("GET", BLOB_PATH, Answer(302, headers={"Location": target}))

    with pytest.raises(Unavailable):
        await read(open_repository())


@pytest.mark.parametrize("target", ["/a\vb", "/a\udcffb"])
def test_a_redirect_to_what_cannot_be_asked_for_is_refused(target: str) -> None:
    with pytest.raises(Unavailable, match="no place to go"):
        redirected("https://registry/v2/", target)


async def test_redirects_in_a_circle_end(registry: ScriptedRegistry, open_repository: Open) -> None:
    registry.on("GET", BLOB_PATH, Answer(302, headers={"Location": BLOB_PATH}))

    with pytest.raises(Unavailable, match="redirected"):
        await read(open_repository())

    assert len(registry.seen) == 10


async def test_a_mirror_is_asked_first_and_told_whose_it_is(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    mirror = Endpoint(f"{other.url}/v2", other.host)
    own = Endpoint(f"{registry.url}/v2", registry.host)
    other.on("HEAD", TAG, manifest_answer())
    registry.on("GET", BLOB_PATH, Answer(200, BLOB))
    repository = open_repository({registry.host: Credentials("me", "pass")}, (mirror, own))

    assert (await repository.resolve()).digest == IMAGE.digest
    assert await read(repository) == BLOB

    assert [seen.query["ns"] for seen in other.seen] == [registry.host] * 2
    assert [seen.path for seen in registry.seen] == [BLOB_PATH]


async def test_a_mirror_without_the_capability_is_left_alone(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    mirror = Endpoint(f"{other.url}/v2", other.host, Capability.PULL)
    own = Endpoint(f"{registry.url}/v2", registry.host)
    registry.on("HEAD", TAG, manifest_answer())

    await open_repository(served_by=(mirror, own)).resolve()

    assert other.seen == []


async def test_endpoints_whose_bytes_proved_wrong_are_left_for_last(
    registry: ScriptedRegistry, other: ScriptedRegistry, open_repository: Open
) -> None:
    other.on("GET", BLOB_PATH, Answer(200, bytes(len(BLOB))))
    registry.on("GET", BLOB_PATH, Answer(200, BLOB))
    servers = (Endpoint(f"{other.url}/v2", other.host), Endpoint(f"{registry.url}/v2", registry.host))

    async with open_repository(served_by=servers).blob(LAYER, 0, skip=1) as parts:
        assert b"".join([part async for part in parts]) == BLOB

    assert other.seen == []
