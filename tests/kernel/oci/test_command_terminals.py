"""`pyctr-oci run` and `exec --tty` on the caller's own terminal: what is typed, shown, resized and left behind."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from support.oci_bundle import Lab
from support.oci_command import Command, detached
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.root

_SIZE = "busybox stty size"
_UNTIL_RESIZED = f'while [ "$({_SIZE})" != "40 120" ]; do sleep 0.05; done'


def terminal(lab: Lab, oci: Command, how: str, script: str) -> TerminalSession:
    """Run a shell's script in a container, as its init or as an exec, on a new terminal of 31 rows and 97 columns."""
    spec = lab.spec("sh", "-c", script) if how == "run" else lab.spec("sleep", "1000")
    spec["process"]["terminal"] = how == "run"
    bundle = ["--bundle", str(lab.bundle(spec))]
    if how == "run":
        arguments = ["run", *bundle, "c1"]
    else:
        assert oci("run", "-d", *bundle, "c1", **detached()).returncode == 0
        arguments = ["exec", "--tty", "c1", "sh", "-c", script]
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), *arguments]
    # What the caller's terminal is like afterwards is for the caller's shell to say.
    after = f"{shlex.join(line)}; status=$?; stty -a; exit $status"
    return TerminalSession(["/bin/sh", "-c", after], os.environ, size=(31, 97))


@pytest.fixture(params=["run", "exec"])
def how(request: pytest.FixtureRequest) -> str:
    """The two commands that may have a terminal."""
    return str(request.param)


def test_what_is_typed_and_shown_and_the_exit_status(lab: Lab, oci: Command, how: str) -> None:
    script = "tty; echo errors too >&2; read line; echo got $line; exit 7"
    with terminal(lab, oci, how, f"busybox {script}") as session:
        assert "/dev/pts/0\r\nerrors too\r\n" in session.expect("too\r\n")
        session.type("some words\r")
        # Shown once: the caller's terminal is raw, only the container's echoes.
        assert session.expect("got some words\r\n") == "some words\r\ngot some words\r\n"

        assert session.wait() == 7

        modes = session.rest.split()
        assert "icanon" in modes, "the caller's terminal is as it was"
        assert "echo" in modes


def test_the_size_is_the_callers(lab: Lab, oci: Command, how: str) -> None:
    """From the program's first instruction on: it may look at once."""
    with terminal(lab, oci, how, f"{_SIZE}; {_UNTIL_RESIZED}") as session:
        assert session.expect("\r\n") == "31 97\r\n"
        session.resize((40, 120))

        assert session.wait() == 0


def test_an_interrupt_is_the_containers(lab: Lab, oci: Command, how: str) -> None:
    script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    with terminal(lab, oci, how, script) as session:
        session.expect("ready")
        session.type("\x03")
        session.expect("interrupted")

        assert session.wait() == 5


def test_a_process_that_a_signal_ends(lab: Lab, oci: Command) -> None:
    with terminal(lab, oci, "exec", "echo ready; exec cat") as session:
        session.expect("ready\r\n")
        session.type("words\r")
        session.expect("words\r\nwords\r\n")  # it has taken the shell's place, who ignores SIGQUIT
        session.type("\x1c")

        assert session.wait() == 128 + 3


def test_the_end_of_the_session_is_the_end_of_the_relay(lab: Lab, oci: Command) -> None:
    """A process in the background does not keep the command waiting: the kernel hangs the terminal up."""
    with terminal(lab, oci, "exec", "sleep 1000 & echo ready; exit 3") as session:
        session.expect("ready")

        assert session.wait() == 3


def test_a_terminal_whose_caller_has_none(lab: Lab, oci: Command) -> None:
    """The input is no terminal: its bytes are typed, and nothing asks it for a size."""
    spec = lab.spec("sh", "-c", "read line; echo got $line; exit 4")
    spec["process"]["terminal"] = True
    typed = lab.base / "typed"
    typed.write_text("some words\n")
    with typed.open() as file:
        ended = oci("run", "--bundle", str(lab.bundle(spec)), "c1", stdin=file)

    assert (ended.returncode, ended.stdout) == (4, "some words\ngot some words\n")
    assert not Path(oci.root, "c1").exists()
