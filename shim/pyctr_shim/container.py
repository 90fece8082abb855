"""What a shim asks of a container, whichever runtime makes it.

The embedded runtime answers at once, so awaiting it never suspends; one that is another program takes its time, and
the shim goes on meanwhile.
"""

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyctr_shim.oci import runtime
from pyctr_shim.oci.cgroups import Cgroup
from pyctr_shim.oci.forks import Child
from pyctr_sys.pidfd import pidfd_send_signal

if TYPE_CHECKING:
    from pyctr_shim.oci.checkpoint.choices import Dump


class Program(NamedTuple):
    """An OCI runtime that is a program of its own: which, where it keeps its state ("": in the bundle), its time.

    It is killed when a command takes longer than `seconds`.
    """

    path: str
    root: str
    seconds: float


class Joined(Protocol):
    """A process that has joined a container; whoever gets it owns both descriptors."""

    @property
    def pid(self) -> int:
        """Its number on the host."""

    @property
    def pidfd(self) -> int | None:
        """None if it has ended and been reaped."""

    @property
    def console_fd(self) -> int | None:
        """The master of its terminal."""


class Accounts(Protocol):
    """What a container's cgroup tells."""

    def pids(self) -> list[int]:
        """The processes in it."""

    def metrics(self) -> tuple[str, bytes]:
        """Type URL and bytes of io.containerd.cgroups.v1.Metrics or v2.Metrics."""

    def oom_kills(self) -> int:
        """How many of them the kernel has killed for want of memory."""

    def oom_watch(self) -> tuple[int, int] | None:
        """Two descriptors, the caller's; see oom.py. None where memory is not accounted."""


class Container(Protocol):
    """A container that was made, from then to its removal. Everything raises OciError."""

    @property
    def pid(self) -> int:
        """Its first process."""

    @property
    def own_pid_namespace(self) -> bool:
        """Whether all of it ends with its first process."""

    @property
    def cgroup(self) -> Accounts:
        """Where its processes are counted."""

    async def start(self) -> None:
        """Let the first process run its program."""

    async def exec(self, exec_id: str, process: bytes, stdio: runtime.Stdio, *, terminal: bool) -> Joined:
        """Run a further process, given as a JSON document of the spec's `process`; `stdio` is borrowed."""

    async def kill(self, number: int) -> None:
        """Signal the first process. Raises ProcessLookupError if it has ended."""

    async def kill_all(self, number: int) -> None:
        """Signal every process."""

    async def pause(self) -> None:
        """Freeze it."""

    async def resume(self) -> None:
        """Let it go on."""

    async def update(self, resources: bytes) -> None:
        """Change limits to those of a LinuxResources document (JSON)."""

    def checkpoint(self, choices: "Dump") -> Child:
        """Begin to save it; the child tells when it has. The caller's are its descriptors."""

    async def delete(self) -> None:
        """Remove what is left of it when its first process has ended. May be repeated."""


class Embedded:
    """A container of the embedded runtime."""

    __slots__ = ("_made",)

    def __init__(self, made: runtime.Container) -> None:
        """Stand for `made`."""
        self._made = made

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._made.pid

    @property
    def own_pid_namespace(self) -> bool:
        """Whether all of it ends with its first process."""
        return self._made.own_pid_namespace

    @property
    def cgroup(self) -> Cgroup:
        """Where its processes are counted."""
        return self._made.cgroup

    def pidfd(self) -> int:
        """Return a descriptor of the first process, the caller's to close."""
        return os.dup(self._made.pidfd)

    async def start(self) -> None:
        """Let the first process run its program."""
        self._made.start()

    async def exec(self, exec_id: str, process: bytes, stdio: runtime.Stdio, *, terminal: bool) -> Joined:
        """Run a further process; the document says whether it has a terminal."""
        return self._made.exec(process, stdio)

    async def kill(self, number: int) -> None:
        """Signal the first process."""
        pidfd_send_signal(self._made.pidfd, number)

    async def kill_all(self, number: int) -> None:
        """Signal every process."""
        self._made.kill_all(number)

    async def pause(self) -> None:
        """Freeze it."""
        self._made.pause()

    async def resume(self) -> None:
        """Let it go on."""
        self._made.resume()

    async def update(self, resources: bytes) -> None:
        """Change limits."""
        self._made.update(resources)

    def checkpoint(self, choices: "Dump") -> Child:
        """Begin to save it."""
        return self._made.checkpoint(choices)

    async def delete(self) -> None:
        """Remove cgroup and state."""
        self._made.delete()
