"""Pods' containers: made, started, stopped and removed, and what is noted of how they end.

A task that has ended is deleted as soon as its end is in the container's row: its shim is free then.
"""

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import (
    AlreadyExists,
    ApiError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
    UnknownError,
)
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.tasks import Exit, Status
from pyctrd.cri import cgroup_figures, container_spec, hugepages
from pyctrd.cri.creation import Maker, PodImage, Request
from pyctrd.cri.events import Events
from pyctrd.cri.image_volumes import FAILED, Wanted, asked_for
from pyctrd.cri.index import Index
from pyctrd.cri.records import (
    CONTAINER_STATE,
    NAMESPACE,
    ImageNames,
    Pod,
    PodContainer,
    container_extensions,
    nanoseconds,
    now,
)
from pyctrd.cri.restore import Restores, is_path
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.owner import Job, Joining, Owners
from pyctrd.runtime.runtimes import Resolved
from pyctrd.runtime.shim_client import ShimGone
from pyctrd.runtime.table import KILLED, Task
from pyctrd.runtime.tasks import Tasks

_START_ERROR: Final = 128
_STATE_MASK: Final = (f"extensions.{CONTAINER_STATE}",)
_RESOURCES_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
_SECONDS_TO_REOPEN: Final = 10.0
_SECONDS_TO_DIE: Final = 60.0

_log = Logger("pyctrd.cri")


class ContainerRows(Protocol):
    """The containers of a namespace."""

    def get(self, ns: str, container_id: str, /) -> Container: ...
    def update(self, ns: str, container: Container, mask: Sequence[str], /) -> Container: ...
    def delete(self, ns: str, container_id: str, /) -> None: ...


class Images(Protocol):
    """Where images are found."""

    async def find(self, reference: str) -> PodImage:
        """Return an image that is here and unpacked. NotFound."""

    async def saved(self, reference: str) -> str:
        """Return the digest of the archive if an image is a checkpoint, else "". NotFound."""


