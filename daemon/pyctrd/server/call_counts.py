"""Calls by method and by how they ended, for those who watch this daemon from outside."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from grpc.aio import ServicerContext

from pyctr_wire.errors import ApiError, Code

Context: TypeAlias = "ServicerContext[Any, Any]"


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
        code = Code.OK
        try:
            yield
        except ApiError as error:
            code = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = Code.CANCELLED
            raise
        except BaseException:
            code = Code.UNKNOWN
            raise
        finally:
            self.handled[method, code] += 1
