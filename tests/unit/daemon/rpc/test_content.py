"""containerd.services.content.v1, over the wire: reads, and the write stream in every turn that clients take."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.containerd.services.content.v1.content_pb2_grpc import ContentStub
from support.metadata_services import Wired

if TYPE_CHECKING:  # it is a type only
    from pyctr_wire.containerd.services.content.v1.content_pb2_grpc import ContentAsyncStub

NS = (("containerd-namespace", "default"),)
OTHER = (("containerd-namespace", "other"),)
STAT, WRITE, COMMIT = pb.WriteAction.STAT, pb.WriteAction.WRITE, pb.WriteAction.COMMIT
DATA = bytes(range(256)) * 10_000  # 2.4 MiB: three messages


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
async def stub(channel: grpc.aio.Channel) -> "ContentAsyncStub":
    return ContentStub(channel)


class Writing:
    """One write stream, a message and its answer at a time."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, action: int, **fields: Any) -> pb.WriteContentResponse:
        await self.call.write(pb.WriteContentRequest(action=action, **fields))  # type: ignore[arg-type]
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF, await self.call.code()
        return answer

    async def fails(self, action: int, **fields: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.send(action, **fields)
        return raised.value.code(), str(raised.value.details())


@asynccontextmanager
async def _writing(stub: "ContentAsyncStub", metadata: Any = NS) -> AsyncIterator[Writing]:
    """Yield a stream; it is over, seen from the daemon too, when this ends."""
    call = stub.Write(metadata=metadata, timeout=30)
    yield Writing(call)
    try:
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        pass


async def _store(stub: "ContentAsyncStub", data: bytes, metadata: Any = NS) -> str:
    async with _writing(stub, metadata) as stream:
        await stream.send(COMMIT, ref=_digest(data), total=len(data), expected=_digest(data), data=data)
    return _digest(data)


async def _read(stub: "ContentAsyncStub", digest: str, **fields: int) -> list[pb.ReadContentResponse]:
    return [one async for one in stub.Read(pb.ReadContentRequest(digest=digest, **fields), metadata=NS, timeout=30)]


async def test_a_commit_is_answered_by_the_digest_that_it_expects(stub: "ContentAsyncStub") -> None:
    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    async with _writing(stub) as stream:
        await stream.send(WRITE, ref="late", data=DATA)
        answer = await stream.send(COMMIT, offset=len(DATA), expected=digest)

    assert answer.digest == digest
    assert b"".join(part.data for part in await _read(stub, digest)) == DATA


async def test_a_client_writes_as_containerds_does(stub: "ContentAsyncStub") -> None:
    """STAT with what is expected, WRITE by WRITE at its offset, COMMIT with labels."""
    digest = _digest(b"hello world")
    async with _writing(stub) as stream:
        stat = await stream.send(STAT, ref="r", total=11, expected=digest)
        assert (stat.action, stat.offset, stat.total) == (STAT, 0, 11)
        assert stat.started_at.seconds > 0
        first = await stream.send(WRITE, ref="r", offset=0, data=b"hello")
        assert (first.action, first.offset, first.digest) == (WRITE, 5, _digest(b"hello"))
        second = await stream.send(WRITE, ref="r", offset=5, data=b" world")
        assert second.offset == 11
        done = await stream.send(COMMIT, ref="r", offset=11, total=11, expected=digest, labels={"a": "b", "c": ""})
        assert (done.action, done.offset, done.digest) == (COMMIT, 11, digest)
        assert await stream.call.code() is grpc.StatusCode.OK

    info = (await stub.Info(pb.InfoRequest(digest=digest), metadata=NS)).info
    assert (info.size, dict(info.labels)) == (11, {"a": "b"})
    with pytest.raises(grpc.aio.AioRpcError, match='ingest "r": not found'):
        await stub.Status(pb.StatusRequest(ref="r"), metadata=NS)


async def test_a_blob_is_read_in_pieces_that_count_from_what_was_asked_for(stub: "ContentAsyncStub") -> None:
    digest = await _store(stub, DATA)

    whole = await _read(stub, digest)
    assert [len(one.data) for one in whole] == [1 << 20, 1 << 20, len(DATA) - (2 << 20)]
    assert [one.offset for one in whole] == [0, 1 << 20, 2 << 20]
    assert b"".join(one.data for one in whole) == DATA
    (part,) = await _read(stub, digest, offset=100, size=10)
    assert (part.offset, part.data) == (0, DATA[100:110])
    assert b"".join(one.data for one in await _read(stub, digest, offset=len(DATA) - 3, size=10)) == DATA[-3:]
    assert b"".join(one.data for one in await _read(stub, digest, offset=-5, size=3)) == DATA[:3]
    assert await _read(stub, digest, offset=len(DATA)) == []
    with pytest.raises(grpc.aio.AioRpcError, match=f"read past object length {len(DATA)} bytes: out of range"):
        await _read(stub, digest, offset=len(DATA) + 1)


async def test_an_empty_blob_is_written_and_read(stub: "ContentAsyncStub") -> None:
    async with _writing(stub) as stream:
        assert (await stream.send(COMMIT, ref="r")).digest == _digest(b"")

    assert await _read(stub, _digest(b"")) == []


async def test_a_write_goes_on_where_it_stopped(stub: "ContentAsyncStub") -> None:
    async with _writing(stub) as stream:
        await stream.send(STAT, ref="r", total=6)
        await stream.send(WRITE, ref="r", data=b"abc")
        await stream.call.done_writing()
        # Without COMMIT the stream ends well, with one more answer.
        assert (await stream.call.read()).offset == 3
        assert await stream.call.code() is grpc.StatusCode.OK

    status = (await stub.Status(pb.StatusRequest(ref="r"), metadata=NS)).status
    assert (status.ref, status.offset, status.total) == ("r", 3, 6)
    listed = await stub.ListStatuses(pb.ListStatusesRequest(filters=["ref~=r"]), metadata=NS)
    assert list(listed.statuses) == [status]
    async with _writing(stub) as stream:
        assert (await stream.send(STAT, ref="r")).offset == 3
        await stream.send(WRITE, ref="r", offset=3, data=b"def")
        assert (await stream.send(COMMIT, ref="r", offset=6)).digest == _digest(b"abcdef")


async def test_offset_zero_starts_again_and_any_other_must_fit(stub: "ContentAsyncStub") -> None:
    async with _writing(stub) as stream:
        await stream.send(WRITE, ref="r", data=b"abc")
        assert (await stream.send(WRITE, ref="r", offset=0, data=b"x")).offset == 1
        failure = await stream.fails(WRITE, ref="r", offset=7, data=b"y")

    assert failure == (grpc.StatusCode.OUT_OF_RANGE, "write @7 must occur at current offset 1: out of range")


async def test_a_first_message_needs_a_reference(stub: "ContentAsyncStub") -> None:
    async with _writing(stub) as stream:
        code, details = await stream.fails(STAT)

    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "first message must have a reference: invalid argument",
    )


