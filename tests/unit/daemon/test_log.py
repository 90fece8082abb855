"""What the daemon's log leaves out."""

import logging
import sys

from pyctrd.log import is_news


class ExecuteBatchError(Exception):
    """Called as grpc calls its own."""


def test_clients_that_left_are_no_news() -> None:
    def record_of(error: Exception | None) -> logging.LogRecord:
        try:
            if error is not None:
                raise error
        except Exception:
            return logging.LogRecord("grpc", logging.ERROR, "", 0, "raised by servicer method", (), sys.exc_info())
        return logging.LogRecord("grpc", logging.ERROR, "", 0, "without an exception", (), None)

    assert not is_news(record_of(ExecuteBatchError()))
    assert is_news(record_of(ValueError()))
    assert is_news(record_of(None))
