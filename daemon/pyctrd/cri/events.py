"""What happens to pods and containers, told to whoever listens (GetContainerEvents).

While nobody does, events wait for five minutes for the first one who comes, so that a kubelet which restarts loses
little.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from pyctr_wire.cri import runtime_pb2
from pyctrd.cri import convert
from pyctrd.cri.records import Pod, PodContainer, now

_KEPT_SECONDS: Final = 300.0
_KEPT: Final = 10_000
_QUEUE: Final = 10_000


class Events:
    """The listeners, and what waits for the first of them."""

    def __init__(self) -> None:
        """Start without a listener."""
        self._listeners: set[asyncio.Queue[runtime_pb2.ContainerEventResponse]] = set()
        self._kept: deque[tuple[float, runtime_pb2.ContainerEventResponse]] = deque(maxlen=_KEPT)

    def pod(self, pod: Pod, kind: "runtime_pb2.ContainerEventType") -> None:
        """Tell what has happened to a sandbox."""
        self._tell(pod.id, pod, kind)

    def container(self, container: PodContainer, kind: "runtime_pb2.ContainerEventType") -> None:
        """Tell what has happened to a container."""
        self._tell(container.id, container.pod, kind)

    def _tell(self, id: str, pod: Pod, kind: "runtime_pb2.ContainerEventType") -> None:
        event = runtime_pb2.ContainerEventResponse(
            container_id=id,
            container_event_type=kind,
            created_at=now(),
            pod_sandbox_status=convert.pod_status(pod),
            containers_statuses=convert.container_statuses(pod),
        )
        if not self._listeners:
            self._forget_old()  # or a daemon whose kubelet never listens would keep thousands for good
            self._kept.append((time.monotonic(), event))
        for queue in self._listeners:
            with suppress(asyncio.QueueFull):  # a listener that reads nothing lists everything when it comes back
                queue.put_nowait(event)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - _KEPT_SECONDS
        while self._kept and self._kept[0][0] < oldest:
            self._kept.popleft()

    async def listen(self) -> AsyncIterator[runtime_pb2.ContainerEventResponse]:
        """Yield events until the listener has enough."""
        queue: asyncio.Queue[runtime_pb2.ContainerEventResponse] = asyncio.Queue(_QUEUE)
        if not self._listeners:
            self._forget_old()
            for _, event in self._kept:
                queue.put_nowait(event)
            self._kept.clear()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)