async def test_a_locked_reference_is_unavailable_until_its_stream_ends_however_it_does(
    stub: "ContentAsyncStub",
) -> None:
    async with _writing(stub) as holder:
        await holder.send(WRITE, ref="r", data=b"abc")
        async with _writing(stub) as second:
            code, details = await second.fails(STAT, ref="r")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details.startswith("ref default/r locked for ")
        async with _writing(stub, OTHER) as elsewhere:
            await elsewhere.send(STAT, ref="r")
        holder.call.cancel()

    async with asyncio.timeout(30):
        while await _offset(stub) is None:  # the daemon may hear of the cancel a moment later
            pass


async def _offset(stub: "ContentAsyncStub") -> int | None:
    """Return how far the ingest got, None if it is locked."""
    async with _writing(stub) as stream:
        try:
            return (await stream.send(STAT, ref="r")).offset
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return None
            raise


async def test_a_blob_that_is_there_need_not_be_written(stub: "ContentAsyncStub") -> None:
    digest = await _store(stub, b"abc")

    async with _writing(stub) as stream:
        assert await stream.fails(STAT, ref="r", expected=digest) == (
            grpc.StatusCode.ALREADY_EXISTS,
            f"content {digest}: already exists",
        )
    async with _writing(stub) as stream:  # the digest may come later, too
        await stream.send(STAT, ref="r")
        assert await stream.fails(COMMIT, ref="r", expected=digest) == (
            grpc.StatusCode.ALREADY_EXISTS,
            f"blob with expected digest {digest} exists: already exists",
        )
    async with _writing(stub) as stream:  # or not at all
        assert await stream.fails(COMMIT, ref="r", data=b"abc") == (
            grpc.StatusCode.ALREADY_EXISTS,
            f"content {digest}: already exists",
        )


