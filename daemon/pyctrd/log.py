"""Structured logs on standard error: lines for people on a terminal, JSON for collectors.

structlog is loaded with the first record. It takes a tenth of a start, and a start that goes well has nothing to say
before it is over.
"""

import logging
import sys
from typing import Any, Final


class Logger:
    """structlog's logger of a name, as far as we use it."""

    def __init__(self, name: str) -> None:
        """Write records of `name`."""
        self._logger: Final = logging.getLogger(name)

    def info(self, event: str, **fields: Any) -> None:
        """Write what happens in the course of things."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write what somebody may want to look into."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write what has failed."""
        self._write(logging.ERROR, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            from pyctrd import structured

            structured.write(self._logger, level, event, fields)


class _Formatter(logging.Formatter):
    """Hands records, those of other libraries too, to structlog's formatter."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._wanted = style
        self._formatter: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        if self._formatter is None:
            from pyctrd import structured

            self._formatter = structured.formatter(self._wanted)
        return self._formatter.format(record)


def set_up(level: str, style: str) -> None:
    """Send our own records and those of the standard library to standard error.

    `style` is "json", "console", or "auto": console on a terminal, JSON elsewhere.
    """
    if style == "auto":
        style = "console" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(style))
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
