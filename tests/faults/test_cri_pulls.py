"""F42, F13, F37: kubelets' pulls from registries that stall, lie, redirect or ask for too much."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from pyctr_wire.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from pyctr_wire.cri import image_pb2 as pb
from pyctr_wire.cri import image_pb2_grpc
from support.daemon_process import DaemonProcess
from support.images import CONFIG, LAYER, MANIFEST, BuiltImage, descriptor, digest, image
from support.scripted_registry import Answer, ScriptedRegistry, Seen, scripted_registry

pytestmark = pytest.mark.root

# Ends a pull to which nothing comes; long enough for a loaded machine to send a byte.
PATIENCE = 5

IMAGE: BuiltImage = image({"etc/hello": b"hello\n"})
[LAYER_DIGEST] = [digest(layer) for layer in IMAGE.layers]
NAMESPACE = (("containerd-namespace", "k8s.io"),)
SECRET = "do-not-tell"
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for hosts.toml files."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def running(hosts: Path) -> Iterator[DaemonProcess]:
    config = f'[cri]\nimage_pull_progress_timeout = {PATIENCE}\n[registry]\nconfig_path = ["{hosts}"]\n'
    with DaemonProcess(config=config) as daemon:
        yield daemon


class Client:
    """A kubelet."""

    def __init__(self, daemon: DaemonProcess, channel: grpc.aio.Channel) -> None:
        self.daemon = daemon
        self.stub: Any = image_pb2_grpc.ImageServiceStub(channel)
        self._leases: Any = leases_pb2_grpc.LeasesStub(channel)
        self._content: Any = content_pb2_grpc.ContentStub(channel)

    async def pull(self, name: str, timeout: float = 60, **auth: str) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name), auth=pb.AuthConfig(**auth) if auth else None)
        return (await self.stub.PullImage(request, timeout=timeout)).image_ref

    async def refused(self, name: str, timeout: float = 60, **auth: str) -> tuple[grpc.StatusCode, str]:
        """Return the error of a pull, having seen that it left no image and no lease."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.pull(name, timeout, **auth)
        assert SECRET not in (caught.value.details() or "")
        await self.nothing_is_left()
        return caught.value.code(), caught.value.details() or ""

    async def arrived(self) -> int:
        """Return how many bytes there are of what is being fetched."""
        found = await self._content.ListStatuses(content_pb2.ListStatusesRequest(), metadata=NAMESPACE)
        return sum(one.offset for one in found.statuses)

    async def nothing_is_left(self) -> None:
        assert not (await self.stub.ListImages(pb.ListImagesRequest(), timeout=30)).images
        async with asyncio.timeout(30):
            while (await self._leases.List(leases_pb2.ListRequest(), metadata=NAMESPACE)).leases:
                await asyncio.sleep(0.05)


@pytest.fixture
async def client(running: DaemonProcess) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"unix:{running.address}") as channel:
        client = Client(running, channel)
        yield client
        for one in (await client.stub.ListImages(pb.ListImagesRequest(), timeout=30)).images:
            await client.stub.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=one.id)), timeout=30)
    assert SECRET not in running.log_text()


@pytest.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as found:
        yield found


@pytest.fixture
async def other() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as found:
        yield found


def openly(answer: Answer) -> Answer:
    """Guard nothing."""
    return answer


def serve(registry: ScriptedRegistry, built: BuiltImage, guard: Callable[[Answer], Any] = openly) -> None:
    """Have test/image:v1, each answer through `guard`."""
    for name in ("v1", built.digest):
        answer = guard(_document(built.manifest))
        registry.on("HEAD", f"/v2/test/image/manifests/{name}", answer)
        registry.on("GET", f"/v2/test/image/manifests/{name}", answer)
    for name, data in built.blobs.items():
        registry.on("GET", f"/v2/test/image/blobs/{name}", guard(Answer(body=data)))


def _document(data: bytes) -> Answer:
    return Answer(body=data, headers={"Content-Type": MANIFEST, "Docker-Content-Digest": digest(data)})


