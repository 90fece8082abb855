"""containerd.services.containers.v1, over the wire."""

from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask

from pyctr_wire.containerd.services.containers.v1 import containers_pb2 as pb
from pyctr_wire.containerd.services.containers.v1.containers_pb2_grpc import ContainersStub
from support.metadata_services import Wired

if TYPE_CHECKING:  # it is a type only
    from pyctr_wire.containerd.services.containers.v1.containers_pb2_grpc import ContainersAsyncStub

NS = (("containerd-namespace", "default"),)
SPEC = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"b": 1,  "a": 2}')


def _container(id: str, **fields: object) -> pb.Container:
    runtime = pb.Container.Runtime(name="io.containerd.runc.v2")
    return pb.Container(**{"id": id, "runtime": runtime, "spec": SPEC, **fields})  # type: ignore[arg-type]


@pytest.fixture
async def stub(channel: grpc.aio.Channel) -> "ContainersAsyncStub":
    return ContainersStub(channel)


async def _create(stub: "ContainersAsyncStub", id: str, **fields: object) -> pb.Container:
    request = pb.CreateContainerRequest(container=_container(id, **fields))
    return (await stub.Create(request, metadata=NS)).container


async def test_what_is_stored_comes_back_byte_for_byte(stub: "ContainersAsyncStub") -> None:
    sent = _container(
        "c1",
        labels={"k": "v", "gone": ""},
        image="busybox",
        runtime=pb.Container.Runtime(name="r", options=Any(type_url="unknown.Type", value=b"\xff\x00")),
        snapshotter="overlayfs",
        snapshot_key="c1",
        extensions={"e": Any(type_url="x", value=b"\x01")},
        sandbox="s1",
    )
    created = (await stub.Create(pb.CreateContainerRequest(container=sent), metadata=NS)).container

    assert created.created_at == created.updated_at
    assert created.created_at.seconds > 0
    sent.created_at.CopyFrom(created.created_at)
    sent.updated_at.CopyFrom(created.updated_at)
    del sent.labels["gone"]
    assert created == sent
    assert (await stub.Get(pb.GetContainerRequest(id="c1"), metadata=NS)).container == sent
    assert list((await stub.List(pb.ListContainersRequest(), metadata=NS)).containers) == [sent]
    assert [one.container async for one in stub.ListStream(pb.ListContainersRequest(), metadata=NS)] == [sent]


async def test_options_that_are_empty_are_not_options_that_are_missing(stub: "ContainersAsyncStub") -> None:
    with_options = await _create(stub, "c1", runtime=pb.Container.Runtime(name="r", options=Any()))
    without = await _create(stub, "c2")

    assert with_options.runtime.HasField("options")
    assert not without.runtime.HasField("options")


async def test_a_list_is_sorted_and_filtered(stub: "ContainersAsyncStub") -> None:
    for id in ("b", "a", "c"):
        await _create(stub, id, image=f"image-{id}", labels={"x.y": id})

    async def ids(*filters: str) -> list[str]:
        found = await stub.List(pb.ListContainersRequest(filters=filters), metadata=NS)
        return [one.id for one in found.containers]

    assert await ids() == ["a", "b", "c"]
    assert await ids("id==b", "image==image-c") == ["b", "c"]
    assert await ids("labels.x.y==a,runtime.name~=runc") == ["a"]
    assert await ids('labels."x.y"!=a') == ["b", "c"]


@pytest.mark.parametrize(
    ("call", "request_", "code", "details"),
    [
        (
            "Get",
            pb.GetContainerRequest(id="no"),
            grpc.StatusCode.NOT_FOUND,
            'container "no" in namespace "default": not found',
        ),
        (
            "Create",
            pb.CreateContainerRequest(container=_container("taken")),
            grpc.StatusCode.ALREADY_EXISTS,
            'container "taken": already exists',
        ),
        (
            "Update",
            pb.UpdateContainerRequest(container=_container("taken", snapshotter="other")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "container.Snapshotter field is immutable: invalid argument",
        ),
        (
            "Delete",
            pb.DeleteContainerRequest(id="no"),
            grpc.StatusCode.NOT_FOUND,
            'container "no" in namespace "default": not found',
        ),
    ],
)
async def test_errors_have_containerds_codes_and_words(
    stub: "ContainersAsyncStub", call: str, request_: object, code: grpc.StatusCode, details: str
) -> None:
    await _create(stub, "taken")

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await getattr(stub, call)(request_, metadata=NS)

    assert (raised.value.code(), raised.value.details()) == (code, details)


@pytest.mark.parametrize(
    ("metadata", "code", "details"),
    [
        ((), grpc.StatusCode.FAILED_PRECONDITION, "namespace is required: failed precondition"),
        ((("containerd-namespace", ""),), grpc.StatusCode.FAILED_PRECONDITION, "namespace is required"),
        ((("containerd-namespace", "a--b"),), grpc.StatusCode.INVALID_ARGUMENT, "namespace validation: "),
    ],
)
async def test_a_namespace_is_required(
    stub: "ContainersAsyncStub", metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode, details: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.List(pb.ListContainersRequest(), metadata=metadata)

    assert raised.value.code() is code
    assert str(raised.value.details()).startswith(details)


async def test_the_first_namespace_counts(stub: "ContainersAsyncStub") -> None:
    await _create(stub, "c1")

    twice = (*NS, ("containerd-namespace", "other"))

    assert len((await stub.List(pb.ListContainersRequest(), metadata=twice)).containers) == 1


async def test_a_mask_changes_only_what_it_names(stub: "ContainersAsyncStub") -> None:
    await _create(stub, "c1", image="old", labels={"a": "1", "b.c": "2"})
    change = _container("c1", image="new", labels={"b.c": "3"})

    request = pb.UpdateContainerRequest(container=change, update_mask=FieldMask(paths=["labels.b.c"]))
    updated = (await stub.Update(request, metadata=NS)).container

    assert (updated.image, dict(updated.labels)) == ("old", {"a": "1", "b.c": "3"})
    assert (await stub.Get(pb.GetContainerRequest(id="c1"), metadata=NS)).container == updated


async def test_reads_after_the_first_come_from_memory_until_something_changes(
    stub: "ContainersAsyncStub", wired: Wired
) -> None:
    for id in ("a", "b"):
        await _create(stub, id)
    await stub.List(pb.ListContainersRequest(), metadata=NS)
    before = wired.container_rows.reads

    for _ in range(3):
        await stub.List(pb.ListContainersRequest(filters=["id==a"]), metadata=NS)
        await stub.Get(pb.GetContainerRequest(id="b"), metadata=NS)

    assert wired.container_rows.reads == before
    await stub.Update(pb.UpdateContainerRequest(container=_container("b", image="new")), metadata=NS)
    found = await stub.List(pb.ListContainersRequest(), metadata=NS)
    assert [one.image for one in found.containers] == ["", "new"]
    await stub.Delete(pb.DeleteContainerRequest(id="a"), metadata=NS)
    found = await stub.List(pb.ListContainersRequest(), metadata=NS)
    assert [one.id for one in found.containers] == ["b"]
    assert wired.container_rows.reads == before + 2  # one for the update, one to see that `a` is gone
