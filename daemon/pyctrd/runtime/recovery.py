"""The normal start: read the bundles, adopt live shims, bury dead ones, sweep rubbish.

Who lives is told by locks alone, so the table is complete within milliseconds; what state each task is in is asked of
all shims at once. Whoever has not answered by then is served from its files and asked again in the background: a
stopped shim makes its own task unresponsive and delays nobody.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyctr_wire.errors import ApiError, DeadlineExceeded, NotFound
from pyctrd.core.tasks import Status
from pyctrd.log import Logger
from pyctrd.runtime.bundle import Bundle, Bundles
from pyctrd.runtime.burial import Undertaker
from pyctrd.runtime.lifecycle import Lifecycle
from pyctrd.runtime.owner import Job, Joining, Owners
from pyctrd.runtime.shim_client import ShimGone
from pyctrd.runtime.shims import Shims
from pyctrd.runtime.table import Deleted, Process, Task
from pyctrd.runtime.tasks import Tasks

PATIENCE: Final = 0.2  # seconds without any shim's answer after which serving begins
LIMIT: Final = 1.0  # seconds after which it does in any case
_log = Logger("pyctrd.runtime")


class Recovered(NamedTuple):
    """How many tasks there are, and how many of their shims had not answered when serving began."""

    tasks: int
    late: int


class Recovery:
    """Fills the table."""

    def __init__(
        self,
        tasks: Tasks,
        bundles: Bundles,
        shims: Shims,
        owners: Owners,
        undertaker: Undertaker,
        lifecycle: Lifecycle,
        group: asyncio.TaskGroup,
    ) -> None:
        """What takes longer than `run` goes on in `group`."""
        self._tasks = tasks
        self._bundles = bundles
        self._shims = shims
        self._owners = owners
        self._undertaker = undertaker
        self._lifecycle = lifecycle
        self._group = group

    async def run(self) -> Recovered:
        """Know every task when this returns: when all shims have answered, or those that do not seem to be stopped."""
        whole, retired, rubbish = self._bundles.list()
        asked = [self._group.create_task(self._adopt_or_bury(bundle)) for bundle in whole]
        for bundle in retired:
            record = bundle.exits().get("")
            if record is not None:
                key = (bundle.manifest.namespace, bundle.manifest.id)
                self._lifecycle.remember_deleted(key, Deleted(record.pid, record.exit))
            self._group.create_task(self._sweep(bundle))
        for path in rubbish:
            self._remove(path)
        return Recovered(len(whole), late=await _quiet(asked))

    async def _adopt_or_bury(self, bundle: Bundle) -> None:
        """Bring one bundle's task into the table, with its real state as soon as that is known."""
        task = _from_files(bundle)
        # Clients may see it from here on, and their Deletes wait until its owner has done this.
        self._tasks.table.publish(task)

        async def work(_: Job[None]) -> None:
            if await self._shims.ended(bundle, 0):
                await self._take_over_dead(task)
            else:
                await self._adopt(task)

        try:
            await self._owners.run(task.key, "recover", work, joining=Joining.SHARED)
        except (ApiError, OSError) as error:
            # It stays in the table as its files tell, and Delete tries to bury it again.
            _log.error("task.not_recovered", namespace=task.namespace, container=task.id, error=str(error))

    async def _adopt(self, task: Task) -> None:
        """Connect to a live shim and learn its task's state; one that does not answer is asked until it does.

        One that sleeps has written that down, and is not woken: whatever happens to its task it will tell.
        """
        asleep = task.bundle.asleep()
        if asleep is not None and self._adopt_asleep(task, asleep):
            return
        try:
            task.shim = await self._shims.find(task.bundle)
        except ShimGone:
            if await self._shims.ended(task.bundle, 0):
                await self._take_over_dead(task)
            elif not (task.bundle.manifest.shim or task.bundle.shim() or task.init.pid):
                # It never came so far as to listen, so it has no container: nobody was told that it would.
                await self._discard(task)
            else:
                raise
            return
        self._undertaker.watch(task)
        if task.bundle.manifest.shim:
            try:
                await self._shims.streams.keep(task.bundle)
            except (ApiError, OSError) as error:  # it runs on without them, and may have ended meanwhile
                _log.error("streams.not_kept", namespace=task.namespace, container=task.id, error=str(error))
        try:
            await self._tasks.refresh(task)
        except NotFound:
            if task.init.exit is None:
                await self._discard(task)
        except DeadlineExceeded:
            return

    def _adopt_asleep(self, task: Task, known: Mapping[str, tuple[int, Status]]) -> bool:
        """Take over a sleeping shim's task; False if it has to be asked after all."""
        for process in task.processes:
            process.pid, status = known.get(process.exec_id, (process.pid, Status.STOPPED))
            if process.exit is None:
                if status is Status.STOPPED:  # gone, or ended without a record
                    return False
                process.status = status
        try:
            task.shim = self._shims.at_rest(task.bundle)
        except ShimGone:
            return False
        self._undertaker.watch(task)
        return True

    async def _take_over_dead(self, task: Task) -> None:
        bundle = task.bundle
        if bundle.buried:
            return
        if bundle.recorded_pid() == 0 and not bundle.exits():
            await self._discard(task)
        else:
            await self._undertaker.bury(task)

    async def _discard(self, task: Task) -> None:
        """Remove a task whose Create never ended; holding the lock keeps a shim on its way from starting."""
        self._tasks.table.remove(task)
        if task.shim is not None:
            task.shim.close()
            task.shim = None
        await self._shims.kill(task.bundle)
        lock_fd = task.bundle.try_lock()
        try:
            await self._shims.clean_up(task.bundle)
            await self._shims.streams.end(task.bundle)
            self._remove(self._bundles.retire(task.bundle).path)
        finally:
            if lock_fd is not None:
                os.close(lock_fd)
        _log.info("task.discarded", namespace=task.namespace, container=task.id)

    async def _sweep(self, bundle: Bundle) -> None:
        """Finish a deletion that a crash interrupted."""
        try:
            if not await self._shims.ended(bundle, 0):
                try:
                    client = await self._shims.connect(bundle)
                except ShimGone:
                    await self._shims.kill(bundle)
                else:
                    await self._shims.shut_down(bundle, client)
        except ApiError as error:
            _log.error("shim.not_ended", container=bundle.manifest.id, error=str(error))
            return
        self._remove(bundle.path)

    def _remove(self, path: Path) -> None:
        try:
            self._bundles.remove(path)
        except OSError as error:
            _log.error("bundle.not_removed", path=str(path), error=str(error))


async def _quiet(asked: Sequence["asyncio.Task[None]"]) -> int:
    """Wait until all have ended, or none has for a while; return how many have not."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIMIT
    left = len(asked)
    while left and loop.time() < end:
        await asyncio.wait(asked, timeout=PATIENCE)
        before, left = left, sum(not task.done() for task in asked)
        if left == before < len(asked):
            break
    return left


def _from_files(bundle: Bundle) -> Task:
    """Return the task as its files tell, for as long as its shim has not."""
    manifest = bundle.manifest
    init = Process("", manifest.names)
    task = Task(bundle, init, adopted=True)
    pid = bundle.recorded_pid()
    if pid:
        init.started(pid)
    for exec_id, names in bundle.execs().items():
        # Whether it was ever started, no file tells; if its shim is lost, it is better told ended than not.
        task.execs[exec_id] = Process(exec_id, names, status=Status.RUNNING)
    for exec_id, record in bundle.exits().items():
        process = task.process_named(exec_id)
        process.pid = record.pid
        process.finish(record.exit)
    return task
