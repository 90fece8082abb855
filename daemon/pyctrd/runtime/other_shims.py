"""Shims of other makes: programs that speak containerd's runtime v2 protocol, `containerd-shim-runc-v2` for one.

They hold no lock, write no exit records and number no events, and one of them may serve the containers of a whole
group, so each question about them is answered in another way than for ours:

    does it live?        somebody listens at its address, which its `start` has printed
    who is it?           what it says of itself when it is first asked (Connect)
    how did it end?      its events; or, if they found no daemon, its answer to State when it is found again
    who cleans up?       its own program's `delete`

Source: containerd's runtime v2 documentation.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from pyctr_sys.pidfd import start_ticks
from pyctr_wire.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2
from pyctr_wire.errors import ApiError, Unimplemented, UnknownError
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle, OtherShim
from pyctrd.runtime.programs import API_VERSION, Programs
from pyctrd.runtime.shim_client import ShimClient, ShimGone

CONNECT_TIMEOUT: Final = 10.0  # seconds
SHUTDOWN_TIMEOUT: Final = 3.0  # seconds, for the call and again for the process
KILL_TIMEOUT: Final = 10.0  # seconds from SIGKILL to a silent socket

_NEWEST: Final = 3  # of the versions of the task service
_TYPED_SINCE: Final = (2, 3)  # releases of containerd's shims that read BootstrapParams
_VERSION: Final = re.compile(r"Version:\s+v?(\d+)\.(\d+)")
_VERSION_TIMEOUT: Final = 10.0  # seconds
_PAUSE: Final = 0.02  # seconds between two looks
_log = Logger("pyctrd.runtime")


class Offload(Protocol):
    """The way to a thread."""

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call in a thread and return the result."""


class OtherShims:
    """Knows how to get at them."""

    def __init__(self, programs: Programs, offload: Offload) -> None:
        """Run their programs by `programs`."""
        self._programs = programs
        self._offload = offload
        self._typed: dict[tuple[str, int], bool] = {}  # by path and modification time

    async def launch(self, bundle: Bundle, options: AnyMessage | None) -> ShimClient:
        """Start the bundle's shim, or find the one of its group, and return a connection to it.

        Raises UnknownError if its program fails, Unimplemented for a protocol that we do not speak.
        """
        program = bundle.manifest.shim
        stdin = self._parameters(bundle, options) if await self._is_typed(program) else _plain(options)
        if has_user_namespace(bundle):
            os.chmod(bundle.path, 0o711)  # noqa: S103 - the container's root, who is nobody here, passes to its root
        # The shim's log; it insists that there is one.
        (bundle.path / "log").touch(mode=0o600)
        # A crash from here on leaves a shim whose address nobody knows; starting it again names it.
        bundle.write_other_shim(OtherShim())
        try:
            output = await self._programs.run(bundle, (program,), "start", stdin=stdin)
        except UnknownError:
            bundle.forget_other_shim()
            raise
        try:
            shim = parse_answer(program, output)
        except ApiError:
            # Nobody here can call it: starting it once more would bring another one.
            await self.clean_up(bundle)
            bundle.forget_other_shim()
            raise
        bundle.write_other_shim(shim)
        return await self._introduce(bundle, shim)

    async def _introduce(self, bundle: Bundle, shim: OtherShim) -> ShimClient:
        """Return a connection to a shim that has just told its address, its pid and version being written down."""
        client = await self._connect(bundle, shim)
        request = shim_pb2.ConnectRequest(id=bundle.manifest.id)
        try:
            reply = await client.call("Connect", request, shim_pb2.ConnectResponse, CONNECT_TIMEOUT)
        except Unimplemented:
            client.close()
            if shim.version < _NEWEST:
                raise
            return await self._introduce(bundle, shim._replace(version=shim.version - 1))
        except ApiError:
            client.close()
            raise
        pid = reply.shim_pid
        bundle.write_other_shim(shim._replace(pid=pid, start_ticks=_start_ticks(pid)))
        return client

    async def connect(self, bundle: Bundle) -> ShimClient:
        """Return a connection to the live shim of a bundle; raises ShimGone."""
        shim = bundle.other_shim()
        if shim is None or not shim.address:
            raise ShimGone(f"task {bundle.manifest.id}: its shim has not told its address")
        return await self._connect(bundle, shim)

    async def _connect(self, bundle: Bundle, shim: OtherShim) -> ShimClient:
        manifest = bundle.manifest
        metadata = {"containerd-namespace-ttrpc": manifest.namespace}
        return await ShimClient.connect(
            shim.path, f"task {manifest.id}", metadata, service=f"containerd.task.v{shim.version}.Task"
        )

    def lives(self, bundle: Bundle) -> bool:
        """Whether somebody listens at the shim's address."""
        shim = bundle.other_shim()
        return shim is not None and bool(shim.address) and _is_served(shim.path)

    async def shut_down(self, bundle: Bundle, client: ShimClient) -> None:
        """Have a shim end that has no container any more, and wait for that unless others of its group may be in it."""
        request = shim_pb2.ShutdownRequest(id=bundle.manifest.id)
        client.on_close = None
        try:
            await client.call("Shutdown", request, Empty, SHUTDOWN_TIMEOUT)
        except ShimGone:  # so quick that it did not answer
            pass
        except ApiError as error:
            _log.warning("shim does not shut down", container=bundle.manifest.id, error=str(error))
        finally:
            client.close()
        if not _is_shared(bundle):
            if not await self._ends(bundle, SHUTDOWN_TIMEOUT):
                await self.kill(bundle)
            _remove_socket(bundle)

    async def kill(self, bundle: Bundle) -> None:
        """Kill the bundle's shim if it lives and serves no other bundle, and wait until it is gone.

        One that a crashed daemon was about to start is started now, to learn who it is. Raises UnknownError if it
        cannot be found, or is there 10 s later.
        """
        shim = bundle.other_shim()
        if shim is None:
            return
        if not shim.address:
            await self.shut_down(bundle, await self.launch(bundle, None))
            return
        if not self.lives(bundle) or _is_shared(bundle):
            return
        if shim.pid and _start_ticks(shim.pid) == shim.start_ticks:
            os.kill(shim.pid, signal.SIGKILL)
        if not await self._ends(bundle, KILL_TIMEOUT):
            raise UnknownError(f"task {bundle.manifest.id}: shim {shim.pid} at {shim.path} does not end")

    async def clean_up(self, bundle: Bundle) -> None:
        """Let its program end what is left of a container whose shim is gone. Raises UnknownError if that fails.

        What it answers is no news: it cannot know how processes ended that nobody watched.
        """
        shim = bundle.other_shim()
        if shim is None:
            return
        await self._programs.run(bundle, (bundle.manifest.shim,), "delete", "-bundle", str(bundle.path))
        if not _is_shared(bundle):
            _remove_socket(bundle)

    async def _ends(self, bundle: Bundle, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.lives(bundle):
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_PAUSE)
        return True

    async def _is_typed(self, program: str) -> bool:
        """Whether a program wants BootstrapParams on its standard input: what `-v` says, asked once."""
        try:
            identity = (program, os.stat(program).st_mtime_ns)
        except OSError:
            return False  # who starts it says so
        if identity not in self._typed:
            self._typed[identity] = await self._offload.run(reads_parameters, program)
        return self._typed[identity]

    def _parameters(self, bundle: Bundle, options: AnyMessage | None) -> bytes:
        endpoints = self._programs.endpoints
        levels = {"debug": bootstrap_pb2.LOG_LEVEL_DEBUG, "error": bootstrap_pb2.LOG_LEVEL_ERROR}
        parameters = bootstrap_pb2.BootstrapParams(
            instance_id=bundle.manifest.id,
            namespace=bundle.manifest.namespace,
            log_level=levels.get(endpoints.log_level, bootstrap_pb2.LOG_LEVEL_INFO),
            containerd_version=API_VERSION,
            containerd_ttrpc_address=endpoints.ttrpc_address,
            containerd_grpc_address=endpoints.grpc_address,
        )
        if options is not None:
            parameters.extensions.add().value.CopyFrom(options)
        return parameters.SerializeToString()


