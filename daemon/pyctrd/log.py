"""Structured logs on standard error: lines for people on a terminal, JSON for collectors."""

import logging
import sys

# structlog imports rich wherever it finds it, to print tracebacks in colours. That costs a start of the
# daemon more than all the rest of structlog, so here it does not find it.
_hides_rich = "rich" not in sys.modules
if _hides_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
import structlog  # noqa: E402 - see above

if _hides_rich:
    del sys.modules["rich"]


def set_up(level: str, style: str) -> None:
    """Send records of structlog and of the standard library to standard error.

    `style` is "json", "console", or "auto": console on a terminal, JSON elsewhere.
    """
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    last: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if style == "console"
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # At debug level grpc has a line for every call that says nothing.
    logging.getLogger("grpc").setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(is_news)
    set_level(level)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record of grpc's says more than that a client left while it was being answered."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


def set_level(level: str) -> None:
    """Log records of `level` and above from now on."""
    logging.getLogger().setLevel(level.upper())
