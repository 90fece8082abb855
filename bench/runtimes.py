"""A benchmark of OCI runtimes: the one in our shim, runc and crun, in turns, in one run. Needs root.

    sudo .venv/bin/python bench/runtimes.py [--turns 20] [--seconds 5] [--path /directory/with/runc]

A figure of ours is what the daemon waits for: a spare shim is asked for, and called over ttrpc. One of the others is
what their commands take, which a shim of containerd's waits for. All make the same container: containerd's default spec
around a busybox, the root file system a directory on tmpfs, no standard streams. Every turn goes once through all
runtimes, so that the machine's noise falls on all alike; printed are medians, and how many times better ours is.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pyctr_sys.mount import MountFlag, mount, umount2
from pyctr_sys.namespaces import Clone, unshare
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.oci.default_spec import default_process, default_spec
from support.shim_harness import PROCESS_URL, Host, ShimClient, host

_ROUNDS = 3  # of throughput
IDLE = 0.05  # seconds of rest before a step, where it is to begin from rest
TRUE, SLEEP = ["/bin/busybox", "true"], ["/bin/busybox", "sleep", "1000"]
Times = dict[str, float]  # seconds by step


def process(arguments: list[str]) -> dict[str, Any]:
    """Return containerd's default process with other arguments."""
    return {**default_process(), "args": arguments, "cwd": "/", "env": ["PATH=/bin"]}


def spec(here: Host, name: str, arguments: list[str], *, network: bool) -> dict[str, Any]:
    """Return containerd's default spec, with a network namespace of its own or without."""
    document = default_spec() | {"ociVersion": "1.0.2"}  # crun 1.8 knows no newer one
    document["process"] = process(arguments)
    document["root"] = {"path": str(here.rootfs)}
    document["linux"]["cgroupsPath"] = f"/{here.group}/{name}"
    if not network:
        kinds = document["linux"]["namespaces"]
        document["linux"]["namespaces"] = [one for one in kinds if one["type"] != "network"]
    return document


class Container(Protocol):
    """One that exists; each call returns the seconds of its steps."""

    def create_and_start(self) -> Times: ...
    def exec(self) -> Times: ...
    def wait(self) -> None: ...
    def kill(self) -> None: ...
    def delete(self) -> Times: ...


class Watch:
    """Tells the time between steps."""

    def __init__(self) -> None:
        """Begin."""
        self.times: Times = {}
        self._last = time.perf_counter()

    def step(self, name: str) -> None:
        """Note what has passed since the last one."""
        now = time.perf_counter()
        self.times[name] = now - self._last
        self._last = now


class Ours:
    """A container of a shim."""

    _asking = threading.Lock()

    def __init__(self, here: Host, name: str, bundle: Path) -> None:
        """Have no shim yet."""
        self._here, self._name, self._bundle = here, name, bundle
        self._client: ShimClient
        self._execs = iter(range(1_000_000))

    def create_and_start(self) -> Times:
        """Ask for a shim and call it."""
        watch = Watch()
        with self._asking:
            self._client, _ = self._here.request(self._name, log_level="warn")
            self._client.takes_events = True
            created = self._client.send("Create", pb.CreateTaskRequest(id=self._name, bundle=str(self._bundle)))
            self._here.reply()
        watch.step("a shim")
        self._client.answer(created)
        watch.step("create")
        self._client.call("Start", pb.StartRequest(id=self._name))
        watch.step("start")
        return watch.times

    def exec(self) -> Times:
        """Run `true` and know its status."""
        name = f"e{next(self._execs)}"
        packed = AnyMessage(type_url=PROCESS_URL, value=json.dumps(process(TRUE)).encode())
        watch = Watch()
        self._client.call("Exec", pb.ExecProcessRequest(id=self._name, exec_id=name, spec=packed))
        watch.step("exec: register")
        self._client.call("Start", pb.StartRequest(id=self._name, exec_id=name))
        watch.step("exec: start")
        ended = self._client.call("Wait", pb.WaitRequest(id=self._name, exec_id=name))
        watch.step("exec: wait")
        assert ended.exit_status == 0
        times = watch.times
        self._client.call("Delete", pb.DeleteRequest(id=self._name, exec_id=name))
        return times

    def wait(self) -> None:
        """Wait for its end."""
        self._client.call("Wait", pb.WaitRequest(id=self._name))

    def kill(self) -> None:
        """End it."""
        self._client.call("Kill", pb.KillRequest(id=self._name, signal=9))
        self.wait()

    def delete(self) -> Times:
        """Remove it; the shim is free for another one."""
        watch = Watch()
        self._client.call("Delete", pb.DeleteRequest(id=self._name))
        watch.step("delete")
        self._client.call("Shutdown", pb.ShutdownRequest(id=self._name))
        self._client.close()
        return watch.times


