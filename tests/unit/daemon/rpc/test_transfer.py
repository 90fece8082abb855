"""The streaming and transfer services, over the wire: what clients say becomes values, and values become messages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from pyctr_wire.containerd.services.streaming.v1 import streaming_pb2
from pyctr_wire.containerd.services.streaming.v1.streaming_pb2_grpc import StreamingStub
from pyctr_wire.containerd.services.transfer.v1 import transfer_pb2
from pyctr_wire.containerd.services.transfer.v1.transfer_pb2_grpc import TransferStub
from pyctr_wire.containerd.types import platform_pb2
from pyctr_wire.containerd.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2
from pyctrd.core.anys import AnyValue
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.platforms import Platform
from pyctrd.registry.credentials import Credentials
from pyctrd.rpc.streaming import Streaming
from pyctrd.rpc.transfer import Transfer
from pyctrd.runtime.operations import Operations
from pyctrd.server.dispatch import Dispatch
from pyctrd.server.listener import Listener
from pyctrd.streams.manager import StreamManager
from pyctrd.transfer import requests
from pyctrd.transfer.progress import Report

NS = (("containerd-namespace", "default"), ("containerd-lease", "l"))

Work = Callable[..., Awaitable[None]]


class ScriptedTransfers:
    """Remembers what it is asked, and does what it is told."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()
        self.work: Work | None = None

    async def transfer(self, *arguments: Any) -> None:
        self.asked = arguments
        if self.work is not None:
            await self.work(*arguments[-2:])


@pytest.fixture
def streams() -> StreamManager:
    return StreamManager()


@pytest.fixture
def transfers() -> ScriptedTransfers:
    return ScriptedTransfers()


@pytest.fixture
def operations() -> Operations:
    return Operations()


@pytest.fixture
async def channel(
    tmp_path: Path, streams: StreamManager, transfers: ScriptedTransfers, operations: Operations
) -> AsyncIterator[grpc.aio.Channel]:
    dispatch = Dispatch()
    dispatch.add(Streaming(streams))
    dispatch.add(Transfer(transfers, streams, operations))  # type: ignore[arg-type]
    listener = Listener(dispatch, [tmp_path / "s"], uid=-1, gid=-1, connection_age=600)
    await listener.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as found:
        yield found
    await listener.stop(0)


def packed(message: Message) -> AnyMessage:
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


async def opened(channel: grpc.aio.Channel, name: str, metadata: Any = NS) -> Any:
    """Return a stream that the daemon knows."""
    call = StreamingStub(channel).Stream(metadata=metadata)
    await call.write(packed(streaming_pb2.StreamInit(id=name)))
    assert (await call.read()).type_url == "google.protobuf.Empty"
    return call


async def transfer(channel: grpc.aio.Channel, source: Message, destination: Message, progress: str = "") -> None:
    request = transfer_pb2.TransferRequest(
        source=source if isinstance(source, AnyMessage) else packed(source),
        destination=packed(destination),
        options=transfer_pb2.TransferOptions(progress_stream=progress),
    )
    await TransferStub(channel).Transfer(request, metadata=NS)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details() or ""


