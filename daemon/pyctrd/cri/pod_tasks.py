"""The first container of a pod whose runtime is a shim of another make.

Such shims take the first container of a group for the sandbox: one that makes a machine of its own for a pod makes it
then, and all keep serving until that container goes. What runs in it is a program of ours that sleeps, from a
directory: no image is needed. Its id is the pod's; containers name it in their annotations, as containerd's do.
"""

import asyncio
import json
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as shim
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import ApiError, NotFound, UnknownError
from pyctr_wire.oci import default_spec
from pyctrd.core.tasks import Status
from pyctrd.cri.container_spec import cgroup_path, pod_annotations, task_options
from pyctrd.cri.records import NAMESPACE, Pod
from pyctrd.log import Logger
from pyctrd.offload import Offload
from pyctrd.runtime.creation import available_capabilities
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.runtimes import Resolved
from pyctrd.runtime.shim_client import ShimGone
from pyctrd.runtime.tasks import Tasks
from pyctrd.sandbox import pid_one
from pyctrd.sandbox.files import SandboxFiles

_NOBODY: Final = 65534
_SCORE: Final = -998  # the last of the pod to be killed for want of memory
_SHARES: Final = 2
_SECONDS_TO_DIE: Final = 60.0
# Where the namespaces of a pod are joined, by the specification's names.
_KINDS: Final = {"user": "user", "net": "network", "ipc": "ipc", "uts": "uts", "pid": "pid"}

_log = Logger("pyctrd.cri")


class PodTasks:
    """Runs them, and tells when one ends that nobody asked to."""

    def __init__(
        self,
        tasks: Tasks,
        lifecycle: Lifecycle,
        resolve: Callable[[str, AnyMessage | None], Resolved],
        files: SandboxFiles,
        handlers: Mapping[str, str],
        threads: Offload,
        group: asyncio.TaskGroup,
    ) -> None:
        """Use these; `handlers` has the runtime of each handler, and who waits for ends runs in `group`."""
        self._tasks = tasks
        self._lifecycle = lifecycle
        self._resolve = resolve
        self._files = files
        self._handlers = handlers
        self._threads = threads
        self._group = group

    def needed(self, handler: str) -> bool:
        """Whether a pod with this handler has one. Raises FailedPrecondition for a program that is not here."""
        return bool(self._resolve(self._handlers[handler], None).shim)

    def running(self, pod: Pod) -> bool:
        """Whether the pod's runs."""
        task = self._tasks.table.find(NAMESPACE, pod.id)
        return task is not None and task.init.status is not Status.STOPPED

    async def start(self, pod: Pod) -> None:
        """Run it. Raises FailedPrecondition where it cannot be, and what the shim refuses."""
        runtime = self._handlers[pod.handler]
        program = self._resolve(runtime, None).shim
        spec = sandbox_spec(pod, self._files)
        root = await self._threads.run(self._make_root, pod, spec)
        request = shim.CreateTaskRequest(
            id=pod.id,
            rootfs=[mount_pb2.Mount(type="bind", source=str(root), options=["rbind", "rw"])],
            options=self._resolve(runtime, task_options(pod, program)).options,
        )
        try:
            await self._lifecycle.create(NAMESPACE, runtime, json.dumps(spec).encode(), request, other_shim=program)
            await self._lifecycle.start(NAMESPACE, pod.id, "")
        except ApiError as error:
            raise type(error)(f'sandbox "{pod.id}": its shim {program} does not start it: {error}') from error

    def _make_root(self, pod: Pod, spec: Mapping[str, Any]) -> Path:
        """Make the directory that is its root file system, with all places where something is mounted."""
        root = self._files.pause(pod.id)
        root.mkdir(mode=0o755)
        for mount in spec["mounts"]:
            if mount["destination"].count("/") == 1:  # the others are in one of these
                (root / mount["destination"].lstrip("/")).mkdir(mode=0o755)
        program = root / "pause"
        program.write_bytes(pid_one.program())
        program.chmod(0o555)
        return root

    def watch(self, pod: Pod, when_ended: Callable[[Pod], None]) -> None:
        """Call once it has ended by itself."""

        async def wait() -> None:
            with suppress(ApiError):  # deleted by somebody else, which is its end, too
                await self._tasks.wait(NAMESPACE, pod.id, "")
            when_ended(pod)

        self._group.create_task(wait(), name=f"end of pod {pod.id}")

    async def stop(self, pod: Pod) -> None:
        """End it and remove it, if it is there; repeatable. Raises UnknownError for one that cannot be ended."""
        task = self._tasks.table.find(NAMESPACE, pod.id)
        if task is None:
            return
        if task.init.status is not Status.STOPPED:
            with suppress(NotFound, ShimGone):
                await self._tasks.kill(NAMESPACE, shim.KillRequest(id=pod.id, signal=signal.SIGKILL, all=True))
            try:
                async with asyncio.timeout(_SECONDS_TO_DIE):
                    await self._tasks.wait(NAMESPACE, pod.id, "")
            except TimeoutError:
                raise UnknownError(f'sandbox "{pod.id}" outlives SIGKILL by {_SECONDS_TO_DIE:.0f} s') from None
        with suppress(NotFound):
            await self._lifecycle.delete(NAMESPACE, pod.id)


def sandbox_spec(pod: Pod, files: SandboxFiles) -> dict[str, Any]:
    """Return the spec of a pod's first container."""
    spec = default_spec.default_spec()
    process, linux = spec["process"], spec["linux"]
    user = 0 if pod.maps else _NOBODY  # which a user namespace need not have
    process["user"] = {"uid": user, "gid": user}
    process["args"] = ["/pause"]
    process["env"] = []
    process["capabilities"] = default_spec.capability_sets(())
    process["noNewPrivileges"] = True
    process["oomScoreAdj"] = _SCORE if "CAP_SYS_RESOURCE" in available_capabilities() else 0
    spec["root"]["readonly"] = True
    if "uts" in pod.kinds:
        spec["hostname"] = (files.folder(pod.id) / "hostname").read_text().strip()
    spec["annotations"] = pod_annotations(pod, "sandbox")
    pinned = files.namespaces(pod.id)
    joined = {_KINDS[kind]: str(pinned / kind) for kind in pod.kinds}
    linux["namespaces"] = [{"type": "mount"}, *({"type": kind, "path": path} for kind, path in joined.items())]
    if "pid" not in joined:
        linux["namespaces"].append({"type": "pid"})
    if "ipc" in joined:
        shm = {"destination": "/dev/shm", "type": "bind", "source": str(files.shm(pod.id)), "options": ["rbind", "rw"]}  # noqa: S108
        spec["mounts"] = [shm if mount["destination"] == "/dev/shm" else mount for mount in spec["mounts"]]  # noqa: S108
    linux["cgroupsPath"] = cgroup_path(pod.config.linux.cgroup_parent, pod.id)
    linux["resources"]["cpu"] = {"shares": _SHARES}
    return spec
