"""pyctr, ctr and nerdctl, on terminals and on pipes, while the daemon below them is replaced: who is attached stays so.

Sessions are opened on one daemon, used on the next and ended on the one after that.
"""

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final, Protocol

import pytest

from support.ctr_client import Ctr, namespace_with, program
from support.daemon_process import DEADLINE, DaemonProcess
from support.footprint import unchanged
from support.images import busybox_with_applets
from support.kept_versions import CURRENT, KEPT, Environment, Version
from support.nerdctl import NAME, Nerdctl, leaving_nothing, nerdctl_with_image
from support.pyctr_command import running_pyctr
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ANSWERS: Final = 'while read -r line; do echo "got $line"; [ "$line" = end ] && exit 43; done; exit 9'
COUNTS: Final = "i=0; until [ -e /stop ]; do i=$((i + 1)); echo $i; sleep 0.02; done; exit 5"
CHANGES: Final = [CURRENT, *(pytest.param(version, marks=pytest.mark.full) for version in KEPT)]


class Changes:
    """A daemon's programs: at first those of some version, in turn with the current ones."""

    def __init__(self, version: Version, folder: Path) -> None:
        self._environment = Environment(folder)
        self._version = version
        self._environment.install(version)
        self.python = self._environment.python

    def forth(self, daemon: DaemonProcess) -> None:
        self._environment.install(CURRENT)
        daemon.upgrade()
        # Earlier versions say that it is done when the new program serves. When this is answered, all is loaded.
        daemon.ctr("images", "ls")

    def back(self, daemon: DaemonProcess) -> None:
        """Go back to the version before, or once more to the current one if that one does not know our database."""
        if self._version.schema == CURRENT.schema:
            self._environment.install(self._version)
        daemon.upgrade()

    def checked(self, check: AbstractContextManager[None]) -> AbstractContextManager[None]:
        """Return that check of what is left; or none for versions that differ in what they have."""
        return check if self._version == CURRENT else nullcontext()


@pytest.fixture(params=CHANGES, ids=lambda version: version.name)
def changes(request: pytest.FixtureRequest, tmp_path: Path) -> Changes:
    return Changes(request.param, tmp_path / "environment")


class Session(Protocol):
    """Somebody who is attached to a program; `ends` has that end with 43 and returns his own status and last words."""

    def goes_on(self) -> None: ...

    def ends(self) -> tuple[int, str]: ...


class Shell:
    """A shell on a terminal."""

    def __init__(self, terminal: TerminalSession) -> None:
        self._terminal = terminal
        terminal.type("\n")
        terminal.expect("# ")

    def goes_on(self) -> None:
        """What is typed arrives, what is printed comes, and the terminal's size is told."""
        self._terminal.type("until [ \"$(stty size)\" = '17 40' ]; do sleep 0.1; done; echo si'z'ed\n")
        self._terminal.resize_until((17, 40), "sized")
        self._terminal.resize((31, 97))

    def ends(self) -> tuple[int, str]:
        self._terminal.type("exit 43\n")
        return self._terminal.wait(), self._terminal.rest


