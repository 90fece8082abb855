"""Shim processes: start one, find it again, end it, and clean up after one that was killed."""

import asyncio
import hashlib
import os
import signal
import socket
import sys
from typing import Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from pyctr_wire.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2
from pyctr_wire.errors import ApiError, Unavailable, UnknownError
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle
from pyctrd.runtime.other_shims import OtherShims
from pyctrd.runtime.other_streams import OtherStreams
from pyctrd.runtime.programs import API_VERSION, Endpoints, Offload, Programs
from pyctrd.runtime.shim_client import Events, ShimClient, ShimGone, Whereabouts
from pyctrd.runtime.zygote_client import ShimRequest

SHUTDOWN_TIMEOUT: Final = 3.0  # seconds
KILL_TIMEOUT: Final = 10.0  # seconds from SIGKILL to a free lock
START_UP: Final = 5.0  # seconds from a shim's lock to its address

_PAUSE: Final = 0.01  # seconds between two looks
_PROGRAM: Final = (sys.executable, "-m", "pyctr_shim")
_log = Logger(__name__)


class ShimSource(Protocol):
    """Who makes shim processes quickly."""

    @property
    def unanswered(self) -> bool:
        """Whether a process may be about to become another shim than it was."""

    def request(self, request: ShimRequest, connection: socket.socket, /) -> "asyncio.Future[int]":
        """Ask for a shim that serves on `connection` (borrowed); raises Unavailable if that cannot be asked."""