class Theirs:
    """A container of a runtime that is a program."""

    def __init__(self, program: str, root: Path, name: str, bundle: Path) -> None:
        """Keep its state in `root`."""
        self._command = [program, "--root", str(root)]
        self._name, self._bundle = name, bundle

    def _run(self, *arguments: str) -> None:
        null = subprocess.DEVNULL
        # Errors go to a file: a pipe would be waited for until the container has ended.
        with (self._bundle / "errors").open("w+b") as errors:
            done = subprocess.run([*self._command, *arguments], stdin=null, stdout=null, stderr=errors, check=False)
            errors.seek(0)
            assert done.returncode == 0, f"{self._command} {arguments}: {errors.read().decode()}"

    def create_and_start(self) -> Times:
        """Run both commands."""
        watch = Watch()
        self._run("create", "--bundle", str(self._bundle), self._name)
        watch.step("create")
        self._run("start", self._name)
        watch.step("start")
        return watch.times

    def exec(self) -> Times:
        """Run `true` and know its status."""
        watch = Watch()
        self._run("exec", self._name, *TRUE)
        watch.step("exec")
        return watch.times

    def wait(self) -> None:
        """Nothing of ours to do: `delete --force` ends what has not."""

    def kill(self) -> None:
        """The same."""

    def delete(self) -> Times:
        """Remove it, whether it runs or not."""
        watch = Watch()
        self._run("delete", "--force", self._name)
        watch.step("delete")
        return watch.times


class Runtime:
    """Makes containers."""

    def __init__(self, name: str, here: Host, program: str = "") -> None:
        """Be ours, unless there is a program."""
        self.name, self._here, self._program = name, here, program
        self._numbers = iter(range(1_000_000))

    def container(self, arguments: list[str], *, network: bool) -> Container:
        """Make a bundle."""
        name = f"{self.name}-{next(self._numbers)}"
        bundle = self._here.bundle(name, spec(self._here, name, arguments, network=network))
        if self._program:
            return Theirs(self._program, self._here.root / self.name, name, bundle)
        return Ours(self._here, name, bundle)


Samples = dict[tuple[str, str], list[float]]  # milliseconds by figure and runtime


def take_turns(runtimes: list[Runtime], turns: int, *, network: bool, idle: float) -> Samples:
    """Create, start, execute in and delete a container per turn and runtime."""
    samples: Samples = defaultdict(list)
    for _ in range(turns):
        for runtime in runtimes:
            container = runtime.container(SLEEP, network=network)
            time.sleep(idle)
            made = container.create_and_start()
            time.sleep(idle)
            executed = container.exec()
            container.kill()
            deleted = container.delete()
            whole = {"create + start": sum(made.values()), "exec of true": sum(executed.values())}
            for figure, seconds in {**whole, **made, **executed, **deleted}.items():
                samples[figure, runtime.name].append(seconds * 1000)
    return samples


def lives_per_second(runtime: Runtime, workers: int, seconds: float) -> float:
    """Let so many containers of `true` at once be created, started, waited for and deleted, one after the other."""
    return _throughput(workers, seconds, lambda: _live(runtime))


def _live(runtime: Runtime) -> None:
    container = runtime.container(TRUE, network=True)
    container.create_and_start()
    container.wait()
    container.delete()