class Pipe:
    """A program that answers each line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.goes_on()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"got {line}\n"

    def goes_on(self) -> None:
        self._say("one")

    def ends(self) -> tuple[int, str]:
        self._say("end")
        said = self._process.communicate(timeout=DEADLINE)[0]
        return self._process.returncode, said


def test_sessions_of_pyctr(changes: Changes) -> None:
    """run, exec and attach."""
    with (
        running_pyctr(("sh", "sleep", "stty"), python=changes.python) as pyctr,
        changes.checked(unchanged(pyctr.daemon)),
        ExitStack() as stack,
    ):
        pyctr("run", "-d", "--network", "none", "--name", "sleeper", "demo", "sleep", "1000")
        pyctr("run", "-dit", "--network", "none", "--name", "left", "demo", "sh")
        sessions = [
            Shell(stack.enter_context(pyctr.terminal(*words)))
            for words in (
                ("run", "--rm", "-it", "--network", "none", "demo", "sh"),
                ("exec", "-it", "sleeper", "sh"),
                ("attach", "left"),
            )
        ]

        changes.forth(pyctr.daemon)
        for session in sessions:
            session.goes_on()
        changes.back(pyctr.daemon)

        assert [session.ends()[0] for session in sessions] == [43, 43, 43]
        assert pyctr("wait", "left") == "43\n"
        pyctr("rm", "-f", "left", "sleeper")
        assert pyctr("ps", "-aq") == ""


@pytest.mark.peer
@pytest.mark.parametrize("version", [pytest.param("1.6", marks=pytest.mark.full), "2"])
def test_sessions_of_ctr(changes: Changes, version: str, tmp_path: Path) -> None:
    """run, exec and attach."""
    with (
        DaemonProcess(python=changes.python) as daemon,
        namespace_with(daemon, NAME, busybox_with_applets()) as namespace,
        changes.checked(unchanged(daemon)),
        ExitStack() as stack,
    ):
        ctr = Ctr(daemon, program(version), namespace)
        ctr("run", "--detach", "--null-io", NAME, "sleeper", "sleep", "1000")
        with ctr.background("run", "--fifo-dir", str(tmp_path), NAME, "left", "sh", "-c", ANSWERS) as first:
            Pipe(first)
            first.kill()
        sessions: list[Session] = [
            Shell(stack.enter_context(ctr.terminal(*words)))
            for words in (
                ("run", "--rm", "--tty", NAME, "shell", "sh"),
                ("tasks", "exec", "--tty", "--exec-id", "shell", "sleeper", "sh"),
            )
        ]
        sessions += [
            Pipe(stack.enter_context(ctr.background(*words)))
            for words in (
                ("run", "--rm", NAME, "pipe", "sh", "-c", ANSWERS),
                ("tasks", "exec", "--exec-id", "pipe", "sleeper", "sh", "-c", ANSWERS),
                ("tasks", "attach", "left"),
            )
        ]

        changes.forth(daemon)
        for session in sessions:
            session.goes_on()
        changes.back(daemon)

        assert [session.ends()[0] for session in sessions] == [43] * len(sessions)
        for id in ("left", "sleeper"):
            ctr.run("tasks", "rm", "--force", id)
            ctr("containers", "rm", id)
        assert ctr("containers", "ls", "-q") == ""


@pytest.mark.peer
def test_sessions_of_nerdctl(changes: Changes) -> None:
    """run, exec, attach, logs --follow and wait."""
    with (
        nerdctl_with_image(python=changes.python) as nerdctl,
        changes.checked(leaving_nothing(nerdctl)),
        ExitStack() as stack,
    ):
        nerdctl.sleeper("sleeper")
        with nerdctl.terminal("run", "-it", "--name", "left", NAME, "sh") as first:
            first.expect("# ")
            first.type("\x10\x11")  # which detaches
            first.wait()
        nerdctl.sleeper("counts", script=COUNTS)
        sessions: list[Session] = [
            Shell(stack.enter_context(nerdctl.terminal(*words)))
            for words in (
                ("run", "--rm", "-it", "--name", "shell", NAME, "sh"),
                ("exec", "-it", "sleeper", "sh"),
                ("attach", "left"),
            )
        ]
        sessions += [
            Pipe(stack.enter_context(piped(nerdctl, *words)))
            for words in (
                ("run", "--rm", "-i", "--name", "pipe", NAME, "sh", "-c", ANSWERS),
                ("exec", "-i", "sleeper", "sh", "-c", ANSWERS),
            )
        ]
        waiter = stack.enter_context(piped(nerdctl, "wait", "sleeper"))
        follower = stack.enter_context(piped(nerdctl, "logs", "--follow", "counts"))
        assert follower.stdout is not None
        assert follower.stdout.readline() == "1\n"

        changes.forth(nerdctl.daemon)
        for session in sessions:
            session.goes_on()
        changes.back(nerdctl.daemon)

        ends = [session.ends() for session in sessions]
        assert [status for status, _ in ends] == [43, 1, 43, 43, 1]
        for execs in (1, 4):  # nerdctl tells how these ended in words only
            assert "exec failed with exit code 43" in ends[execs][1]
        nerdctl("exec", "counts", "touch", "/stop")
        rest = follower.stdout.read().splitlines()
        assert rest == [str(number + 2) for number in range(len(rest))]
        assert follower.wait(DEADLINE) == 0
        assert nerdctl("logs", "counts").splitlines()[1:] == rest
        assert nerdctl("wait", "counts") == "5\n"
        nerdctl("kill", "sleeper")
        assert waiter.communicate(timeout=DEADLINE)[0] == "137\n"
        assert nerdctl("wait", "left") == "43\n"
        nerdctl("rm", "left", "counts", "sleeper")


@contextmanager
def piped(nerdctl: Nerdctl, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a command of nerdctl on pipes while the context lasts."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        nerdctl.command(*arguments), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True,
        env=nerdctl.environment,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
