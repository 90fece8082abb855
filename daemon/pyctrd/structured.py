"""structlog, set up so that its records pass through the standard library's handlers. Loaded by pyctrd.log."""

import logging
import sys
from typing import Any, Final

# structlog imports rich wherever it finds it, to print tracebacks in colours. That takes longer than all the rest of
# structlog, so here it does not find it.
_hides_rich = "rich" not in sys.modules
if _hides_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
import structlog  # noqa: E402 - see above

if _hides_rich:
    del sys.modules["rich"]

_SHARED: Final[list[structlog.types.Processor]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

structlog.configure(
    processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    wrapper_class=structlog.stdlib.BoundLogger,
)


def write(logger: logging.Logger, level: int, event: str, fields: dict[str, Any]) -> None:
    """Write a record by `logger`."""
    structlog.wrap_logger(logger).log(level, event, **fields)


def formatter(style: str) -> logging.Formatter:
    """Return what makes a line of a record; `style` is "json" or "console"."""
    last: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if style == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
