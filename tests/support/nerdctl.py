"""A real nerdctl 2 on a private daemon, on a machine of its own; with one image.

with nerdctl_with_image() as nerdctl:
    with leaving_nothing(nerdctl):
        nerdctl("run", "--rm", NAME, "true")
"""

import json
import os
import re
import subprocess
import tarfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from . import peers
from .background import background
from .daemon_process import DEADLINE, DaemonProcess
from .footprint import Footprint, cgroups_below, remove_cgroup
from .images import busybox_with_applets, write_layout
from .pod_networks import REAL_PLUGINS, command
from .private_machine import Machine, private_machine
from .terminal_session import TerminalSession

NAME: Final = "example.com/busybox:v1"
_TIMEOUT: Final = 4 * DEADLINE  # seconds for one command
# What CNI plugins keep for good, the address that was given last and a file to lock; and FIFOs of nerdctl, which leaves
# those of a process that it does not wait for.
_OTHERS_OWN: Final = re.compile(
    r"/var/lib/cni/networks/[^/]+/(last_reserved_ip\.0|lock)|/run/xtables\.lock|/run/containerd/fifo/.*"
)
_OWN_NETWORKS: Final = ["bridge", "host", "none"]


class Nerdctl:
    """The command, in one namespace of a daemon that runs on a machine of its own."""

    def __init__(self, daemon: DaemonProcess, machine: Machine, namespace: str) -> None:
        """Have `daemon` asked; skips the test where there is no nerdctl."""
        self.daemon = daemon
        self.machine = machine
        self.namespace = namespace
        self.data = daemon.base / "nerdctl"
        # Files that are not there: the configuration of whoever runs the test is not the test's.
        self.environment = {**os.environ, "NERDCTL_TOML": f"{daemon.base}/nerdctl.toml", "HOME": str(daemon.base)}
        self._program = peers.find("nerdctl")

    def command(self, *arguments: str) -> list[str]:
        """Return the words that run it."""
        return [
            *self.machine.wrapper, str(self._program),
            "--address", str(self.daemon.address),
            "--namespace", self.namespace,
            "--data-root", str(self.data),
            "--cni-path", str(REAL_PLUGINS),
            "--cni-netconfpath", f"{self.daemon.base}/net.d",
            "--insecure-registry",
            *arguments,
        ]  # fmt: skip

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, whatever comes of it."""
        return subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False,
            env=self.environment,
        )  # fmt: skip

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that succeeds, and return its output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.daemon.log_text()[-4000:]}"
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """Run a command that does not succeed, and return what it says."""
        done = self.run(*arguments)
        assert done.returncode != 0, f"{arguments}: {done.stdout}"
        return done.stderr

    def inspect(self, name: str, kind: str = "container") -> Any:
        """Return what `inspect` says of one thing."""
        [document] = json.loads(self(kind, "inspect", name))
        return document

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what a command lists, line by line."""
        return [json.loads(line) for line in self(*arguments, "--format", "{{json .}}").splitlines()]

    def terminal(self, *arguments: str) -> TerminalSession:
        """Run a command on a terminal of 31 rows and 97 columns."""
        return TerminalSession(self.command(*arguments), self.environment, (31, 97))

    def sleeper(self, name: str, *options: str, script: str = "exec sleep 1000") -> str:
        """Run a container in the background, by default one that sleeps, and return its id."""
        words = (*options, NAME, "sh", "-c", script)
        return self("run", "--detach", "--name", name, "--stop-signal", "KILL", *words).strip()

    def pid(self, name: str) -> int:
        """Return the pid of a container's first process."""
        pid: int = self.inspect(name)["State"]["Pid"]
        return pid

    def status(self, name: str) -> str:
        """Return "running", "paused" or the like."""
        status: str = self.inspect(name)["State"]["Status"]
        return status

    @contextmanager
    def background(self, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
        """Run a command while the context lasts and end it then; what it writes is in a file."""
        output = self.daemon.base / "output"
        with (
            output.open("wb") as file,
            background(self.command(*arguments), self.environment, stdout=file) as process,
        ):
            yield process, output


@contextmanager
def nerdctl_with_image(**options: Any) -> Iterator[Nerdctl]:
    """Yield nerdctl on a new daemon, with DaemonProcess's `options`, that has the image NAME.

    When the daemon ends nothing may be left of it.
    """
    peers.find("nerdctl")
    if not REAL_PLUGINS.is_dir():
        pytest.skip("no CNI plugins are installed (Debian: containernetworking-plugins)")
    with private_machine() as machine:
        mounts = machine.mounts()
        with DaemonProcess(wrapper=machine.wrapper, **options) as daemon:
            nerdctl = Nerdctl(daemon, machine, f"test-{uuid.uuid4().hex[:8]}")
            write_layout(daemon.base / "layout", {NAME: busybox_with_applets()})
            with tarfile.open(daemon.base / "image.tar", "w") as archive:
                archive.add(daemon.base / "layout", ".")
            nerdctl("load", "--input", f"{daemon.base}/image.tar")
            # It does not always say so: what it is told last, it may hear after it was told that all is done.
            assert nerdctl("images", "--format", "{{.Repository}}:{{.Tag}}") == f"{NAME}\n"
            nerdctl("run", "--rm", NAME, "true")  # the first one makes the bridge network
            yield nerdctl
            nerdctl("rmi", NAME)
            assert nerdctl("images", "--quiet") == ""
            assert cgroups_below(nerdctl.namespace) == []
            remove_cgroup(nerdctl.namespace)
        left = set(machine.mounts()) - set(mounts)  # what is there no more has been removed by somebody else
        assert not left, left


@contextmanager
def leaving_nothing(nerdctl: Nerdctl) -> Iterator[None]:
    """Check that what happens in the context leaves nothing but the image; end what a failure left."""
    before = Footprint(nerdctl.daemon)
    try:
        yield
    finally:
        left = nerdctl("ps", "--all", "--quiet", "--no-trunc").split()
        if left:
            nerdctl("rm", "--force", *left)
    assert left == []
    assert nerdctl("volume", "ls", "--quiet") == ""
    assert [row["Name"] for row in nerdctl.rows("network", "ls")] == _OWN_NETWORKS
    assert nerdctl("images", "--format", "{{.Repository}}:{{.Tag}}").split() == [NAME]
    assert [path for kind in ("containers", "names", "etchosts") for path in nerdctl.data.glob(f"*/{kind}/*/*")] == []
    assert [path for path in nerdctl.machine.files() if not _OTHERS_OWN.fullmatch(path)] == []
    before.assert_unchanged()


def page(address: str) -> str | None:
    """Return what a web server says, None if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
            return str(answer.read(), "utf-8")
    except OSError:
        return None


def addresses(pid: int) -> dict[str, list[str]]:
    """Return the IPv4 addresses of each link in a process's network."""
    shown = json.loads(command("ip", "-json", "-4", "address", netns=Path(f"/proc/{pid}/ns/net")))
    return {link["ifname"]: [one["local"] for one in link["addr_info"]] for link in shown}