def _plain(options: AnyMessage | None) -> bytes:
    return options.SerializeToString() if options is not None else b""


def has_user_namespace(bundle: Bundle) -> bool:
    """Return whether the bundle's container has one. What the specification says otherwise is the shim's to judge."""
    try:
        linux = json.loads((bundle.path / "config.json").read_bytes())["linux"]
        return any(one["type"] == "user" for one in linux["namespaces"])
    except (ValueError, KeyError, TypeError):
        return False


def reads_parameters(program: str) -> bool:
    """Return whether a shim is a containerd of 2.3 or later; blocks while it tells its version."""
    try:
        done = subprocess.run(
            [program, "-v"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = _VERSION.search(done.stdout.decode(errors="replace"))
    return found is not None and (int(found[1]), int(found[2])) >= _TYPED_SINCE


def parse_answer(program: str, output: bytes) -> OtherShim:
    """Return where a shim serves, from what its `start` prints: a BootstrapResult, JSON, or the bare address.

    Raises UnknownError if it is none of them, Unimplemented for what is served in a way that we do not speak.
    """
    text = output.decode(errors="replace").strip()
    if text.startswith("unix://"):
        shim = OtherShim(version=2, address=text)
    elif text.startswith("{"):
        try:
            record = json.loads(text)
            shim = OtherShim(int(record["version"]), str(record["address"]), str(record["protocol"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UnknownError(f"{program} start: {text[:200]!r} tells no address") from error
    else:
        try:
            result = bootstrap_pb2.BootstrapResult.FromString(output)
        except DecodeError as error:
            raise UnknownError(f"{program} start: {text[:200]!r} tells no address") from error
        shim = OtherShim(result.version, result.address, result.protocol)
    if not 2 <= shim.version <= _NEWEST:
        raise Unimplemented(f"{program} start: unsupported shim version ({shim.version})")
    if shim.protocol != "ttrpc" or not shim.address.startswith("unix:///"):
        raise Unimplemented(
            f"{program} start: {shim.protocol} at {shim.address!r} is not spoken, only ttrpc at unix:///PATH"
        )
    return shim


def _start_ticks(pid: int) -> int:
    try:
        return start_ticks(pid)
    except OSError:  # it has ended
        return 0


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(path)
        except BlockingIOError:  # one that is stopped has a full backlog
            return True
        except OSError:
            return False
    return True


def _remove_socket(bundle: Bundle) -> None:
    """Remove the socket that an ended shim has left: one that was killed, and, of containerd 2's, one of a group."""
    shim = bundle.other_shim()
    if shim is not None and shim.address and not _is_served(shim.path):
        with suppress(FileNotFoundError):
            os.unlink(shim.path)


def _is_shared(bundle: Bundle) -> bool:
    """Whether the shim of this bundle is another one's too."""
    shim = bundle.other_shim()
    for path in bundle.path.parent.iterdir():
        if path != bundle.path and not path.name.startswith("."):
            other = Bundle(path, bundle.manifest).other_shim()
            if shim is not None and other is not None and other.address == shim.address:
                return True
    return False
