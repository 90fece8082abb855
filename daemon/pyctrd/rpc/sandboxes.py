"""containerd.services.sandbox.v1: the records of sandboxes, and who runs them."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import ClassVar, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.services.sandbox.v1 import sandbox_pb2 as pb
from pyctr_wire.containerd.types import metrics_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from pyctrd.core.platforms import Platform
from pyctrd.core.sandboxes import Sandbox
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import platform_to_proto
from pyctrd.rpc.convert.sandboxes import sandbox_from_proto, sandbox_to_proto
from pyctrd.rpc.convert.well_known import time_to_proto
from pyctrd.rpc.figures import added_up
from pyctrd.rpc.headers import Context, namespace_of
from pyctrd.runtime.runtimes import Runtimes
from pyctrd.runtime.table import Task
from pyctrd.sandbox.controller import SandboxController

SANDBOXER: Final = "shim"


class Stats(Protocol):
    """Who knows what tasks use."""

    async def stats(self, tasks: Iterable[Task], /) -> Sequence[tuple[Task, AnyMessage]]: ...


class SandboxStore(Protocol):
    """Where sandboxes are kept."""

    def get(self, ns: str, id: str, /) -> Sandbox: ...
    def list(self, ns: str, filters: Sequence[str], /) -> Sequence[Sandbox]: ...
    def create(self, ns: str, sandbox: Sandbox, /) -> Sandbox: ...
    def update(self, ns: str, sandbox: Sandbox, paths: Sequence[str], /) -> Sandbox: ...
    def delete(self, ns: str, id: str, /) -> None: ...


class Store:
    """Records of what groups of containers share."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Store"]

    def __init__(self, store: SandboxStore, rows: Offload) -> None:
        """Serve `store`, whose calls run in `rows`."""
        self._store = store
        self._rows = rows

    async def Create(self, request: pb.StoreCreateRequest, context: Context) -> pb.StoreCreateResponse:
        """Store a sandbox. AlreadyExists, InvalidArgument."""
        sandbox = sandbox_from_proto(request.sandbox)
        sandbox = await self._rows.run(self._store.create, namespace_of(context), sandbox)
        return pb.StoreCreateResponse(sandbox=sandbox_to_proto(sandbox))

    async def Update(self, request: pb.StoreUpdateRequest, context: Context) -> pb.StoreUpdateResponse:
        """Change the fields that are named, or all that may change. NotFound, InvalidArgument."""
        sandbox = sandbox_from_proto(request.sandbox)
        sandbox = await self._rows.run(self._store.update, namespace_of(context), sandbox, tuple(request.fields))
        return pb.StoreUpdateResponse(sandbox=sandbox_to_proto(sandbox))

    async def Delete(self, request: pb.StoreDeleteRequest, context: Context) -> pb.StoreDeleteResponse:
        """Forget a sandbox. NotFound."""
        await self._rows.run(self._store.delete, namespace_of(context), request.sandbox_id)
        return pb.StoreDeleteResponse()

    async def List(self, request: pb.StoreListRequest, context: Context) -> pb.StoreListResponse:
        """Return the sandboxes that match, sorted by id. InvalidArgument."""
        found = await self._rows.run(self._store.list, namespace_of(context), tuple(request.filters))
        return pb.StoreListResponse(list=map(sandbox_to_proto, found))

    async def Get(self, request: pb.StoreGetRequest, context: Context) -> pb.StoreGetResponse:
        """Return a sandbox. NotFound."""
        found = await self._rows.run(self._store.get, namespace_of(context), request.sandbox_id)
        return pb.StoreGetResponse(sandbox=sandbox_to_proto(found))