class Shims:
    """Knows how to get at shims; which of them there are is the table's business."""

    def __init__(self, endpoints: Endpoints, zygote: ShimSource, offload: Offload, events: Events) -> None:
        """Make the directory of shim sockets if it is not there. `events` takes in what our shims tell."""
        self._endpoints = endpoints
        self._events = events
        self._zygote = zygote
        self._programs = Programs(endpoints, offload)
        self._others = OtherShims(self._programs, offload)
        self._sockets = endpoints.state / "s"
        self._sockets.mkdir(mode=0o711, exist_ok=True)
        self.streams = OtherStreams(self._programs, self._sockets)

    async def launch(self, bundle: Bundle, options: AnyMessage | None) -> ShimClient:
        """Start the bundle's shim and return a connection to it; it may not exist yet when this returns.

        The first call is carried out as soon as it does. One of another make gets the container's `options` also
        when it starts. Raises Unavailable if no shim could be started, and what is said of others by `OtherShims`.
        """
        manifest = bundle.manifest
        if manifest.shim:
            return await self._others.launch(bundle, options)
        # Named after the instance too: a shim that is on its way out removes its own socket, not its successor's.
        text = f"{self._endpoints.state}/{manifest.namespace}/{manifest.id}/{manifest.instance}"
        path = f"{self._sockets}/{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        request = ShimRequest(
            namespace=manifest.namespace,
            id=manifest.id,
            bundle=str(bundle.path),
            socket=path,
            attach=f"{path}.attach",
            ttrpc_address=self._endpoints.ttrpc_address,
            grpc_address=self._endpoints.grpc_address,
            log_level=self._endpoints.log_level,
            instance=manifest.instance,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                made = self._zygote.request(request, theirs)
        except Unavailable as error:
            ours.close()
            _log.warning("shim starts cold", namespace=manifest.namespace, container=manifest.id, reason=str(error))
            return await self.launch_cold(bundle)
        client = await ShimClient.over(ours, f"task {manifest.id}", _metadata(manifest.namespace))
        client.take_events(self._events)
        made.add_done_callback(lambda _: None if made.cancelled() or made.exception() is None else client.give_up())
        return client

    async def launch_cold(self, bundle: Bundle) -> ShimClient:
        """Start the bundle's shim as a program of its own, which takes a fifth of a second."""
        manifest = bundle.manifest
        parameters = bootstrap_pb2.BootstrapParams(
            instance_id=manifest.id,
            namespace=manifest.namespace,
            containerd_version=API_VERSION,
            containerd_ttrpc_address=self._endpoints.ttrpc_address,
            containerd_grpc_address=self._endpoints.grpc_address,
            socket_dir=str(self._sockets),
        )
        output = await self._programs.run(bundle, _PROGRAM, "start", stdin=parameters.SerializeToString())
        try:
            address = bootstrap_pb2.BootstrapResult.FromString(output).address
        except DecodeError as error:
            raise UnknownError(f"task {manifest.id}: shim start: it printed no address") from error
        path = address.removeprefix("unix://")
        return await self._connect(path, bundle)

    def ever_lived(self, bundle: Bundle) -> bool:
        """Whether a shim has run in this bundle: the first thing that ours does is to open the lock."""
        return bool(bundle.manifest.shim) or (bundle.path / "lock").exists()

    async def connect(self, bundle: Bundle) -> ShimClient:
        """Return a connection to the live shim of a bundle; raises ShimGone if it cannot be reached."""
        if bundle.manifest.shim:
            return await self._others.connect(bundle)
        shim = bundle.shim()
        if shim is None:
            raise ShimGone(f"task {bundle.manifest.id}: its shim has not written its address")
        return await self._connect(shim.address.removeprefix("unix://"), bundle)

    def at_rest(self, bundle: Bundle) -> ShimClient:
        """Return the way to a live shim that sleeps, which does not wake it; raises ShimGone."""
        where = whereabouts(bundle)
        name = f"task {bundle.manifest.id}"
        if where is None:
            raise ShimGone(f"{name}: its shim has not written its address")
        client = ShimClient.at_rest(where, name, _metadata(bundle.manifest.namespace))
        client.take_events(self._events)
        return client

    async def _connect(self, path: str, bundle: Bundle) -> ShimClient:
        client = await ShimClient.connect(path, f"task {bundle.manifest.id}", _metadata(bundle.manifest.namespace))
        client.take_events(self._events)
        return client

    async def find(self, bundle: Bundle) -> ShimClient:
        """Return a connection to a live shim that may still be starting; raises ShimGone if it is not to be had."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_UP
        while True:
            try:
                return await self.connect(bundle)
            except ShimGone:
                if loop.time() > deadline or await self.ended(bundle, 0):
                    raise
            await asyncio.sleep(_PAUSE)

    async def ended(self, bundle: Bundle, seconds: float) -> bool:
        """Whether the bundle's shim is dead, or dies within `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            if not (self._others.lives(bundle) if bundle.manifest.shim else not _is_free(bundle)):
                return True
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_PAUSE)

    async def shut_down(self, bundle: Bundle, shim: ShimClient) -> None:
        """End a shim that has no container any more; one that does not go by itself is killed."""
        if bundle.manifest.shim:
            await self._others.shut_down(bundle, shim)
            return
        request = shim_pb2.ShutdownRequest(id=bundle.manifest.id)
        try:
            await shim.call("Shutdown", request, Empty, SHUTDOWN_TIMEOUT)
            await shim.wait_closed(SHUTDOWN_TIMEOUT)
        except ShimGone:
            return
        except (ApiError, TimeoutError) as error:
            _log.warning("shim does not shut down", container=bundle.manifest.id, error=str(error))
            await self.kill(bundle)
        finally:
            shim.close()

    async def kill(self, bundle: Bundle) -> None:
        """Kill the bundle's shim if it lives, and wait until it is gone.

        Raises UnknownError if it still holds its lock 10 s later.
        """
        if bundle.manifest.shim:
            await self._others.kill(bundle)
            return
        pid = 0
        # One that has not written its pid yet is about to, or to end.
        for _ in range(int(KILL_TIMEOUT / _PAUSE)):
            if _is_free(bundle):
                return
            shim = bundle.shim()
            # The lock was held a moment ago, so the process that wrote this pid lives. Nor has it become another shim:
            # for that it takes a request, and none was under way.
            if shim is not None and not self._zygote.unanswered:
                pid = shim.pid
                _kill(pid)
            await asyncio.sleep(_PAUSE)
        raise UnknownError(f"task {bundle.manifest.id}: shim {pid} outlives SIGKILL")

    async def clean_up(self, bundle: Bundle) -> None:
        """End what is left of a container whose shim is gone: processes, cgroups, mounts.

        The caller holds the bundle's lock. Raises UnknownError if the program for it fails.
        """
        if bundle.manifest.shim:
            await self._others.clean_up(bundle)
            return
        await self._programs.run(bundle, _PROGRAM, "delete", "-bundle", str(bundle.path))


def _is_free(bundle: Bundle) -> bool:
    """Whether no shim holds the bundle's lock."""
    lock_fd = bundle.try_lock()
    if lock_fd is None:
        return False
    os.close(lock_fd)
    return True


def whereabouts(bundle: Bundle) -> Whereabouts | None:
    """Return where a bundle's shim is, once it has said so; one of another make never does."""
    shim = bundle.shim()
    return Whereabouts(shim.address.removeprefix("unix://"), shim.pid) if shim is not None else None


def _metadata(namespace: str) -> dict[str, str]:
    return {"containerd-namespace-ttrpc": namespace}


def _kill(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
