"""F11: the daemon is stopped while a container logs as fast as it is read; no line is lost, and nobody waits for it.

Or it is told to stop, and a container ends in the grace that calls under way have: nobody hears of it any more.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from support.containers import NAMESPACE, Containers, EventLog
from support.daemon_process import DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), pytest.mark.usefixtures("leaving_nothing")]

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


def test_an_end_in_the_last_grace_is_told_by_the_next_daemon(containers: Containers, daemon: DaemonProcess) -> None:
    pid = containers.run("web", "sleep", "1000")
    over = threading.Event()

    def unfinished() -> Iterator[content_pb2.WriteContentRequest]:
        yield content_pb2.WriteContentRequest(action=content_pb2.STAT, ref="unfinished")
        over.wait()

    headers = (("containerd-namespace", NAMESPACE),)
    call = content_pb2_grpc.ContentStub(containers.channel).Write(unfinished(), metadata=headers)
    next(iter(call))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in daemon.log_text(), "the grace has begun")
    os.kill(pid, signal.SIGKILL)
    wait_until((containers.bundles / "web/spool").exists, "its end is kept for later")
    over.set()
    assert daemon.wait_ended() == 0
    daemon.start()
    with EventLog(containers) as events:
        events.wait_for(lambda: events.topics("web") == ["exit"], "told by the next one")
    abort = content_pb2.AbortRequest(ref="unfinished")
    content_pb2_grpc.ContentStub(containers.channel).Abort(abort, metadata=headers)
    containers.remove("web")