async def test_a_blob_of_another_namespace_is_shared_with_whoever_knows_its_digest(stub: "ContentAsyncStub") -> None:
    digest = await _store(stub, b"abc")
    with pytest.raises(grpc.aio.AioRpcError, match="not found"):
        await stub.Info(pb.InfoRequest(digest=digest), metadata=OTHER)

    async with _writing(stub, OTHER) as stream:
        assert (await stream.send(STAT, ref="r", total=3, expected=digest)).offset == 3
        await stream.send(COMMIT, ref="r", total=3, offset=3, expected=digest)

    assert (await stub.Info(pb.InfoRequest(digest=digest), metadata=OTHER)).info.size == 3


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"total": 4}, '"r" failed size validation: 3 != 4'),
        ({"expected": _digest(b"xyz")}, f"unexpected commit digest {_digest(b'abc')}, expected {_digest(b'xyz')}"),
    ],
)
async def test_a_commit_checks_what_was_announced_and_keeps_the_ingest(
    stub: "ContentAsyncStub", fields: dict[str, Any], details: str
) -> None:
    async with _writing(stub) as stream:
        await stream.send(WRITE, ref="r", data=b"abc")
        code, text = await stream.fails(COMMIT, ref="r", offset=3, **fields)

    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details in text
    assert (await stub.Status(pb.StatusRequest(ref="r"), metadata=NS)).status.offset == 3
    await stub.Abort(pb.AbortRequest(ref="r"), metadata=NS)
    with pytest.raises(grpc.aio.AioRpcError, match="not found"):
        await stub.Abort(pb.AbortRequest(ref="r"), metadata=NS)


async def test_a_list_comes_in_batches_and_labels_change(stub: "ContentAsyncStub") -> None:
    digests = sorted([await _store(stub, str(number).encode()) for number in range(101)])

    messages = [len(one.info) async for one in stub.List(pb.ListContentRequest(), metadata=NS)]
    assert messages == [100, 1]
    change = pb.UpdateRequest(
        info=pb.Info(digest=digests[0], labels={"x": "y"}), update_mask=FieldMask(paths=["labels.x"])
    )
    assert dict((await stub.Update(change, metadata=NS)).info.labels) == {"x": "y"}
    (message,) = [one async for one in stub.List(pb.ListContentRequest(filters=["labels.x==y"]), metadata=NS)]
    assert [one.digest for one in message.info] == digests[:1]
    await stub.Delete(pb.DeleteContentRequest(digest=digests[0]), metadata=NS)
    assert [one async for one in stub.List(pb.ListContentRequest(filters=["labels.x"]), metadata=NS)] == []


async def test_a_blob_that_lost_bytes_is_data_loss(stub: "ContentAsyncStub", wired: Wired) -> None:
    digest = await _store(stub, b"abcdef")
    path = wired.content.read_path("default", digest)
    path.chmod(0o644)
    path.write_bytes(b"abc")

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _read(stub, digest)

    assert raised.value.code() is grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("digest", ["sha256:../../x", "md5:00", "sha256:ABC", ""])
async def test_what_is_no_digest_is_refused(stub: "ContentAsyncStub", digest: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Info(pb.InfoRequest(digest=digest), metadata=NS)

    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