class Controller:
    """Runs sandboxes. Every call names who: "shim" is what there is, pods of Kubernetes are the CRI's to manage."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Controller"]

    def __init__(
        self,
        controller: SandboxController,
        store: SandboxStore,
        runtimes: Runtimes,
        tasks: Stats,
        host: Platform,
        rows: Offload,
    ) -> None:
        """Have `controller` run them, whose records are in `store`, with calls in `rows`."""
        self._controller = controller
        self._store = store
        self._runtimes = runtimes
        self._tasks = tasks
        self._host = host
        self._rows = rows

    async def Create(self, request: pb.ControllerCreateRequest, context: Context) -> pb.ControllerCreateResponse:
        """Make a sandbox. AlreadyExists, InvalidArgument, FailedPrecondition; Unimplemented with a root of its own."""
        namespace = _checked(request.sandboxer, context)
        if request.rootfs:
            raise Unimplemented(f"sandbox {request.sandbox_id} with a root file system of its own")
        if request.HasField("sandbox"):
            sandbox = sandbox_from_proto(request.sandbox)
        else:
            sandbox = await self._rows.run(self._store.get, namespace, request.sandbox_id)
        self._runtimes.resolve(sandbox.runtime_name)
        self._controller.create(namespace, request.sandbox_id, request.netns_path)
        return pb.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    async def Start(self, request: pb.ControllerStartRequest, context: Context) -> pb.ControllerStartResponse:
        """Let containers be run in it. NotFound, FailedPrecondition."""
        state = self._controller.start(_checked(request.sandboxer, context), request.sandbox_id)
        return pb.ControllerStartResponse(sandbox_id=state.id, created_at=time_to_proto(state.created_at))

    async def Platform(self, request: pb.ControllerPlatformRequest, context: Context) -> pb.ControllerPlatformResponse:
        """Return what its containers run on. NotFound."""
        self._controller.get(_checked(request.sandboxer, context), request.sandbox_id)
        return pb.ControllerPlatformResponse(platform=platform_to_proto(self._host))

    async def Stop(self, request: pb.ControllerStopRequest, context: Context) -> pb.ControllerStopResponse:
        """End all that runs in it; one that is not there is stopped. DeadlineExceeded."""
        namespace = _checked(request.sandboxer, context)
        with suppress(NotFound):
            await self._controller.stop(namespace, request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, context: Context) -> pb.ControllerWaitResponse:
        """Return when it has stopped. NotFound."""
        ended = await self._controller.wait(_checked(request.sandboxer, context), request.sandbox_id)
        return pb.ControllerWaitResponse(exit_status=ended.exit_status, exited_at=time_to_proto(ended.exited_at))

    async def Status(self, request: pb.ControllerStatusRequest, context: Context) -> pb.ControllerStatusResponse:
        """Return its state; one that is not there has ended just now, as containerd says."""
        namespace = _checked(request.sandboxer, context)
        try:
            state = self._controller.get(namespace, request.sandbox_id)
        except NotFound:
            ended_at = time_to_proto(datetime.now(UTC))
            return pb.ControllerStatusResponse(sandbox_id=request.sandbox_id, exited_at=ended_at)
        response = pb.ControllerStatusResponse(
            sandbox_id=state.id,
            state=state.name,
            created_at=time_to_proto(state.created_at),
            exited_at=None if state.stopped_at is None else time_to_proto(state.stopped_at),
        )
        if request.verbose:
            running = await self._controller.running(namespace, state.id)
            response.info["containers"] = json.dumps([task.id for task in running])
            response.info["netns"] = state.netns
        return response

    async def Shutdown(self, request: pb.ControllerShutdownRequest, context: Context) -> pb.ControllerShutdownResponse:
        """Stop it, and forget it. NotFound, DeadlineExceeded."""
        await self._controller.shut_down(_checked(request.sandboxer, context), request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(self, request: pb.ControllerMetricsRequest, context: Context) -> pb.ControllerMetricsResponse:
        """Return the figures of all that runs in it, added up. NotFound; FailedPrecondition if nothing runs."""
        namespace = _checked(request.sandboxer, context)
        self._controller.get(namespace, request.sandbox_id)
        figures = await self._tasks.stats(await self._controller.running(namespace, request.sandbox_id))
        if not figures:
            raise FailedPrecondition(f"sandbox {request.sandbox_id}: nothing in it gives metrics")
        metric = metrics_pb2.Metric(
            timestamp=time_to_proto(datetime.now(UTC)),
            id=request.sandbox_id,
            data=added_up([data for _, data in figures]),
        )
        return pb.ControllerMetricsResponse(metrics=metric)

    async def Update(self, request: pb.ControllerUpdateRequest, context: Context) -> pb.ControllerUpdateResponse:
        """Take notice of a changed record: none of it changes what runs. NotFound."""
        self._controller.get(_checked(request.sandboxer or SANDBOXER, context), request.sandbox_id)
        return pb.ControllerUpdateResponse()


def _checked(sandboxer: str, context: Context) -> str:
    """Return the namespace of a call to the one controller that there is. Raises InvalidArgument, NotFound."""
    if not sandboxer:
        raise InvalidArgument("sandbox controller can not be empty")
    if sandboxer != SANDBOXER:
        raise NotFound(f'sandbox controller "{sandboxer}"')
    return namespace_of(context)
