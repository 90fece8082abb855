"""F11: the daemon is stopped while a container logs as fast as it is read; no line is lost, and nobody waits for it."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.containers import Containers
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import Footprint

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LINE_SIZE = 500
LINES = 10_000
FILES = 20
ROUNDS = 30  # of 5 MB each: some seconds at 50 MB/s
# Both streams, no more than 50 MB/s, in rounds that are numbered themselves.
SCRIPT = f"""\
i=0
while [ $i -lt {ROUNDS} ]; do
    echo "round $i" >&2
    cat /lines
    i=$((i+1))
    usleep 100000
done
exit 7
"""


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as process:
        yield process


def text(number: int) -> str:
    """Return line `number` of a round."""
    return f"{number:07} ".ljust(LINE_SIZE - 1, "x")


def logged(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield stream and line of everything in a log, the oldest file first."""
    for number in reversed(range(FILES)):
        path = folder / (f"log.{number}" if number else "log")
        if path.exists():
            with path.open() as file:
                for line in file:
                    record = json.loads(line)
                    yield record["stream"], record["log"]


def test_no_line_is_lost(containers: Containers, daemon: DaemonProcess) -> None:
    """The container ends while the daemon is stopped; its log is complete by then, and its exit is told later."""
    footprint = Footprint(daemon)
    (containers.rootfs / "lines").write_text("".join(text(number) + "\n" for number in range(LINES)))
    folder = daemon.base / "logs"
    uri = f"json-file://{folder}/log?max-size=20m&max-file={FILES}"
    containers.define("web", "sh", "-c", SCRIPT)
    containers.create("web", stdout=uri, stderr=uri)
    containers.start("web")
    wait_until((folder / "log").exists, "the log has begun")

    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        wait_until((containers.bundles / "web/exits/init.json").exists, "the container has ended", deadline=120)
        lines = {"stdout": 0, "stderr": 0}
        for stream, line in logged(folder):
            number = lines[stream]
            wanted = text(number % LINES) if stream == "stdout" else f"round {number}"
            assert line == f"{wanted}\n"
            lines[stream] += 1
        assert lines == {"stdout": ROUNDS * LINES, "stderr": ROUNDS}
        assert (folder / "log.1").exists()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)

    assert containers.wait("web").status == 7
    assert containers.delete("web").status == 7
    containers.remove("web")
    containers.close()
    footprint.assert_unchanged()