async def test_a_stream_carries_messages_until_it_is_closed(channel: grpc.aio.Channel, streams: StreamManager) -> None:
    call = await opened(channel, "s")
    stream = streams.get("default", "s")

    await call.write(AnyMessage(type_url="question"))
    assert await stream.receive() == AnyValue("question", b"")
    await stream.send(AnyValue("answer", b"42"))
    await stream.close()

    assert (await call.read()).value == b"42"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_needs_no_namespace_and_a_name_of_its_own(
    channel: grpc.aio.Channel, streams: StreamManager
) -> None:
    await opened(channel, "s", ())
    assert streams.get("", "s")

    second = StreamingStub(channel).Stream()
    await second.write(packed(streaming_pb2.StreamInit(id="s")))
    assert (await refused(second.read()))[0] is grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    "first",
    [
        packed(streaming_pb2.StreamInit()),
        AnyMessage(type_url="containerd.services.streaming.v1.StreamInit", value=b"\xff"),
        AnyMessage(type_url="other"),
    ],
)
async def test_a_stream_must_say_its_name_first(channel: grpc.aio.Channel, first: AnyMessage) -> None:
    call = StreamingStub(channel).Stream(metadata=NS)
    await call.write(first)

    assert (await refused(call.read()))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_whose_client_goes_is_forgotten(channel: grpc.aio.Channel, streams: StreamManager) -> None:
    call = await opened(channel, "s")
    stream = streams.get("default", "s")

    call.cancel()

    with pytest.raises(Exception, match="closed its stream"):
        await stream.receive()


REGISTRY = registry_pb2.OCIRegistry(reference="example.com/image:v1")
STORE = imagestore_pb2.ImageStore(name="name")


@pytest.mark.parametrize(
    ("source", "destination", "subject", "name"),
    [
        (REGISTRY, STORE, "image example.com/image:v1", "pull"),
        (STORE, REGISTRY, "image example.com/image:v1", "push"),
        (STORE, imagestore_pb2.ImageStore(name="other"), "image name", "tag"),
        (STORE, importexport_pb2.ImageExportStream(stream="s"), "image name", "export"),
        (importexport_pb2.ImageImportStream(stream="s"), STORE, "archive s", "import"),
    ],
)
async def test_a_transfer_is_an_operation(
    channel: grpc.aio.Channel,
    transfers: ScriptedTransfers,
    operations: Operations,
    source: Message,
    destination: Message,
    subject: str,
    name: str,
) -> None:
    """With the stage that it has reached, whether or not the client listens; its failure is remembered."""

    async def work(_: object, listener: Any) -> None:
        await listener.send(Report("resolving"))
        await listener.send(Report("waiting", "layer", descriptor=Descriptor("t", "sha256:0", 1, {})))
        (found,) = operations.running()
        assert (found.namespace, found.object, found.name, found.stage) == ("default", subject, name, "resolving")
        raise OSError(28, "No space left on device")

    transfers.work = work
    code, _ = await refused(transfer(channel, source, destination))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED  # as without the table
    assert operations.running() == []
    (failed,) = operations.about(subject.split()[1])
    assert "No space left" in failed.error


async def test_every_field_of_a_pull(channel: grpc.aio.Channel, transfers: ScriptedTransfers) -> None:
    source = registry_pb2.OCIRegistry(
        reference="example.com/image:v1",
        resolver=registry_pb2.RegistryResolver(
            headers={"x": "y"}, host_dir="/certs", default_scheme="http", http_debug=registry_pb2.HTTPDebug.DISABLED
        ),
    )
    destination = imagestore_pb2.ImageStore(
        name="name",
        labels={"a": "b"},
        platforms=[platform_pb2.Platform(os="linux", architecture="aarch64", variant="v8")],
        all_metadata=True,
        manifest_limit=2,
        extra_references=[
            imagestore_pb2.ImageReference(
                name="extra", is_prefix=True, allow_overwrite=True, add_digest=True, skip_named_digest=True
            )
        ],
        unpacks=[
            imagestore_pb2.UnpackConfiguration(snapshotter="native"),
            imagestore_pb2.UnpackConfiguration(platform=platform_pb2.Platform(os="linux", architecture="386")),
        ],
    )

    await transfer(channel, source, destination)

    arm = Platform("linux", "arm64")
    assert transfers.asked[:5] == (
        "default",
        "l",
        requests.Registry("example.com/image:v1", {"x": "y"}, "/certs", "http"),
        requests.ImageStore(
            "name",
            {"a": "b"},
            (arm,),
            True,
            2,
            (requests.ExtraReference("extra", True, True, True, True),),
            (requests.Unpack(None, "native"), requests.Unpack(Platform("linux", "386"))),
        ),
        None,
    )


