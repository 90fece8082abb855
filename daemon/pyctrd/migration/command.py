"""The command's edge: addresses, signals, the exit status."""

import signal
import sys

from pyctr_wire.errors import ApiError, InvalidArgument
from pyctrd.migration.report import Report
from pyctrd.migration.run import migrate

COMPLETE, INCOMPLETE, FAILED = 0, 3, 1


def run(source: str, target: str) -> int:
    """Copy from one daemon's socket to another's; return COMPLETE, INCOMPLETE, or FAILED if the run was cut."""
    report = Report()
    # As Ctrl-C, so that calls under way are given up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        migrate(_path(source), _path(target), report)
    except (ApiError, KeyboardInterrupt) as error:
        sys.stdout.write(report.text_so_far())
        reason = str(error) or "interrupted"
        remedy = "" if isinstance(error, InvalidArgument) else "Run it again: it goes on where it was cut.\n"
        sys.stderr.write(f"pyctrd: migrate: {reason}\n{remedy}")
        return FAILED
    sys.stdout.write(report.text())
    return COMPLETE if report.complete else INCOMPLETE


def _path(address: str) -> str:
    return address.removeprefix("unix://").removeprefix("unix:")
