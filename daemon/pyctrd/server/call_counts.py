"""Calls by method and by how they ended, for those who watch this daemon from outside."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pyctr_wire.errors import Code
from pyctrd.server.outcomes import Context, outcome


class CallCounts:
    """Counters, by full method names as /SERVICE/METHOD."""

    def __init__(self) -> None:
        """Start at zero."""
        self.started: Counter[str] = Counter()
        self.handled: Counter[tuple[str, Code]] = Counter()

    @contextmanager
    def observe(self, method: str, context: Context) -> Iterator[None]:
        """Count a call that lasts as long as the context does; its errors pass."""
        self.started[method] += 1
        ended: BaseException | None = None
        try:
            yield
        except BaseException as error:
            ended = error
            raise
        finally:
            self.handled[method, outcome(ended, context)] += 1