async def test_every_field_of_streams(channel: grpc.aio.Channel, transfers: ScriptedTransfers) -> None:
    await transfer(
        channel,
        importexport_pb2.ImageImportStream(stream="in", media_type="tar", force_compress=True),
        importexport_pb2.ImageExportStream(
            stream="out",
            media_type="tar",
            platforms=[platform_pb2.Platform(os="linux", architecture="amd64")],
            all_platforms=True,
            skip_compatibility_manifest=True,
            skip_non_distributable=True,
        ),
    )

    assert transfers.asked[2:4] == (
        requests.ImportStream("in", "tar", True),
        requests.ExportStream("out", "tar", (Platform("linux", "amd64"),), True, True, True),
    )


async def test_types_with_a_prefix_are_known_too(channel: grpc.aio.Channel, transfers: ScriptedTransfers) -> None:
    source = AnyMessage()
    source.Pack(registry_pb2.OCIRegistry(reference="r"))

    await transfer(channel, source, imagestore_pb2.ImageStore(name="n"))

    assert transfers.asked[2] == requests.Registry("r")


async def test_what_nobody_can_transfer(channel: grpc.aio.Channel) -> None:
    store = imagestore_pb2.ImageStore()

    code, text = await refused(transfer(channel, AnyMessage(type_url="some.Thing"), store))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "not implemented for some.Thing to containerd.types.transfer.ImageStore" in text
    damaged = AnyMessage(type_url="containerd.types.transfer.OCIRegistry", value=b"\xff")
    assert (await refused(transfer(channel, damaged, store)))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refused(transfer(channel, store, store, progress="nowhere")))[0] is grpc.StatusCode.NOT_FOUND


async def test_progress_is_there_before_the_answer(channel: grpc.aio.Channel, transfers: ScriptedTransfers) -> None:
    call = await opened(channel, "progress")
    report = Report("complete", "layer", ("image",), 5, 10, Descriptor("type", "digest", 10))

    async def work(credentials: object, listener: Any) -> None:
        await listener.send(report)
        await listener.close()

    transfers.work = work
    await transfer(channel, imagestore_pb2.ImageStore(), imagestore_pb2.ImageStore(), "progress")

    message = progress_pb2.Progress.FromString((await call.read()).value)
    assert (message.event, message.name, list(message.parents)) == ("complete", "layer", ["image"])
    assert (message.progress, message.total, message.desc.digest) == (5, 10, "digest")
    assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (registry_pb2.AuthResponse(authType="NONE"), None),
        (registry_pb2.AuthResponse(authType="CREDENTIALS", username="u", secret="s"), Credentials("u", "s")),
        (registry_pb2.AuthResponse(authType="REFRESH", secret="s"), Credentials(secret="s")),
        (registry_pb2.AuthResponse(authType="HEADER", secret="Bearer s"), Credentials(header="Bearer s")),
    ],
)
async def test_the_client_is_asked_who_it_is(
    channel: grpc.aio.Channel,
    transfers: ScriptedTransfers,
    answer: registry_pb2.AuthResponse,
    expected: Credentials | None,
) -> None:
    call = await opened(channel, "auth")
    found: list[Credentials | None] = []

    async def work(credentials: Any, listener: object) -> None:
        found.append(await credentials("example.com", ("Basic",)))

    transfers.work = work
    source = registry_pb2.OCIRegistry(reference="r", resolver=registry_pb2.RegistryResolver(auth_stream="auth"))
    await call.write(packed(answer))
    await transfer(channel, source, imagestore_pb2.ImageStore(name="n"))

    question = registry_pb2.AuthRequest.FromString((await call.read()).value)
    assert (question.host, question.reference, list(question.wwwauthenticate)) == ("example.com", "r", ["Basic"])
    assert found == [expected]