def guarded(challenge: str, authorization: str) -> Callable[[Answer], Callable[[Seen], Answer]]:
    """Return a guard that lets those pass who send `authorization`."""

    def guard(answer: Answer) -> Callable[[Seen], Answer]:
        refusal = Answer(401, headers={"WWW-Authenticate": challenge})
        return lambda seen: answer if seen.headers.get("Authorization") == authorization else refusal

    return guard


def shown_to(registry: ScriptedRegistry) -> list[str]:
    """Return all that was sent to a server, in which a secret could be."""
    return [
        f"{seen.path}?{sorted(seen.query.items())} {sorted(seen.headers.items())} {seen.body!r}"
        for seen in registry.seen
    ]


def knows_secret(registry: ScriptedRegistry) -> bool:
    encoded = BASIC.removeprefix("Basic ")
    return any(SECRET in line or encoded in line for line in shown_to(registry))


# -- what stalls


async def test_a_pull_to_which_nothing_comes_is_given_up(client: Client, registry: ScriptedRegistry) -> None:
    """The server sends half a layer and then keeps the connection."""
    serve(registry, IMAGE)
    async with stalling(IMAGE.blobs[LAYER_DIGEST]) as address:
        layer = Answer(307, headers={"Location": f"http://{address}/blob"})
        registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", layer)

        code, text = await client.refused(f"{registry.host}/test/image:v1")

    assert code is grpc.StatusCode.CANCELLED
    assert f"nothing has arrived for {PATIENCE} seconds" in text
    registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", Answer(body=IMAGE.blobs[LAYER_DIGEST]))
    assert await client.pull(f"{registry.host}/test/image:v1") == digest(IMAGE.config)


async def test_a_deadline_ends_the_pull_and_frees_what_it_held(client: Client, registry: ScriptedRegistry) -> None:
    serve(registry, IMAGE)
    async with stalling(IMAGE.blobs[LAYER_DIGEST]) as address:
        layer = Answer(307, headers={"Location": f"http://{address}/blob"})
        registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", layer)

        code, _ = await client.refused(f"{registry.host}/test/image:v1", timeout=1)

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", Answer(body=IMAGE.blobs[LAYER_DIGEST]))
    assert await client.pull(f"{registry.host}/test/image:v1") == digest(IMAGE.config)


