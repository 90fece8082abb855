"""One container of a shim, as it was asked for and as it is."""

import os
from typing import NamedTuple

from pyctr_shim.container import Container, Program
from pyctr_shim.exit_record import Exit
from pyctr_shim.loop import Future
from pyctr_shim.oci import runtime
from pyctr_shim.oom import OomWatch
from pyctr_shim.process import Process, Status
from pyctr_shim.stdio.streams import Names, Owner
from pyctr_wire.containerd.events import task_pb2 as events
from pyctr_wire.errors import ApiError, NotFound


class NewTask(NamedTuple):
    """What Create asks for; `created` is the event to publish, complete but for the pid."""

    id: str
    bundle: str
    names: Names
    options: runtime.CreateOptions
    program: Program | None
    """The runtime, if it is not the embedded one."""
    io_uid: int
    io_gid: int
    created: events.TaskCreate


class Task:
    """One container: the runtime's handle, its first process, and those that joined."""

    def __init__(self, new: NewTask, container: Container, init: Process, owner: Owner) -> None:
        """Made by Tasks.create."""
        self.id = new.id
        self.bundle = new.bundle
        self.container = container
        self.init = init
        self.owner = owner
        self.at_once = new.program is None
        """Whether its runtime does everything at once."""
        self.execs: dict[str, Process] = {}
        self.oom: OomWatch | None = None
        self.deletion: Future[Exit | ApiError] | None = None
        self._root_fd = _hold_root(container.pid) if new.options.rootfs else -1

    def let_root_go(self) -> None:
        """Let the root file system be unmounted; that takes as long as its disk takes to be synchronised."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def in_place_of(self, number: int) -> int:
        """Return the signal that does to its first process what `number` is sent for."""
        if self.init.status is not Status.CREATED:
            return number
        return runtime.before_start(number, own_pid_namespace=self.container.own_pid_namespace)

    def process(self, exec_id: str) -> Process:
        """Return one of the processes; raises NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}") from None

    def processes(self) -> list[Process]:
        """Return all of them."""
        return [self.init, *self.execs.values()]


def _hold_root(pid: int) -> int:
    """Return an fd that keeps the root of a container's first process mounted, -1 if that has ended already.

    Otherwise its unmounting would be part of that process's end, and everybody would hear of the end only after it.
    The container's other mounts go with the process.
    """
    try:
        return os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
