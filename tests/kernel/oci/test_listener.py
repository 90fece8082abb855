"""seccomp's SCMP_ACT_NOTIFY: an agent is handed the listener and decides."""

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import detached, in_place
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import Lab, Spec, process, read_all, wait

pytestmark = pytest.mark.root
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_NOTIFICATION_BYTES, _ANSWER = 80, struct.Struct("=QqiI")  # id, value, error, flags
_CONTINUE = 1
_MKDIR = 83


class Agent:
    """Listens for one listener at a time; answers mkdir with 123 as its error, lets everything else go on.

    A process of its own: a runtime has one thread. What it is told and asked it passes on as lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._states: list[Spec] = []
        self._calls: list[int] = []
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(path))
            server.listen()
            self._pid = os.fork()
            if self._pid == 0:
                with contextlib.suppress(OSError):
                    self._accept(server)
                os._exit(1)
        os.close(self._write_fd)

    @property
    def states(self) -> list[Spec]:
        """What it was told of processes so far."""
        self._look()
        return self._states

    @property
    def calls(self) -> list[int]:
        """The numbers of the calls that it was asked about so far."""
        self._look()
        return self._calls

    def _look(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while line := os.read(self._read_fd, 1 << 16):
                for text in line.splitlines():
                    found = json.loads(text)
                    (self._calls if isinstance(found, int) else self._states).append(found)

    def _tell(self, found: Any) -> None:
        os.write(self._write_fd, json.dumps(found).encode() + b"\n")  # in one piece, as it is less than PIPE_BUF

    def _accept(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            with connection:
                data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
                while chunk := connection.recv(65536):
                    data += chunk
            self._tell(json.loads(data))
            threading.Thread(target=self._answer, args=(fds[0],)).start()

    def _answer(self, listener_fd: int) -> None:
        poll = select.poll()
        poll.register(listener_fd, select.POLLIN)
        with contextlib.suppress(OSError):  # ENOENT: the process has ended while it was asked about
            # Without looking, receiving waits for ever on some kernels when nobody is left to be asked about.
            while poll.poll()[0][1] == select.POLLIN:
                notification = array.array("B", bytes(_NOTIFICATION_BYTES))
                fcntl.ioctl(listener_fd, _RECEIVE, notification)
                identity, _pid, _flags, number = struct.unpack_from("=QIIi", notification)
                self._tell(number)
                error, flags = (-123, 0) if number == _MKDIR else (0, _CONTINUE)
                fcntl.ioctl(listener_fd, _SEND, array.array("B", _ANSWER.pack(identity, 0, error, flags)))
        os.close(listener_fd)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read_fd)


@pytest.fixture
def agent(lab: Lab) -> Iterator[Agent]:
    if os.uname().machine != "x86_64":
        pytest.skip("knows the system calls of x86-64 only")
    made = Agent(lab.base / "agent")
    yield made
    lab.close()  # the listener hangs up when nobody is left to listen to
    made.close()


def asking(spec: Spec, path: Path, **profile: Any) -> Spec:
    rules = [{"names": ["mkdir", "read"], "action": "SCMP_ACT_NOTIFY"}]
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": rules,
        "listenerPath": str(path),
        "listenerMetadata": "for the agent",
        **profile,
    }
    return spec


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("way", ["in place", "by a fork"])
def test_the_agent_decides(
    lab: Lab, agent: Agent, no_new_privileges: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "by a fork":
        monkeypatch.setattr(in_place, "suits", lambda _request: False)
    spec = asking(lab.spec("mkdir", "/tmp/x"), agent.path)
    spec["annotations"] = {"a": "b"}
    spec["process"]["noNewPrivileges"] = no_new_privileges
    container = lab.create(spec)
    assert (container.waiting is not None) == (way == "in place")

    container.start()

    assert wait(container.pidfd) == 1
    assert not Path(f"{container.bundle}/rootfs/tmp/x").exists()
    assert _MKDIR in agent.calls
    (state,) = agent.states
    assert (state["fds"], state["pid"], state["metadata"]) == (["seccompFd"], container.pid, "for the agent")
    inner = state["state"]
    assert (inner["id"], inner["pid"], inner["annotations"]) == (container.id, container.pid, {"a": "b"})
    assert inner["status"] == "created"
    assert state["ociVersion"] == inner["ociVersion"]


def test_an_exec_has_a_listener_of_its_own(lab: Lab, agent: Agent) -> None:
    container = lab.running(asking(lab.spec("sleep", "1000"), agent.path))

    ended = lab.exec(container, process("mkdir", "/tmp/x"))

    assert "No medium found" in ended.output  # errno 123
    first, second = agent.states
    assert first["pid"] == container.pid != second["pid"]
    assert second["state"]["status"] == "running"


def test_everything_may_be_asked_about(lab: Lab, agent: Agent) -> None:
    """Also what the runtime does between filter and program: by then somebody answers."""
    spec = asking(lab.spec("echo", "through"), agent.path, defaultAction="SCMP_ACT_NOTIFY", syscalls=[])

    assert lab.run(spec).output == "through\n"


def test_a_start_from_another_process(lab: Lab, agent: Agent) -> None:
    container = lab.create(asking(lab.spec("mkdir", "/tmp/x"), agent.path), detached=True)

    detached.start(container.state_directory)

    assert wait(container.pidfd) == 1
    assert len(agent.states) == 1


def test_without_the_agent_nothing_runs(lab: Lab) -> None:
    read_fd, write_fd = os.pipe()
    with open(os.devnull, "rb") as null:
        stdio = (null.fileno(), write_fd, write_fd)
        container = lab.create(asking(lab.spec("echo", "never"), lab.base / "nobody"), stdio=stdio)
    os.close(write_fd)

    with pytest.raises(OciError, match=r"linux\.seccomp\.listenerPath: .*/nobody: No such file or directory"):
        container.start()

    assert wait(container.pidfd) == 137
    assert read_all(read_fd) == ""
    os.close(read_fd)
