"""Forgets ended execs of our own command line that nobody has deleted.

Whoever started one in the background, or has died, does not come back for it, and it would be listed and kept on disk
until its container goes. Those of other clients stay until then: containerd's API says so, and they may ask.
"""

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

from pyctr_wire import exec_ids
from pyctr_wire.errors import ApiError
from pyctrd.log import Logger
from pyctrd.runtime.table import Process, Task

_PAUSE: Final = 300.0  # seconds; one that ended is kept for as long at least, and for twice that at most

_log = Logger("pyctrd.runtime")


class Tasks(Protocol):
    """The tasks of all namespaces."""

    @property
    def table(self) -> Iterable[Task]: ...
    async def delete_process(self, namespace: str, id: str, exec_id: str) -> object: ...


class Forgetting:
    """Looks around again and again; what it finds for the second time goes."""

    def __init__(self, tasks: Tasks) -> None:
        """Look at these."""
        self._tasks = tasks
        self._seen: set[Process] = set()

    async def run(self) -> None:
        """Do that until the daemon stops."""
        while True:
            await asyncio.sleep(_PAUSE)
            await self.look()

    async def look(self) -> None:
        """Delete the execs that had ended by the last time, and remember those that have since."""
        seen, self._seen = self._seen, set()
        for task in self._tasks.table:
            for process in list(task.execs.values()):
                if process.exit is None or not process.exec_id.startswith(exec_ids.OURS):
                    continue
                if process in seen:
                    await self._delete(task, process.exec_id)
                self._seen.add(process)

    async def _delete(self, task: Task, exec_id: str) -> None:
        try:
            await self._tasks.delete_process(task.namespace, task.id, exec_id)
        except ApiError as error:  # its shim does not answer, or somebody was faster: the next look will tell
            _log.info("exec.not_forgotten", namespace=task.namespace, container=task.id, exec=exec_id, error=str(error))
