"""What a thousand running containers change for the next one, for lists, memory and recovery: two daemons in one run.

Prints each figure and the ratio peer / pyctrd. It runs in the arena:

    sudo bench/arena .venv/bin/python bench/many.py [--containers N]
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from quick import SETTLE, Daemon, busybox_layer

LAUNCHERS = 4
SAMPLES = 30
READY_LIMIT = 300.0  # seconds
POLL = 0.005


class Server:
    """One daemon under test, and its process."""

    def __init__(self, name: str, variable: str) -> None:
        """The daemon that the arena has started, and tells of in `variable`_ADDRESS and `variable`_START."""
        self.name = name
        self._address = os.environ[f"{variable}_ADDRESS"]
        self._start = os.environ[f"{variable}_START"]
        self._pid_file = Path(f"/run/{name}.pid")
        self.calls = Daemon(name, self._address)

    def memory(self) -> float:
        """Return the daemon's resident memory (MiB)."""
        status = Path(f"/proc/{self._pid()}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def recover(self, running: int) -> float:
        """Kill the daemon, start it again, and return the seconds until it lists so many `running` tasks."""
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(POLL)
        begin = time.perf_counter()
        subprocess.Popen(["sh", "-c", self._start])
        while not self._listens() or Daemon(self.name, self._address).running() != running:
            if time.perf_counter() > begin + READY_LIMIT:
                raise TimeoutError(f"{self.name} does not list its {running} running tasks")
            time.sleep(POLL)
        took = time.perf_counter() - begin
        self.calls = Daemon(self.name, self._address)
        return took

    def _listens(self) -> bool:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            return connection.connect_ex(self._address) == 0

    def _pid(self) -> int:
        return int(self._pid_file.read_text())


def milliseconds(call: Callable[[], object]) -> float:
    """Return the median of SAMPLES calls."""
    samples = []
    for _ in range(SAMPLES):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples) * 1000


def figures(server: Server) -> Iterator[tuple[str, float]]:
    """Yield what depends on how many containers there are, or should not."""
    calls = server.calls
    lives = [calls.lifecycle() for _ in range(SAMPLES)]
    yield "create + start (ms)", statistics.median(life["create + start"] for life in lives) * 1000
    yield "lifecycle (ms)", statistics.median(life["lifecycle"] for life in lives) * 1000
    yield "Containers.List (ms)", milliseconds(calls.containers)
    yield "Tasks.List (ms)", milliseconds(calls.running)
    time.sleep(SETTLE)
    yield "daemon (MiB)", server.memory()


def measure(server: Server, count: int) -> dict[str, float]:
    """Return the figures of one daemon, with none and with `count` containers, which are gone in the end."""
    server.calls.prepare_image(busybox_layer())
    server.calls.lifecycle()
    found = {f"{name}, with none": value for name, value in figures(server)}
    with ThreadPoolExecutor(LAUNCHERS) as pool:
        begin = time.perf_counter()
        names = list(pool.map(lambda _: server.calls.launch(["/bin/busybox", "sleep", "86400"])[0], range(count)))
        found["starting them (s)"] = time.perf_counter() - begin
        found |= {f"{name}, with {count}": value for name, value in figures(server)}
        found["ready after SIGKILL (s)"] = server.recover(count)
        begin = time.perf_counter()
        list(pool.map(server.calls.kill, names))
        found["removing them (s)"] = time.perf_counter() - begin
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containers", type=int, default=1000, help="how many run")
    parser.add_argument("--only", choices=["pyctrd", "containerd"], help="measure one of the two")
    options = parser.parse_args()
    servers = {"pyctrd": "PYCTR", "containerd": "PEER"}
    found = {
        name: measure(Server(name, variable), options.containers)
        for name, variable in servers.items()
        if options.only in (None, name)
    }
    print(f"{'':36}" + "".join(f"{name:>12}" for name in found) + f"{'ratio':>8}")
    for figure in next(iter(found.values())):
        values = [one[figure] for one in found.values()]
        print(f"{figure:36}" + "".join(f"{value:12.2f}" for value in values) + f"{values[-1] / values[0]:8.2f}")


if __name__ == "__main__":
    main()
