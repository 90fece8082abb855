"""seccomp's SCMP_ACT_NOTIFY: an agent is handed the listener and decides."""

import array
import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import detached
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import DEADLINE_SECONDS, Lab, Spec, process, read_all, wait

pytestmark = pytest.mark.root
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_NOTIFICATION_BYTES, _ANSWER = 80, struct.Struct("=QqiI")  # id, value, error, flags
_CONTINUE = 1
_MKDIR = 83


class Agent:
    """Listens for one listener at a time; answers mkdir with 123 as its error, lets everything else go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: list[Spec] = []
        self.calls: list[int] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
                    while chunk := connection.recv(65536):
                        data += chunk
                self.states.append(json.loads(data))
                thread = threading.Thread(target=self._answer, args=(fds[0],))
                self._threads.append(thread)
                thread.start()

    def _answer(self, listener_fd: int) -> None:
        poll = select.poll()
        poll.register(listener_fd, select.POLLIN)
        with contextlib.suppress(OSError):  # ENOENT: the process has ended while it was asked about
            # Without looking, receiving waits for ever on some kernels when nobody is left to be asked about.
            while poll.poll()[0][1] == select.POLLIN:
                notification = array.array("B", bytes(_NOTIFICATION_BYTES))
                fcntl.ioctl(listener_fd, _RECEIVE, notification)
                identity, _pid, _flags, number = struct.unpack_from("=QIIi", notification)
                self.calls.append(number)
                error, flags = (-123, 0) if number == _MKDIR else (0, _CONTINUE)
                fcntl.ioctl(listener_fd, _SEND, array.array("B", _ANSWER.pack(identity, 0, error, flags)))
        os.close(listener_fd)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


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
def test_the_agent_decides(lab: Lab, agent: Agent, no_new_privileges: bool) -> None:
    spec = asking(lab.spec("mkdir", "/tmp/x"), agent.path)
    spec["annotations"] = {"a": "b"}
    spec["process"]["noNewPrivileges"] = no_new_privileges
    container = lab.create(spec)

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
