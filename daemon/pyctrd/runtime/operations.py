"""What the daemon is doing: every operation with its stage, start and deadline, and the last ones that failed."""

import asyncio
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import Final

from pyctr_wire.errors import ApiError, UnknownError
from pyctrd.core.values import dataclass

FAILURES_KEPT: Final = 256


@dataclass(slots=True)
class Operation:
    """One thing under way; whoever does it keeps `stage` up to date."""

    id: str
    namespace: str
    object: str  # "container web"
    name: str  # "create"
    stage: str
    started_at: datetime
    deadline: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    started: float = field(default_factory=time.monotonic)  # seconds, monotonic

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self.started


class Operations:
    """The table; failures are kept in a ring, the oldest are forgotten first."""

    def __init__(self) -> None:
        """Start empty."""
        self._running: dict[str, Operation] = {}
        self._failed: deque[Operation] = deque(maxlen=FAILURES_KEPT)
        # By name and "ok" or "failed", since the daemon's start.
        self.ended: Counter[tuple[str, str]] = Counter()
        self._ids = itertools.count(1)

    @contextmanager
    def begin(self, namespace: str, subject: str, name: str, *, timeout: float | None = None) -> Iterator[Operation]:
        """Enter an operation on `subject`, `timeout` seconds long at most (told to people, not enforced here).

        An ApiError passes as it is: its text was written for clients. An OSError leaves as UnknownError with
        the object, the operation and the stage in front.
        """
        with self.listed(namespace, subject, name, timeout=timeout) as operation:
            try:
                yield operation
            except OSError as error:
                text = f"{subject}: {name}: {operation.stage}: {os.strerror(error.errno) if error.errno else error}"
                if error.filename:
                    text += f": {error.filename}"
                raise UnknownError(text) from error

    @contextmanager
    def listed(self, namespace: str, subject: str, name: str, *, timeout: float | None = None) -> Iterator[Operation]:
        """Enter an operation as `begin` does, whose errors pass as they are."""
        now = datetime.now(UTC)
        operation = Operation(
            f"op{next(self._ids)}", namespace, subject, name, "begin", now,
            None if timeout is None else now + timedelta(seconds=timeout),
        )  # fmt: skip
        self._running[operation.id] = operation
        try:
            yield operation
            self.ended[name, "ok"] += 1
        except ApiError as error:
            self._fail(operation, str(error))
            raise
        except asyncio.CancelledError:
            self._fail(operation, "its client went away")
            raise
        except BaseException as error:
            self._fail(operation, f"{type(error).__name__}: {error}")
            raise
        finally:
            del self._running[operation.id]

    def _fail(self, operation: Operation, error: str) -> None:
        self.ended[operation.name, "failed"] += 1
        operation.ended_at = datetime.now(UTC)
        operation.error = error
        self._failed.append(operation)

    def running(self) -> list[Operation]:
        """Return the operations under way, oldest first."""
        return list(self._running.values())

    def about(self, name: str) -> list[Operation]:
        """Return the operations, under way or failed, whose id is `name` or whose object bears that name."""
        return [
            operation
            for operation in (*self._failed, *self._running.values())
            if operation.id == name or operation.object.rpartition(" ")[2] == name
        ]
