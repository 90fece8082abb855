"""A real ctr on a private daemon: Debian's 1.6 or a newer one, with the daemon killed in between if a test wants."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Final

from . import peers
from .background import background
from .daemon_process import DEADLINE, DaemonProcess
from .footprint import Footprint, cgroups_below, remove_cgroup
from .images import BuiltImage, write_archive
from .terminal_session import TerminalSession

DEBIANS: Final = shutil.which("ctr")


def newer_ctr() -> str | None:
    """Return the path of a ctr of containerd 2, or None."""
    found = peers.look_for("ctr", at_least="2")
    return str(found) if found else None


def program(version: str) -> str:
    """Return the path of a ctr of "1.6", which is Debian's, or "2"; skip the test where there is none."""
    if version == "1.6" and DEBIANS:
        return DEBIANS
    return str(peers.find("ctr", at_least=version))


@contextmanager
def namespace_with(daemon: DaemonProcess, name: str, image: BuiltImage, *snapshotters: str) -> Iterator[str]:
    """Yield a namespace with an image in it; of its own, because containers' cgroups are below one of that name."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    archive = write_archive(daemon.base / f"{namespace}.tar", {name: image})
    for snapshotter in snapshotters or ("overlayfs",):
        daemon.ctr("images", "import", "--snapshotter", snapshotter, str(archive), namespace=namespace)
    archive.unlink()
    yield namespace
    assert cgroups_below(namespace) == []
    remove_cgroup(namespace)


@contextmanager
def leaving_nothing(ctr: "Ctr") -> Iterator["Ctr"]:
    """Check that what happens in the context leaves nothing; remove what a failure left, for the next test's sake."""
    before = Footprint(ctr.daemon)
    yield ctr
    left = ctr("containers", "ls", "-q").split()
    for id in left:
        ctr.run("tasks", "rm", "--force", id)
        ctr.run("containers", "rm", id)
    assert left == []
    before.assert_unchanged()


class Ctr:
    """One program in one namespace."""

    def __init__(self, daemon: DaemonProcess, program: str, namespace: str, *, killing: bool = False) -> None:
        """Run `program`; if `killing`, `next_daemon` kills the daemon and starts another one."""
        self.daemon = daemon
        self.namespace = namespace
        self._program = program
        self._killing = killing

    def next_daemon(self) -> None:
        """Go on with another daemon, if a test is about that."""
        if self._killing:
            self.daemon.restart()

    def run(self, *arguments: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> "subprocess.CompletedProcess[str]":
        """Run a command, whatever comes of it."""
        return subprocess.run(
            self.command(*arguments), stdin=stdin, capture_output=True, text=True, timeout=2 * DEADLINE, check=False
        )

    def __call__(self, *arguments: str) -> str:
        """Run a command that succeeds, and return its output."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.daemon.log_text()[-4000:]}"
        return done.stdout

    def rows(self, *arguments: str) -> list[list[str]]:
        """Return the words of the table that a command prints, line by line, without its heading."""
        return [line.split() for line in self(*arguments).splitlines()[1:] if line.strip()]

    def terminal(self, *arguments: str) -> TerminalSession:
        """Run a command on a terminal of 31 rows and 97 columns."""
        return TerminalSession(self.command(*arguments), dict(os.environ), (31, 97))

    def background(self, *arguments: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        """Run a command with pipes while the context lasts, and kill it if it has not ended by then."""
        return background(self.command(*arguments), stdin=subprocess.PIPE)

    def command(self, *arguments: str) -> list[str]:
        """Return the words that run it."""
        return [self._program, "--address", str(self.daemon.address), "--namespace", self.namespace, *arguments]
