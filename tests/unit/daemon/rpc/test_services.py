"""The smaller services, over the wire."""

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from pyctr_wire.containerd.events import namespace_pb2 as namespace_events
from pyctr_wire.containerd.services.events.v1 import events_pb2
from pyctr_wire.containerd.services.events.v1.events_pb2_grpc import EventsStub
from pyctr_wire.containerd.services.images.v1 import images_pb2
from pyctr_wire.containerd.services.images.v1.images_pb2_grpc import ImagesStub
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2
from pyctr_wire.containerd.services.introspection.v1.introspection_pb2_grpc import IntrospectionStub
from pyctr_wire.containerd.services.leases.v1 import leases_pb2
from pyctr_wire.containerd.services.leases.v1.leases_pb2_grpc import LeasesStub
from pyctr_wire.containerd.services.mounts.v1 import mounts_pb2
from pyctr_wire.containerd.services.mounts.v1.mounts_pb2_grpc import MountsStub
from pyctr_wire.containerd.services.namespaces.v1 import namespace_pb2
from pyctr_wire.containerd.services.namespaces.v1.namespace_pb2_grpc import NamespacesStub
from pyctr_wire.containerd.services.sandbox.v1 import sandbox_pb2 as store_pb2
from pyctr_wire.containerd.services.sandbox.v1.sandbox_pb2_grpc import StoreStub
from pyctr_wire.containerd.services.snapshots.v1 import snapshots_pb2
from pyctr_wire.containerd.services.snapshots.v1.snapshots_pb2_grpc import SnapshotsStub
from pyctr_wire.containerd.services.version.v1.version_pb2_grpc import VersionStub
from pyctr_wire.containerd.types import descriptor_pb2, event_pb2, mount_pb2, sandbox_pb2
from pyctr_wire.containerd.types.introspection_pb2 import RuntimeRequest
from pyctr_wire.health.v1 import health_pb2
from pyctr_wire.health.v1.health_pb2_grpc import HealthStub
from pyctrd.runtime.runtime_versions import Warned
from support.metadata_services import Wired

NS = (("containerd-namespace", "default"),)
DIGEST = f"sha256:{'a' * 64}"
OTHER_DIGEST = f"sha256:{'b' * 64}"


async def _fails(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), str(raised.value.details())


async def test_the_version_is_one_that_clients_can_parse(channel: grpc.aio.Channel) -> None:
    answer = await VersionStub(channel).Version(Empty())

    assert answer.version == "v2.3.4"
    assert answer.revision.startswith("pyctr-")