class Containers:
    """All containers of pods."""

    def __init__(
        self,
        index: Index,
        rows: ContainerRows,
        maker: Maker,
        images: Images,
        tasks: Tasks,
        lifecycle: Lifecycle,
        resolve: Callable[[str, AnyMessage | None], Resolved],
        events: Events,
        owners: Owners,
        threads: Offload,
        group: asyncio.TaskGroup,
        handlers: Mapping[str, str],
        restores: Restores | None,
    ) -> None:
        """Use these; `resolve` finds a runtime by its name, and who waits for ends runs in `group`.

        Without `restores` no container is made of a checkpoint.
        """
        self._index = index
        self._rows = rows
        self._maker = maker
        self._images = images
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._resolve = resolve
        self._events = events
        self._owners = owners
        self._threads = threads
        self._group = group
        self._handlers = handlers
        self._restores = restores

    async def create(self, pod: Pod, config: runtime_pb2.ContainerConfig) -> PodContainer:
        """Make a container; asked for again meanwhile, it is the same one.

        Raises InvalidArgument naming the field, AlreadyExists for a name that another has, NotFound without the image.
        """
        if not config.HasField("metadata"):
            raise InvalidArgument("container config must include metadata")
        token = config.SerializeToString(deterministic=True).hex()
        wanted = config.image.image
        saved = wanted if is_path(wanted) else await self._images.saved(wanted)
        if saved and self._restores is None:
            raise Unimplemented(
                f'image "{config.image.image}" is a checkpoint, and none is served unless the configuration says '
                "enabled = true in [checkpoint]"
            )
        if saved and pod.has_task:
            raise Unimplemented(
                f'image "{wanted}" is a checkpoint, and the pod\'s runtime handler "{pod.handler}" is a shim of another'
                " make, which restores none: use a handler without `shim`"
            )
        image = None if saved else await self._images.find(config.image.image)
        images = await self._image_volumes(config)
        target = self._target(pod, config)
        container_id = secrets.token_hex(32)
        name = PodContainer(container_id, pod, config, ImageNames(""), 0).name

        async def make(image: PodImage, checkpoint: tuple[str, int] | None = None) -> PodContainer:
            runtime, created_at = self._handlers[pod.handler], now()
            request = Request(container_id, pod, config, image, runtime, created_at, target, images, checkpoint)
            return await self._threads.run(self._maker.make, request)

        async def make_of_saved(restores: Restores) -> PodContainer:
            async with restores.read(saved) as archive:
                processes = archive.processes
                container = await make(await self._images.find(archive.image), (processes.digest, processes.size))
                try:
                    await restores.apply(archive, await self._threads.run(self._maker.rootfs, container))
                except BaseException:
                    await self._threads.run(self._maker.remove, container, self._rows.delete)
                    raise
            return container

        async def work(job: Job[PodContainer]) -> PodContainer:
            if not pod.ready:
                raise UnknownError(f'sandbox container "{pod.id}" is not running')
            for other in pod.containers.values():
                if other.name == name:
                    raise AlreadyExists(
                        f'failed to reserve container name "{name}": name "{name}" is reserved for "{other.id}"'
                    )
            if image is not None:
                container = await make(image)
            else:
                assert self._restores is not None
                container = await make_of_saved(self._restores)
            if job.give_up_if_abandoned():
                await self._threads.run(self._maker.remove, container, self._rows.delete)
                return container
            self._index.add_container(container)
            self._events.container(container, runtime_pb2.CONTAINER_CREATED_EVENT)
            return container

        return await self._owners.run(
            (NAMESPACE, f"container {name}"), "create", work, token=token, joining=Joining.SHARED
        )

    async def _image_volumes(self, config: runtime_pb2.ContainerConfig) -> list[Wanted]:
        """Find the images that are volumes, and note their ids in the configuration: so the status tells them."""
        wanted = []
        for number, mount in asked_for(config):
            try:
                image = await self._images.find(mount.image.image)
            except ApiError as error:
                raise type(error)(f"{FAILED}: {error}") from error
            mount.image.image_ref = image.names.id
            wanted.append(Wanted(number, image, mount.image_sub_path))
        return wanted

    def _target(self, pod: Pod, config: runtime_pb2.ContainerConfig) -> int:
        """Return the pid of the container whose PID namespace this one joins, 0 if it joins none."""
        options = config.linux.security_context.namespace_options
        if options.pid != image_pb2.TARGET:
            return 0
        other = self._index.container(options.target_id)
        if other.pod is not pod:
            raise InvalidArgument(
                f'container "{other.id}" (sandbox {other.pod.id}) does not belong to sandbox {pod.id}'
            )
        if other.state != runtime_pb2.CONTAINER_RUNNING:
            raise FailedPrecondition(f'container "{other.id}" is not running - in state {other.state_name}')
        return self._tasks.find(NAMESPACE, other.id).init.pid

    async def start(self, container: PodContainer) -> None:
        """Run it; asked for again meanwhile, it is the same start, which goes on when its callers have gone away.

        Raises FailedPrecondition unless it was just made, and what the runtime refuses.
        """
        if container.busy == "removing":
            raise FailedPrecondition("container is in removing state, can't be started")
        if container.state != runtime_pb2.CONTAINER_CREATED:
            raise FailedPrecondition(f"container is in {container.state_name} state")
        if not container.pod.ready:
            raise FailedPrecondition(f'sandbox container "{container.pod.id}" is not running')
        await self._shared(container, "starting", self._start)

    async def _start(self, container: PodContainer) -> None:
        try:
            row = await self._threads.run(self._rows.get, NAMESPACE, container.id)
            assert row.spec is not None
            rootfs = await self._threads.run(self._maker.rootfs, container)
            config = container.config
            other = self._resolve(row.runtime_name, None).shim
            resolved = self._resolve(row.runtime_name, container_spec.task_options(container.pod, other))
            output = container.log_uri or "attach:"
            creation = shim.CreateTaskRequest(
                id=container.id,
                rootfs=[mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in rootfs],
                terminal=config.tty,
                stdin="attach:" if config.stdin else "",
                stdout=output,
                stderr="" if config.tty else output,
                options=resolved.options,
            )
            saved = self._restores.processes(container) if self._restores is not None else None
            await self._lifecycle.create(
                NAMESPACE, row.runtime_name, row.spec.value, creation, saved, other_shim=resolved.shim
            )
            started_at = now()  # one that ends at once has not ended before
            await self._lifecycle.start(NAMESPACE, container.id, "")
        except ApiError as error:
            container.finished_at, container.exit_code = now(), _START_ERROR
            container.reason, container.message = "StartError", str(error)
            await self._note(container)
            await self._forget_task(container)
            raise
        container.started_at = started_at
        await self._note(container)
        self._events.container(container, runtime_pb2.CONTAINER_STARTED_EVENT)
        self.watch(container)

    def watch(self, container: PodContainer) -> None:
        """Note how a running container ends, once it has."""
        self._group.create_task(self._await_end(container), name=f"end of {container.id}")

    async def _await_end(self, container: PodContainer) -> None:
        try:
            counted = await self._threads.run(_counted_kills, self._tasks.find(NAMESPACE, container.id))
            ended = await self._tasks.wait_settled(NAMESPACE, container.id)
            if ended.exit_status == KILLED and await self._threads.run(counted) > 0:
                ended = replace(ended, oom_killed=True)
        except ApiError:  # somebody else has deleted the task
            container.lost(now())
        else:
            _note_exit(container, ended)
        try:
            await self._note(container)  # first: until then only the task knows how it ended
            await self._forget_task(container)
        except ApiError as error:
            _log.error("container.end_not_noted", container=container.id, error=str(error))
        container.ended.set()
        self._events.container(container, runtime_pb2.CONTAINER_STOPPED_EVENT)

    async def _forget_task(self, container: PodContainer) -> None:
        """Delete what is left of the task: afterwards its log is complete."""
        with suppress(NotFound):
            await self._lifecycle.delete(NAMESPACE, container.id)

    async def _note(self, container: PodContainer) -> None:
        async with container.noting:
            extensions = {CONTAINER_STATE: container_extensions(container)[CONTAINER_STATE]}
            changed = Container(id=container.id, extensions=extensions)
            with suppress(NotFound):
                await self._threads.run(self._rows.update, NAMESPACE, changed, _STATE_MASK)

    async def stop(self, container: PodContainer, seconds: float) -> None:
        """End it: its stop signal, once however often this is called, and after `seconds` SIGKILL. Repeatable."""
        if container.state != runtime_pb2.CONTAINER_RUNNING:
            return
        if seconds > 0:
            if container.stop_asked is None:
                container.stop_asked = (now(), seconds)
                # Not the caller's own: whoever comes after one that goes away waits for an end that was asked for.
                await asyncio.shield(asyncio.ensure_future(self._ask_to_stop(container)))
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await container.ended.wait()
                    return
        await self._signal(container, signal.SIGKILL)
        try:
            async with asyncio.timeout(_SECONDS_TO_DIE):
                await container.ended.wait()
        except TimeoutError:
            raise UnknownError(f'container "{container.id}" outlives SIGKILL by {_SECONDS_TO_DIE:.0f} s') from None

    async def _ask_to_stop(self, container: PodContainer) -> None:
        await self._signal(container, container.stop_signal)
        await self._note(container)  # afterwards: a crash in between may have the signal sent twice, not never

    async def _stop_on(self, container: PodContainer, asked_at: int, seconds: float) -> None:
        """Go on with a stop that the end of an earlier daemon has cut off: the rest of its grace, then SIGKILL."""
        rest = min(max(0.0, seconds - (now() - asked_at) / 1e9), seconds)  # however the clock was set meanwhile
        try:
            await self.stop(container, rest)
        except ApiError as error:
            _log.error("container.not_stopped", container=container.id, error=str(error))

    async def _signal(self, container: PodContainer, number: int) -> None:
        everybody = number == signal.SIGKILL
        with suppress(NotFound, ShimGone):  # a lost shim's container is being ended
            await self._tasks.kill(NAMESPACE, shim.KillRequest(id=container.id, signal=number, all=everybody))

    async def remove(self, container: PodContainer) -> None:
        """Remove it, by force if it runs; asked for again meanwhile, it is the same removal.

        Raises FailedPrecondition while it starts.
        """
        if container.busy == "starting":
            raise FailedPrecondition(
                f'failed to set removing state for container "{container.id}": container is in starting state, '
                "can't be removed"
            )
        await self._shared(container, "removing", self._remove)

    async def _remove(self, container: PodContainer) -> None:
        await self.stop(container, 0)
        await self._forget_task(container)
        await self._threads.run(self._maker.remove, container, self._rows.delete)
        self._index.remove_container(container)
        self._events.container(container, runtime_pb2.CONTAINER_DELETED_EVENT)

    async def _shared(
        self, container: PodContainer, doing: str, work: Callable[[PodContainer], Awaitable[None]]
    ) -> None:
        """Do something, once for all who ask for it while it is under way, whoever of them goes away."""
        container.busy = doing

        async def job(_: Job[None]) -> None:
            try:
                await work(container)
            finally:
                container.busy = ""

        await self._owners.run((NAMESPACE, f"container {container.name}"), doing, job, joining=Joining.SHARED)

    async def _owned(self, container: PodContainer, name: str, work: Callable[[PodContainer], Awaitable[None]]) -> None:
        async def job(_: Job[None]) -> None:
            await work(container)

        await self._owners.run((NAMESPACE, f"container {container.name}"), name, job)

    async def update(self, container: PodContainer, limits: image_pb2.LinuxContainerResources) -> None:
        """Change limits, now if it runs and from its start on; what is zero stays. Raises FailedPrecondition."""

        async def work(container: PodContainer) -> None:
            if container.finished_at:
                raise FailedPrecondition(f"container is in {container.state_name} state")
            row = await self._threads.run(self._rows.get, NAMESPACE, container.id)
            assert row.spec is not None
            changed = container_spec.resources(limits, hugepages=hugepages.can_be_limited())
            spec = json.loads(row.spec.value)
            for name, values in changed.items():
                spec["linux"]["resources"][name] = container_spec.merged(spec["linux"]["resources"].get(name), values)
            if container.started_at and changed:
                update = shim.UpdateTaskRequest(
                    id=container.id,
                    resources=AnyMessage(type_url=_RESOURCES_URL, value=json.dumps(changed).encode()),
                )
                await self._tasks.update(NAMESPACE, update)
            container.config.linux.resources.MergeFrom(limits)
            async with container.noting:
                new = Container(
                    id=container.id,
                    spec=AnyValue(row.spec.type_url, json.dumps(spec).encode()),
                    extensions={**row.extensions, **container_extensions(container)},
                )
                await self._threads.run(self._rows.update, NAMESPACE, new, ("spec", "extensions"))

        await self._owned(container, "update", work)

    async def info(self, container: PodContainer) -> dict[str, Any]:
        """Return what else there is to know of a container, for people."""
        row = await self._threads.run(self._rows.get, NAMESPACE, container.id)
        task = self._tasks.table.find(NAMESPACE, container.id)
        return {
            "sandboxID": container.pod.id,
            "pid": task.init.pid if task is not None else 0,
            "removing": container.busy == "removing",
            "snapshotKey": row.snapshot_key,
            "snapshotter": row.snapshotter,
            "runtimeType": row.runtime_name,
            "config": MessageToDict(container.config, preserving_proto_field_name=True),
            "runtimeSpec": json.loads(row.spec.value) if row.spec is not None else {},
        }

    async def reopen_log(self, container: PodContainer) -> None:
        """Have the log opened anew at its path. Raises FailedPrecondition unless the container runs, UnknownError."""
        if container.state != runtime_pb2.CONTAINER_RUNNING:
            raise FailedPrecondition("container is not running")
        address = await self._threads.run(self._tasks.find(NAMESPACE, container.id).bundle.attachment)
        if address is None or not container.log_path:
            return
        with suppress(ProcessLookupError):
            os.kill(address.pid, signal.SIGUSR1)
        # A signal has no answer. The shim opens the file first of all; one that was not renamed is there already.
        if not await self._threads.run(_appears, container.log_path):
            raise UnknownError(f"the shim did not open {container.log_path} anew")

    async def recover(self, container: PodContainer) -> None:
        """After a start of the daemon: watch what runs, and note how others have ended meanwhile."""
        task = self._tasks.table.find(NAMESPACE, container.id)
        if container.finished_at:
            if task is not None:
                await self._forget_task(container)
            return
        if task is None:
            if container.started_at:
                container.lost(now())
                await self._note(container)
            return
        if task.init.status is Status.CREATED:
            await self._forget_task(container)  # its start was cut off: it can be asked for again
            return
        if not container.started_at:
            container.started_at = container.created_at
            await self._note(container)
        self.watch(container)
        if container.stop_asked is not None:
            self._group.create_task(self._stop_on(container, *container.stop_asked), name=f"stop of {container.id}")


def _note_exit(container: PodContainer, ended: Exit) -> None:
    container.finished_at = nanoseconds(ended.exited_at)
    container.exit_code = ended.exit_status
    if ended.oom_killed:
        container.reason = "OOMKilled"
    elif not ended.is_known:
        container.reason = "Unknown"
    else:
        container.reason = "Error" if ended.exit_status else "Completed"


def _counted_kills(task: Task) -> Callable[[], int]:
    """Return what looks how many processes of a container were killed for want of memory, until the task is deleted.

    Only for shims of other makes, which may tell too late, or never.
    """
    where = None
    if task.bundle.manifest.shim:
        with suppress(OSError):  # it has ended
            where = cgroup_figures.directories_of(task.init.pid)

    def count() -> int:
        try:
            return cgroup_figures.oom_kills(where) if where is not None else 0
        except OSError:  # systemd removes a cgroup with its last process: then only the shim knows
            return 0

    return count


def _appears(path: str) -> bool:
    """Wait for a file, a limited time."""
    deadline = time.monotonic() + _SECONDS_TO_REOPEN
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True
