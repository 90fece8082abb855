"""A dockerd on a daemon with containerd's API, with networks of its own, killed and started at will.

    with own_host(), DaemonProcess() as daemon, private_dockerd(daemon.address) as docker:
        docker("run", "--rm", IMAGE, "true")
        docker.kill(); docker.start()

It is Debian's, which has a store of images of its own, unless another program is named.

Whatever it does to networks and firewalls it does in the network namespace of this thread, which has to be one of its
own. The other daemon is to be in the same: a current dockerd leaves containers with the host's network to that one's.
Leaving the context asserts that no container, process, mount or cgroup is left.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

from . import peers
from .daemon_process import DEADLINE, wait_until
from .engines import Client, Ground, installed, make_root, private_ground

IMAGE: Final = "busybox:1"
_STAGES: Final = """\
FROM {image} AS first
ENV A=b
RUN echo $A >/made && id -u >>/made
FROM {image}
COPY --from=first /made /x/
COPY sent /x/
{steps}
WORKDIR /x
USER 1000
CMD ["sh", "-c", "cat {shown}; id -u"]
"""
_APPLETS: Final = ("grep", "httpd", "mkdir", "rm", "tail", "touch", "wget")
START_TIMEOUT: Final = 120.0  # seconds; it waits for its own child processes and for us


class Dockerd(Client):
    """Its command line, and its daemon, which keeps containers alive without itself."""

    def __init__(self, ground: Ground, containerd: Path, words: Sequence[str], config: Mapping[str, Any]) -> None:
        """Use the program that `words` start on the socket `containerd`."""
        program = installed("docker", "docker.io")
        base = ground.base
        own = {"DOCKER_CONFIG": str(base), "DOCKER_BUILDKIT": "0"}  # the builder that every dockerd has
        super().__init__(ground, [program, "--host", f"unix://{base}/d.sock"], own)
        self._daemon = [*words, "--containerd", str(containerd)]
        self._daemon += ["--data-root", f"{base}/data", "--exec-root", f"{base}/exec", "--pidfile", f"{base}/pid"]
        self._daemon += ["--host", f"unix://{base}/d.sock", "--cgroup-parent", f"/{ground.cgroup}", "--live-restore"]
        self._daemon += ["--default-ulimit", "nofile=1024:1024"]
        self._daemon += ["--config-file", f"{base}/daemon.json"]
        (base / "daemon.json").write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon; return when it answers."""
        assert self._process is None
        pidfile = self.ground.base / "pid"
        pidfile.unlink(missing_ok=True)  # one that was killed leaves it, and its number may be in use again
        with (self.ground.base / "log").open("ab") as log:
            self._process = subprocess.Popen(self._daemon, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, "dockerd answers", START_TIMEOUT)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"dockerd ended:\n{self.log()}"
        return self.run("version").returncode == 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            process.wait(2 * DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"dockerd does not stop:\n{self.log()}") from None

    def kill(self) -> None:
        """End the daemon with SIGKILL; the child that forwards a port ends with it."""
        self.stop(signal.SIGKILL)

    def inspect(self, name: str) -> dict[str, Any]:
        """Return all that it knows of a container."""
        found: dict[str, Any] = json.loads(self("inspect", "--type", "container", name))[0]
        return found

    def pid(self, name: str) -> int:
        """Return the process id of a container's first process."""
        return int(self.inspect(name)["State"]["Pid"])

    def status(self, name: str) -> str:
        """Return "running", "paused", "exited 3" or the like."""
        state = self.inspect(name)["State"]
        return f"exited {state['ExitCode']}" if state["Status"] == "exited" else str(state["Status"])

    def exec_pids(self, name: str) -> list[int]:
        """Return the process ids of a container's execs, 0 for one whose start is not answered yet.

        The command line does not tell them.
        """
        pids = []
        for number in self.inspect(name)["ExecIDs"] or []:
            connection = http.client.HTTPConnection("docker", timeout=DEADLINE)
            with closing(connection), socket.socket(socket.AF_UNIX) as connection.sock:
                connection.sock.connect(str(self.ground.base / "d.sock"))
                connection.request("GET", f"/exec/{number}/json")
                pids.append(int(json.load(connection.getresponse())["Pid"]))
        return pids

    def started(self, name: str, *words: str) -> int:
        """Start a container in the background and return the process id of its first process."""
        self("run", "--detach", "--name", name, *words)
        return self.pid(name)

    def end(self) -> None:
        """End the daemon if it runs, after a test that failed too."""
        if self._process is not None:
            self.run("rm", "--force", *self.run("ps", "--all", "--quiet").stdout.split())
            self.stop()


@contextmanager
def private_dockerd(containerd: Path, program: Path | None = None, **config: Any) -> Iterator[Dockerd]:
    """Yield a dockerd with one image, `program` or Debian's; `config` is what its daemon.json says."""
    # Debian's lowers its own score unless it is told not to, which not every machine allows.
    words = [str(program)] if program else [installed("dockerd", "docker.io"), "--oom-score-adjust", "0"]
    with private_ground() as ground:
        docker = Dockerd(ground, containerd, words, config)
        try:
            docker.start()
            _import_image(docker)
            yield docker
            assert docker("ps", "--all", "--quiet") == ""
        finally:
            docker.end()
            _unmount(ground)


def moby(containerd: Path) -> AbstractContextManager[Dockerd]:
    """Return a current dockerd, whose images are containerd's; skips the test where there is none."""
    config = {"features": {"containerd-snapshotter": True}, "userland-proxy": False}  # there is Debian's proxy only
    return private_dockerd(containerd, peers.find("dockerd-28"), **config)


def two_stages(*steps: str, shown: str = "made sent") -> str:
    """Return a Dockerfile that wants a file `sent`; run, its image shows files of its directory /x.

    `steps` are lines of its second stage. The file `made` of the first one says "b" and 0, root's uid.
    """
    return _STAGES.format(image=IMAGE, steps="\n".join(steps), shown=shown)


def command(*words: str) -> str:
    """Run a command of this machine that succeeds, and return its output."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout


def in_netns_of(pid: int, *words: str) -> str:
    """Run a command of this machine in the network namespace of a process, and return its output."""
    return command("nsenter", f"--net=/proc/{pid}/ns/net", *words)


def _import_image(docker: Dockerd) -> None:
    root, archive = make_root(docker.ground.base / "image"), docker.ground.base / "image.tar"
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    command("tar", "--create", "--file", str(archive), "--directory", str(root), ".")
    docker("import", str(archive), IMAGE)


def _unmount(ground: Ground) -> None:
    """Unmount what dockerd leaves: its directory itself, and the network namespace of containers with the host's."""
    left: Sequence[str] = [
        mount for mount in ground.mounts() if mount in (f"{ground.base}/data", f"{ground.base}/exec/netns/default")
    ]
    for mount in left:
        command("umount", mount)


def touch(pid: int, path: str) -> None:
    """Make an empty file in the file system of a process."""
    os.close(os.open(f"/proc/{pid}/root{path}", os.O_CREAT | os.O_WRONLY, 0o644))
