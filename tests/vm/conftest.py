"""Where a test of this directory runs: in a virtual machine, whose report is told here."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from support import virtual_machine

_INSIDE = os.environ.get(virtual_machine.REPORTS_VARIABLE)
_POWER_CUT = 2  # the boot that ends with one
_reports = pytest.StashKey[dict[str, list[pytest.TestReport]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the emulated machine time; skip where there is none."""
    ours = _ours(items)
    reason = virtual_machine.missing() if ours and not _INSIDE else ""
    for item in ours:
        # Outside, the first one waits for all.
        item.add_marker(pytest.mark.timeout(1800 if _INSIDE else 10800))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _ours(items: list[pytest.Item]) -> list[pytest.Item]:
    return [item for item in items if item.path.is_relative_to(Path(__file__).parent)]


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Outside, let a test have run in the machine."""
    if not _ours([item]) or _INSIDE or virtual_machine.missing():  # pytest asks this for every test there is
        return None
    stash = item.session.stash
    if _reports not in stash:
        stash[_reports] = _run(item.session)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in stash[_reports].get(item.nodeid) or [_lost(item)]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(session: pytest.Session) -> dict[str, list[pytest.TestReport]]:
    """Return the reports of all our items by their ids.

    `boot(number)` says in which boot a test runs, if not in the first. The machine is booted again after it was turned
    off, and the third time after a power cut. Within a boot tests run in the order of their files, not in the random
    one of this session: some find what those above them have left.
    """
    found: dict[str, list[pytest.TestReport]] = {}
    boots: dict[int, list[str]] = {}
    for item in sorted(_ours(session.items), key=lambda item: (item.path, item.location[1] or 0)):
        mark = item.get_closest_marker("boot")
        boots.setdefault(mark.args[0] if mark else 1, []).append(item.nodeid)
    with tempfile.TemporaryDirectory(prefix="pyctr-vm-") as directory:
        for number, ids in sorted(boots.items()):
            try:
                lines = virtual_machine.run(ids, Path(directory) / "disk.qcow2", power_cut=number == _POWER_CUT)
            except RuntimeError as error:
                session.shouldfail = str(error)
                return found
            for line in lines:
                if isinstance(line["longrepr"], list):  # where and why a test was skipped: a tuple, which JSON has not
                    line["longrepr"] = tuple(line["longrepr"])
                report = session.config.hook.pytest_report_from_serializable(config=session.config, data=line)
                found.setdefault(report.nodeid, []).append(report)
    return found


def _lost(item: pytest.Item) -> pytest.TestReport:
    text = "the virtual machine ended without a report about this test"
    return pytest.TestReport(item.nodeid, item.location, {}, "failed", text, "call")


class _Recorder:
    """Inside, writes each report down, at once: the machine may end before pytest does."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        """Write to `path`."""
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Record where somebody outside wants to know."""
    if _INSIDE:
        config.pluginmanager.register(_Recorder(config, _INSIDE))