async def test_health_is_known_for_the_whole_and_each_service(channel: grpc.aio.Channel) -> None:
    stub = HealthStub(channel)
    for service in ("", "containerd.services.version.v1.Version", "grpc.health.v1.Health"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    code, _ = await _fails(stub.Check(health_pb2.HealthCheckRequest(service="no.Such")))
    assert code is grpc.StatusCode.NOT_FOUND

    watch = stub.Watch(health_pb2.HealthCheckRequest(service="no.Such"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_a_namespace_that_is_not_there_has_no_labels(channel: grpc.aio.Channel) -> None:
    """Every client asks before its first write; NotFound would break them all."""
    answer = await NamespacesStub(channel).Get(namespace_pb2.GetNamespaceRequest(name="nowhere"))

    assert answer.namespace == namespace_pb2.Namespace(name="nowhere")


async def test_namespaces_come_and_go(channel: grpc.aio.Channel) -> None:
    stub = NamespacesStub(channel)
    namespace = namespace_pb2.Namespace(name="n1", labels={"a": "1"})
    create = namespace_pb2.CreateNamespaceRequest(namespace=namespace)

    assert (await stub.Create(create)).namespace == namespace
    assert await _fails(stub.Create(create)) == (
        grpc.StatusCode.ALREADY_EXISTS,
        'namespace "n1": already exists',
    )
    change = namespace_pb2.UpdateNamespaceRequest(
        namespace=namespace_pb2.Namespace(name="n1", labels={"b": "2"}), update_mask=FieldMask(paths=["labels.b"])
    )
    assert dict((await stub.Update(change)).namespace.labels) == {"a": "1", "b": "2"}
    images = ImagesStub(channel)
    await images.Create(_create_image("i"), metadata=(("containerd-namespace", "n1"),))
    code, details = await _fails(stub.Delete(namespace_pb2.DeleteNamespaceRequest(name="n1")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == 'namespace "n1" must be empty, but it still has images: failed precondition'
    await images.Delete(images_pb2.DeleteImageRequest(name="i"), metadata=(("containerd-namespace", "n1"),))
    await stub.Delete(namespace_pb2.DeleteNamespaceRequest(name="n1"))
    code, _ = await _fails(stub.Delete(namespace_pb2.DeleteNamespaceRequest(name="n1")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert list((await stub.List(namespace_pb2.ListNamespacesRequest())).namespaces) == []


def _create_image(name: str, **fields: Any) -> images_pb2.CreateImageRequest:
    target = descriptor_pb2.Descriptor(media_type="m", digest=DIGEST, size=3, annotations={"x": "y"})
    return images_pb2.CreateImageRequest(image=images_pb2.Image(name=name, target=target), **fields)


async def test_images_are_named_updated_and_deleted_with_their_garbage(channel: grpc.aio.Channel, wired: Wired) -> None:
    stub = ImagesStub(channel)
    created = (await stub.Create(_create_image("b", source_date_epoch=Timestamp(seconds=5)), metadata=NS)).image
    await stub.Create(_create_image("a"), metadata=NS)

    assert created.created_at.seconds == 5
    assert created.target.annotations == {"x": "y"}
    assert [one.name for one in (await stub.List(images_pb2.ListImagesRequest(), metadata=NS)).images] == ["a", "b"]
    found = await stub.List(images_pb2.ListImagesRequest(filters=[f"target.digest=={DIGEST},name~=b"]), metadata=NS)
    assert list(found.images) == [created]
    assert (await stub.Get(images_pb2.GetImageRequest(name="b"), metadata=NS)).image == created
    assert await _fails(stub.Get(images_pb2.GetImageRequest(name="no"), metadata=NS)) == (
        grpc.StatusCode.NOT_FOUND,
        'image "no": not found',
    )
    change = images_pb2.UpdateImageRequest(
        image=images_pb2.Image(name="b", labels={"k": "v"}), update_mask=FieldMask(paths=["labels"])
    )
    assert (await stub.Update(change, metadata=NS)).image.target == created.target

    other = images_pb2.DeleteImageRequest(name="b", target=descriptor_pb2.Descriptor(digest=OTHER_DIGEST))
    assert await _fails(stub.Delete(other, metadata=NS)) == (
        grpc.StatusCode.NOT_FOUND,
        f'image "b" has target {DIGEST}, not {OTHER_DIGEST}: not found',
    )
    await stub.Delete(images_pb2.DeleteImageRequest(name="a"), metadata=NS)
    assert wired.collections == 0
    same = images_pb2.DeleteImageRequest(name="b", target=descriptor_pb2.Descriptor(digest=DIGEST), sync=True)
    await stub.Delete(same, metadata=NS)
    assert wired.collections == 1


async def test_leases_hold_resources_and_are_deleted_with_their_garbage(
    channel: grpc.aio.Channel, wired: Wired
) -> None:
    stub = LeasesStub(channel)
    lease = (await stub.Create(leases_pb2.CreateRequest(labels={"x": "y"}), metadata=NS)).lease

    assert lease.id
    code, _ = await _fails(stub.Create(leases_pb2.CreateRequest(id=lease.id), metadata=NS))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    resource = leases_pb2.Resource(id="key", type="snapshots/overlayfs")
    for _ in range(2):  # twice is fine
        await stub.AddResource(leases_pb2.AddResourceRequest(id=lease.id, resource=resource), metadata=NS)
    held = await stub.ListResources(leases_pb2.ListResourcesRequest(id=lease.id), metadata=NS)
    assert list(held.resources) == [resource]
    unknown = leases_pb2.AddResourceRequest(id=lease.id, resource=leases_pb2.Resource(id="x", type="wood"))
    assert await _fails(stub.AddResource(unknown, metadata=NS)) == (
        grpc.StatusCode.UNIMPLEMENTED,
        "resource type wood not supported yet: not implemented",
    )
    for _ in range(2):
        await stub.DeleteResource(leases_pb2.DeleteResourceRequest(id=lease.id, resource=resource), metadata=NS)
    assert list((await stub.List(leases_pb2.ListRequest(filters=["labels.x==y"]), metadata=NS)).leases) == [lease]
    await stub.Delete(leases_pb2.DeleteRequest(id=lease.id, sync=True), metadata=NS)
    assert wired.collections == 1
    code, _ = await _fails(stub.Delete(leases_pb2.DeleteRequest(id=lease.id), metadata=NS))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_sandboxes_are_stored_as_they_are(channel: grpc.aio.Channel) -> None:
    stub = StoreStub(channel)
    sent = sandbox_pb2.Sandbox(sandbox_id="s1", sandboxer="shim", labels={"a": "1"})
    sent.runtime.name = "io.containerd.runc.v2"
    for message in (sent.runtime.options, sent.spec, sent.extensions["x"]):
        message.CopyFrom(AnyMessage(type_url="url", value=b"bytes"))

    created = (await stub.Create(store_pb2.StoreCreateRequest(sandbox=sent), metadata=NS)).sandbox

    received = sandbox_pb2.Sandbox.FromString(created.SerializeToString())
    for name in ("created_at", "updated_at"):
        assert received.HasField(name)
        received.ClearField(name)
    assert received == sent
    assert (await stub.Get(store_pb2.StoreGetRequest(sandbox_id="s1"), metadata=NS)).sandbox == created
    assert list((await stub.List(store_pb2.StoreListRequest(filters=["id==s1"]), metadata=NS)).list) == [created]
    sent.labels["a"] = "2"
    update = store_pb2.StoreUpdateRequest(sandbox=sent, fields=["labels.a"])
    assert dict((await stub.Update(update, metadata=NS)).sandbox.labels) == {"a": "2"}
    await stub.Delete(store_pb2.StoreDeleteRequest(sandbox_id="s1"), metadata=NS)
    code, _ = await _fails(stub.Get(store_pb2.StoreGetRequest(sandbox_id="s1"), metadata=NS))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_what_is_prepared_under_a_lease_belongs_to_it(channel: grpc.aio.Channel) -> None:
    leases, snapshots = LeasesStub(channel), SnapshotsStub(channel)
    lease = (await leases.Create(leases_pb2.CreateRequest(id="l1"), metadata=NS)).lease
    with_lease = (*NS, ("containerd-lease", lease.id))

    async def held() -> list[str]:
        resources = await leases.ListResources(leases_pb2.ListResourcesRequest(id="l1"), metadata=NS)
        return [f"{one.type} {one.id}" for one in resources.resources]

    prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter="overlayfs", key="k")
    await snapshots.Prepare(prepare, metadata=with_lease)
    assert await held() == ["snapshots/overlayfs k"]
    commit = snapshots_pb2.CommitSnapshotRequest(snapshotter="overlayfs", key="k", name="n")
    await snapshots.Commit(commit, metadata=with_lease)
    assert await held() == ["snapshots/overlayfs n"]
    nowhere = (*NS, ("containerd-lease", "nowhere"))
    assert await _fails(snapshots.Prepare(prepare, metadata=nowhere)) == (
        grpc.StatusCode.NOT_FOUND,
        "lease does not exist: not found",
    )


async def test_snapshots_live_as_unpackers_expect(channel: grpc.aio.Channel) -> None:
    stub = SnapshotsStub(channel)

    def on(request: type[Any], **fields: Any) -> Any:
        return request(snapshotter="overlayfs", **fields)

    mounts = (
        await stub.Prepare(on(snapshots_pb2.PrepareSnapshotRequest, key="k", labels={"a": "b"}), metadata=NS)
    ).mounts
    assert [(one.type, list(one.options)) for one in mounts] == [("bind", ["rw", "rbind"])]
    assert (await stub.Mounts(on(snapshots_pb2.MountsRequest, key="k"), metadata=NS)).mounts == mounts
    await stub.Commit(on(snapshots_pb2.CommitSnapshotRequest, key="k", name="base", labels={"c": "d"}), metadata=NS)
    info = (await stub.Stat(on(snapshots_pb2.StatSnapshotRequest, key="base"), metadata=NS)).info
    assert (info.kind, dict(info.labels)) == (snapshots_pb2.COMMITTED, {"c": "d"})
    again = on(snapshots_pb2.PrepareSnapshotRequest, key="k2", labels={"containerd.io/snapshot.ref": "base"})
    assert await _fails(stub.Prepare(again, metadata=NS)) == (
        grpc.StatusCode.ALREADY_EXISTS,
        'target snapshot "base": already exists',
    )
    await stub.View(on(snapshots_pb2.ViewSnapshotRequest, key="v", parent="base"), metadata=NS)
    code, details = await _fails(stub.Remove(on(snapshots_pb2.RemoveSnapshotRequest, key="base"), metadata=NS))
    assert (code, details) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "cannot remove snapshot with child: failed precondition",
    )
    change = on(
        snapshots_pb2.UpdateSnapshotRequest,
        info=snapshots_pb2.Info(name="base", labels={"e": "f"}),
        update_mask=FieldMask(paths=["labels.e"]),
    )
    assert dict((await stub.Update(change, metadata=NS)).info.labels) == {"c": "d", "e": "f"}
    listed = [
        one async for one in stub.List(on(snapshots_pb2.ListSnapshotsRequest, filters=["kind==view"]), metadata=NS)
    ]
    assert [(one.name, one.parent) for message in listed for one in message.info] == [("v", "base")]
    usage = await stub.Usage(on(snapshots_pb2.UsageRequest, key="base"), metadata=NS)
    assert usage.inodes >= 1
    await stub.Remove(on(snapshots_pb2.RemoveSnapshotRequest, key="v"), metadata=NS)
    await stub.Remove(on(snapshots_pb2.RemoveSnapshotRequest, key="base"), metadata=NS)
    await stub.Cleanup(on(snapshots_pb2.CleanupRequest), metadata=NS)


@pytest.mark.parametrize(
    ("snapshotter", "details"),
    [("", "snapshotter argument missing: invalid argument"), ("zfs", "snapshotter not loaded: zfs: invalid argument")],
)
async def test_a_snapshotter_must_be_named(channel: grpc.aio.Channel, snapshotter: str, details: str) -> None:
    stat = snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key="k")

    assert await _fails(SnapshotsStub(channel).Stat(stat, metadata=NS)) == (grpc.StatusCode.INVALID_ARGUMENT, details)


async def test_a_subscriber_hears_of_what_it_does_next(channel: grpc.aio.Channel) -> None:
    """The headers say that the subscription is there."""
    stream = EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(filters=["topic~=|^/namespaces/|"]), timeout=30)
    await stream.initial_metadata()

    await ImagesStub(channel).Create(_create_image("i"), metadata=NS)  # filtered out
    await NamespacesStub(channel).Create(
        namespace_pb2.CreateNamespaceRequest(namespace=namespace_pb2.Namespace(name="n1"))
    )

    envelope = await stream.read()
    assert (envelope.namespace, envelope.topic) == ("n1", "/namespaces/create")
    assert envelope.event.type_url == "containerd.events.NamespaceCreate"
    assert namespace_events.NamespaceCreate.FromString(envelope.event.value).name == "n1"
    stream.cancel()


async def test_events_of_others_are_passed_on_as_they_are(channel: grpc.aio.Channel) -> None:
    stub = EventsStub(channel)
    stream = stub.Subscribe(events_pb2.SubscribeRequest(), timeout=30)
    await stream.initial_metadata()
    event = AnyMessage(type_url="some.Type", value=b"\xff")
    forwarded = event_pb2.Envelope(timestamp=Timestamp(seconds=7), namespace="x", topic="/a/b", event=event)

    await stub.Publish(events_pb2.PublishRequest(topic="/c", event=event), metadata=NS)
    await stub.Forward(events_pb2.ForwardRequest(envelope=forwarded))

    published = await stream.read()
    assert (published.namespace, published.topic, published.event) == ("default", "/c", event)
    assert published.timestamp.seconds > 1_700_000_000
    assert await stream.read() == forwarded
    stream.cancel()


@pytest.mark.parametrize(
    ("envelope", "details"),
    [
        ({"namespace": "x", "topic": "/a"}, "timestamp must be set on forwarded event"),
        ({"namespace": "", "topic": "/a", "timestamp": Timestamp(seconds=1)}, "namespace"),
        ({"namespace": "x", "topic": "a", "timestamp": Timestamp(seconds=1)}, 'topic "a" must start with "/"'),
    ],
)
async def test_malformed_envelopes_are_refused(
    channel: grpc.aio.Channel, envelope: dict[str, Any], details: str
) -> None:
    request = events_pb2.ForwardRequest(envelope=event_pb2.Envelope(**envelope))

    code, text = await _fails(EventsStub(channel).Forward(request))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details in text


async def test_a_bad_filter_ends_a_subscription_with_words_that_clients_know(channel: grpc.aio.Channel) -> None:
    stream = EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(filters=["=="]), timeout=30)

    code, details = await _fails(stream.read())

    assert code is grpc.StatusCode.UNKNOWN
    assert details.startswith("subscription error: failed parsing subscription filters: filters: parse error")


async def test_a_cancelled_subscription_leaves_the_exchange(channel: grpc.aio.Channel, wired: Wired) -> None:
    stream = EventsStub(channel).Subscribe(events_pb2.SubscribeRequest())
    await stream.initial_metadata()
    assert len(wired.exchange._subscriptions) == 1

    stream.cancel()

    async with asyncio.timeout(30):
        while wired.exchange._subscriptions:
            await asyncio.sleep(0)


async def test_introspection_lists_what_clients_look_for(channel: grpc.aio.Channel, wired: Wired) -> None:
    stub = IntrospectionStub(channel)

    async def found(*filters: str) -> list[introspection_pb2.Plugin]:
        return list((await stub.Plugins(introspection_pb2.PluginsRequest(filters=filters))).plugins)

    (overlay,) = await found("type==io.containerd.snapshotter.v1, id==overlayfs")
    assert [(one.os, one.architecture) for one in overlay.platforms] == [("linux", "amd64")]
    assert overlay.exports == {"root": str(wired.snapshots.roots()["overlayfs"])}
    assert not overlay.HasField("init_err")
    assert len(await found("type==io.containerd.snapshotter.v1")) == 2
    (runtime,) = await found("type==io.containerd.runtime.v2")
    assert runtime.platforms
    assert {one.id for one in await found("type==io.containerd.grpc.v1")} >= {"containers", "healthcheck", "version"}
    (restart,) = await found("id==restart")
    assert list(restart.capabilities) == ["no", "always", "on-failure", "unless-stopped"]
    assert len(await found("type~=metadata", "id==exchange")) == 2


async def test_introspection_says_who_serves(channel: grpc.aio.Channel) -> None:
    stub = IntrospectionStub(channel)

    server = await stub.Server(Empty())
    assert (server.uuid, server.pid) == ("u-u", os.getpid())
    assert server.pidns == os.stat("/proc/self/ns/pid").st_ino
    one = introspection_pb2.PluginInfoRequest(type="io.containerd.gc.v1", id="scheduler")
    assert (await stub.PluginInfo(one)).plugin.id == "scheduler"
    code, _ = await _fails(stub.PluginInfo(introspection_pb2.PluginInfoRequest(type="x", id="y")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_runtimes_that_should_be_replaced_are_told(channel: grpc.aio.Channel, wired: Wired) -> None:
    """As deprecations, which containerd's clients show."""
    stub = IntrospectionStub(channel)
    assert not (await stub.Server(Empty())).deprecations
    wired.warned.append(Warned("/x/runc", "it is old", datetime(2026, 1, 2, tzinfo=UTC)))
    (told,) = (await stub.Server(Empty())).deprecations
    assert (told.message, told.last_occurrence.ToDatetime(UTC).year) == ("it is old", 2026)


async def test_a_runtime_says_what_it_can_do(channel: grpc.aio.Channel, wired: Wired) -> None:
    stub = IntrospectionStub(channel)

    async def info(request: Message) -> introspection_pb2.PluginInfoResponse:
        options = AnyMessage(type_url=request.DESCRIPTOR.full_name, value=request.SerializeToString())
        plugin = introspection_pb2.PluginInfoRequest(type="io.containerd.runtime.v2", id="task", options=options)
        return await stub.PluginInfo(plugin)

    options = AnyMessage(type_url="containerd.runc.v1.Options", value=b"")
    found = await info(RuntimeRequest(runtime_path="io.containerd.runc.v2", options=options))
    assert (found.extra.type_url, found.extra.value) == ("containerd.types.RuntimeInfo", b"info")
    assert wired.runtime_options == [options.SerializeToString()]
    code, _ = await _fails(info(RuntimeRequest(runtime_path="io.containerd.kata.v2")))
    assert code is grpc.StatusCode.NOT_FOUND
    code, _ = await _fails(info(Timestamp()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_plain_mounts_are_not_activated_but_used_as_they_are(channel: grpc.aio.Channel) -> None:
    """Clients mount by themselves on exactly this code."""
    stub = MountsStub(channel)
    activate = mounts_pb2.ActivateRequest(name="m", mounts=[mount_pb2.Mount(type="overlay")])

    code, details = await _fails(stub.Activate(activate, metadata=NS))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert details.endswith(": not implemented")
    code, _ = await _fails(stub.Deactivate(mounts_pb2.DeactivateRequest(name="m"), metadata=NS))
    assert code is grpc.StatusCode.NOT_FOUND
    code, _ = await _fails(stub.Info(mounts_pb2.InfoRequest(name="m"), metadata=NS))
    assert code is grpc.StatusCode.NOT_FOUND
    code, _ = await _fails(stub.Update(mounts_pb2.UpdateRequest(), metadata=NS))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert [one async for one in stub.List(mounts_pb2.ListRequest(), metadata=NS)] == []
