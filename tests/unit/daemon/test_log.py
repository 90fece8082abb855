"""What the daemon logs, and what it leaves out."""

import json
import logging
import subprocess
import sys

from pyctrd.log import is_news

_PROGRAM = """
import logging, sys
from pyctrd import log
log.set_up("warning", "json")
logger = log.Logger("pyctrd.part")
logger.info("not.wanted", container="c")
print("structlog" in sys.modules)
logger.warning("wanted", container="c")
try:
    raise OSError("lost")
except OSError as error:
    logger.error("failed", exc_info=error)
logging.getLogger("another").warning("by %s", "somebody")
"""


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


def test_records_are_objects_and_those_that_are_not_wanted_load_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(record["logger"], record["level"], record["event"]) for record in records] == [
        ("pyctrd.part", "warning", "wanted"),
        ("pyctrd.part", "error", "failed"),
        ("another", "warning", "by somebody"),
    ]
    assert records[0]["container"] == "c"
    assert records[0]["timestamp"].endswith("Z")
    assert "OSError: lost" in records[1]["exception"]
