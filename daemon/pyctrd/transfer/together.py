"""Tasks that succeed together or fail as one."""

import asyncio
from types import TracebackType


class Together(asyncio.TaskGroup):
    """A TaskGroup that raises the first failure itself, not a group of them: a client can be told one thing."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all tasks; if one failed, the others have been cancelled."""
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