class stalling:
    """A server that sends the first half of a body, whoever asks for what, and then nothing."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._body))
        writer.write(self._body[: len(self._body) // 2])
        await writer.drain()


async def test_a_killed_daemon_leaves_no_half_image(registry: ScriptedRegistry) -> None:
    """F05: and the next one goes on from the half of the layer that had arrived."""
    serve(registry, IMAGE)
    blob, data = f"/v2/test/image/blobs/{LAYER_DIGEST}", IMAGE.blobs[LAYER_DIGEST]
    # A daemon of its own: the dead one's lease lasts for a day.
    with DaemonProcess() as daemon:
        async with (
            grpc.aio.insecure_channel(f"unix:{daemon.address}") as channel,
            stalling(data) as address,
        ):
            client = Client(daemon, channel)
            registry.on("GET", blob, Answer(307, headers={"Location": f"http://{address}/blob"}))
            pull = asyncio.ensure_future(client.pull(f"{registry.host}/test/image:v1"))
            async with asyncio.timeout(30):
                while await client.arrived() != len(data) // 2:
                    await asyncio.sleep(0.05)
            daemon.restart()
            with pytest.raises(grpc.aio.AioRpcError):
                await pull

        registry.on("GET", blob, partial(_from_range, data))
        async with grpc.aio.insecure_channel(f"unix:{daemon.address}") as channel:
            client = Client(daemon, channel)
            assert not (await client.stub.ListImages(pb.ListImagesRequest(), timeout=30)).images
            assert await client.pull(f"{registry.host}/test/image:v1") == digest(IMAGE.config)
    assert registry.requests(blob)[-1].headers["Range"] == f"bytes={len(data) // 2}-{len(data) - 1}"


def _from_range(data: bytes, seen: Seen) -> Answer:
    start = int(seen.headers["Range"].removeprefix("bytes=").partition("-")[0])
    return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


# -- what is too much


async def test_a_manifest_that_says_it_is_huge_is_not_read(client: Client, registry: ScriptedRegistry) -> None:
    claimed = {"Content-Type": MANIFEST, "Docker-Content-Digest": IMAGE.digest}
    registry.on("HEAD", "/v2/test/image/manifests/v1", Answer(body=b" " * (9 << 20), headers=claimed))
    registry.on("GET", f"/v2/test/image/manifests/{IMAGE.digest}", Answer(body=b"[", headers=claimed, endless=True))

    code, text = await client.refused(f"{registry.host}/test/image:v1")

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "over the limit" in text
    assert not registry.requests(f"/v2/test/image/manifests/{IMAGE.digest}")


async def test_a_manifest_without_end_is_cut_off(client: Client, registry: ScriptedRegistry) -> None:
    registry.on("HEAD", "/v2/test/image/manifests/v1", Answer(405))
    endless = Answer(body=b" " * 65536, headers={"Content-Type": MANIFEST}, endless=True)
    registry.on("GET", "/v2/test/image/manifests/v1", endless)

    code, _ = await client.refused(f"{registry.host}/test/image:v1")

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _memory(client.daemon) < 512 << 20


@pytest.mark.parametrize(
    "config",
    [
        b"[" * 1_000_000,
        b'{"config":{"Env":' + b'["A=B"' + b',"A=B"' * 1_000_000 + b']},"rootfs":{"diff_ids":[]}}',
        b'{"rootfs":{"diff_ids":["../../etc/passwd"]}}',
        b'{"config":{"User":"' + b"x" * (9 << 20) + b'"}}',
        b'{"os":"linux","architecture":"amd64","config":{"User":"\\ud800"},"rootfs":{"diff_ids":[]}}',
    ],
    ids=["deep", "wide", "path", "long", "half a character"],
)
async def test_a_configuration_that_no_image_has(client: Client, registry: ScriptedRegistry, config: bytes) -> None:
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config, CONFIG), "layers": []}
    ).encode()
    serve(registry, BuiltImage(manifest, {digest(config): config, digest(manifest): manifest}, config, (), ()))

    code, _ = await client.refused(f"{registry.host}/test/image:v1")

    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_layers_without_number_are_refused(client: Client, registry: ScriptedRegistry) -> None:
    layer = descriptor(b"", LAYER)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(IMAGE.config, CONFIG),
            "layers": [layer] * 20_000,
        }
    ).encode()
    serve(registry, BuiltImage(manifest, {**IMAGE.blobs, digest(manifest): manifest}, IMAGE.config, (), ()))

    code, text = await client.refused(f"{registry.host}/test/image:v1")

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "layers" in text


async def test_another_manifest_than_the_digest_says_is_refused(client: Client, registry: ScriptedRegistry) -> None:
    own = image({"etc/own": b"of no other test: what is here already is not fetched\n"})
    serve(registry, own)
    lie = image({"etc/evil": b"x"})
    registry.on("GET", f"/v2/test/image/manifests/{own.digest}", _document(lie.manifest))

    code, _ = await client.refused(f"{registry.host}/test/image@{own.digest}")

    assert code in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _memory(daemon: DaemonProcess) -> int:
    """Return the most bytes that the daemon has had in memory."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# -- whom credentials are shown to


async def test_passwords_do_not_follow_a_redirect(
    client: Client, registry: ScriptedRegistry, other: ScriptedRegistry
) -> None:
    serve(registry, IMAGE, guarded('Basic realm="x"', BASIC))
    other.on("GET", "/blob", Answer(body=IMAGE.blobs[LAYER_DIGEST]))
    registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", Answer(307, headers={"Location": f"{other.url}/blob"}))

    await client.pull(f"{registry.host}/test/image:v1", username="me", password=SECRET)

    assert knows_secret(registry)
    assert other.seen
    assert not knows_secret(other)