def execs_per_second(runtime: Runtime, workers: int, seconds: float) -> float:
    """Execute `true` in so many containers at once, in each one after the other."""
    containers = [runtime.container(SLEEP, network=True) for _ in range(workers)]
    for container in containers:
        container.create_and_start()
    idle = list(containers)
    found = _throughput(workers, seconds, lambda: None, jobs=[one.exec for one in idle])
    for container in containers:
        container.kill()
        container.delete()
    return found


def _throughput(workers: int, seconds: float, job: Any, jobs: list[Any] | None = None) -> float:
    """Return how often a second threads call their job."""
    counts = [0] * workers
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        call = jobs[number] if jobs else job
        while time.monotonic() < end:
            call()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - begun)


@contextlib.contextmanager
def arena() -> Iterator[Host]:
    """Be in a mount namespace with the state on a tmpfs, and alone with version 1 of cgroups where there are both.

    crun wants that, and makes files nevertheless where version 2 would be.
    """
    unshare(Clone.NEWNS)
    mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
    mount("bench", "/run", "tmpfs", 0, "mode=755")
    both = Path("/sys/fs/cgroup/unified/cgroup.controllers").exists()
    if both:
        umount2("/sys/fs/cgroup/unified")
    with host() as here:
        if both:
            mount("bench", "/sys/fs/cgroup/unified", "tmpfs", 0, "mode=755")
        try:
            yield here
        finally:
            if both:
                umount2("/sys/fs/cgroup/unified")


def report(title: str, samples: Samples, names: list[str], *, times: bool = True) -> None:
    """Print medians, and how many times as good ours is: less, if they are times, or more, if they are counts."""
    print(f"\n{title}\n")
    others = names[1:]
    print(f"| figure | {' | '.join(names)} | {' | '.join(f'to {name}' for name in others)} |")
    print(f"| --- |{' --- |' * (len(names) + len(others))}")
    for figure in dict.fromkeys(figure for figure, _ in samples):
        medians = {name: statistics.median(samples[figure, name]) for name in names if (figure, name) in samples}
        cells = [f"{medians[name]:.1f}" if name in medians else "" for name in names]
        ours = medians.get(names[0])
        ratios = [
            f"{medians[name] / ours if times else ours / medians[name]:.1f}" if ours and name in medians else ""
            for name in others
        ]
        print(f"| {figure} | {' | '.join(cells)} | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="of each figure")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of throughput")
    parser.add_argument("--path", default="", help="directories to look for runtimes in first")
    options = parser.parse_args()
    search = os.pathsep.join(filter(None, (options.path, os.environ["PATH"], "/usr/sbin")))
    with arena() as here:
        runtimes = [Runtime("pyctr", here)]
        for name in ("runc", "crun"):
            if program := shutil.which(name, path=search):
                version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
                print(f"{name}: {program}: {version.splitlines()[0]}", flush=True)
                runtimes.append(Runtime(name, here, program))
        names = [runtime.name for runtime in runtimes]
        take_turns(runtimes, 2, network=True, idle=0)  # whatever is done once is done
        for network in (True, False):
            for idle in (0.0, IDLE):
                samples = take_turns(runtimes, options.turns, network=network, idle=idle)
                rest = f"after {IDLE * 1000:.0f} ms of rest" if idle else "back to back"
                space = "a network namespace of its own" if network else "the host's network"
                report(f"{space}, {rest}; ms, medians of {options.turns}", samples, names)
        samples = defaultdict(list)
        for workers in (1, 2, 8) * _ROUNDS:
            for runtime in runtimes:
                found = lives_per_second(runtime, workers, options.seconds)
                samples[f"lives a second, {workers} at once", runtime.name].append(found)
                found = execs_per_second(runtime, workers, options.seconds)
                samples[f"execs a second, {workers} containers", runtime.name].append(found)
        report(f"throughput, medians of {_ROUNDS}", samples, names, times=False)


if __name__ == "__main__":
    main()