async def test_another_host_that_asks_for_a_password_gets_none(
    client: Client, registry: ScriptedRegistry, other: ScriptedRegistry
) -> None:
    serve(registry, IMAGE)
    other.on("GET", "/blob", Answer(401, headers={"WWW-Authenticate": 'Basic realm="give"'}))
    registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", Answer(307, headers={"Location": f"{other.url}/blob"}))

    await client.refused(f"{registry.host}/test/image:v1", username="me", password=SECRET)

    assert other.seen
    assert not knows_secret(other)


async def test_a_mirror_that_asks_for_a_password_gets_none(
    client: Client, registry: ScriptedRegistry, other: ScriptedRegistry, hosts: Path
) -> None:
    """The pod's secret is for the registry that its image names; the mirror is an idea of the node's."""
    serve(registry, IMAGE, guarded('Basic realm="x"', BASIC))
    serve(other, IMAGE, guarded('Basic realm="x"', BASIC))
    directory = hosts / registry.host
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'server = "{registry.url}"\n[host."{other.url}"]\n')

    await client.pull(f"{registry.host}/test/image:v1", username="me", password=SECRET)

    assert other.seen
    assert not knows_secret(other)
    assert knows_secret(registry)


async def test_credentials_for_another_server_are_shown_to_nobody(client: Client, registry: ScriptedRegistry) -> None:
    serve(registry, IMAGE, guarded('Basic realm="x"', BASIC))

    code, text = await client.refused(
        f"{registry.host}/test/image:v1", username="me", password=SECRET, server_address="registry.example.com"
    )

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert not knows_secret(registry)
    assert registry.host in text


async def test_a_registry_token_is_sent_as_it_is(client: Client, registry: ScriptedRegistry) -> None:
    challenge = f'Bearer realm="{registry.url}/token",service="x"'
    serve(registry, IMAGE, guarded(challenge, f"Bearer {SECRET}"))

    await client.pull(f"{registry.host}/test/image:v1", registry_token=SECRET)

    assert not registry.requests("/token")


async def test_an_identity_token_buys_an_access_token(client: Client, registry: ScriptedRegistry) -> None:
    challenge = f'Bearer realm="{registry.url}/token",service="x"'
    serve(registry, IMAGE, guarded(challenge, "Bearer access"))
    registry.on("POST", "/token", Answer(body=b'{"access_token":"access"}'))

    await client.pull(f"{registry.host}/test/image:v1", identity_token=SECRET)

    [bought] = registry.requests("/token")
    assert b"grant_type=refresh_token" in bought.body
    assert SECRET.encode() in bought.body


# -- who comes at the same time


async def test_whoever_leaves_does_not_end_the_pull_of_the_others(client: Client, registry: ScriptedRegistry) -> None:
    serve(registry, IMAGE)
    opened = asyncio.Event()
    async with gate(IMAGE.blobs[LAYER_DIGEST], opened) as address:
        layer = Answer(307, headers={"Location": f"http://{address}/blob"})
        registry.on("GET", f"/v2/test/image/blobs/{LAYER_DIGEST}", layer)
        pulls = [asyncio.ensure_future(client.pull(f"{registry.host}/test/image:v1")) for _ in range(20)]
        async with asyncio.timeout(30):
            while not registry.requests(f"/v2/test/image/blobs/{LAYER_DIGEST}"):
                await asyncio.sleep(0.01)
        for one in pulls[:10]:
            one.cancel()
        await asyncio.wait(pulls[:10])
        opened.set()
        assert await asyncio.gather(*pulls[10:]) == [digest(IMAGE.config)] * 10

    assert len(registry.requests(f"/v2/test/image/blobs/{LAYER_DIGEST}")) == 1
    assert len(registry.requests("/v2/test/image/manifests/v1", "HEAD")) == 1


class gate(stalling):
    """A server that sends its body once it is opened."""

    def __init__(self, body: bytes, opened: asyncio.Event) -> None:
        super().__init__(body)
        self._opened = opened

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        await self._opened.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._body) + self._body)
        await writer.drain()
