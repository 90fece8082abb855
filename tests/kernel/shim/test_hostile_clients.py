"""A client that speaks badly to a shim's sockets harms neither the shim nor its container."""

import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import any_pb2

from pyctr_wire import ttrpc
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import ApiError
from support.shim_harness import DEADLINE, PROCESS_URL, Host, Running, host

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


@pytest.fixture(scope="module")
def container(shims: Host) -> Iterator[Running]:
    made = shims.run("prey", "sleep", "1000", terminal=True)
    yield made
    made.end()


@pytest.fixture(autouse=True)
def _container_goes_on(container: Running) -> Iterator[None]:
    """Afterwards the same shim answers on its first connection and on a new one, and the same process runs."""
    yield
    fresh = container.host.connect(container.request)
    for client in (container.client, fresh):
        state = client.call("State", pb.StateRequest(id="prey"))
        assert (state.pid, state.status) == (container.pid, 2)
    fresh.close()


def raw(container: Running, address: str = "socket") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(container.request[address])  # blocking: where the backlog is full, that waits
    connection.settimeout(DEADLINE)
    return connection


def say(container: Running, data: bytes, address: str = "socket") -> None:
    """Send, hang up one way, and read what there is until the shim hangs up as well."""
    with raw(container, address) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 20):
                pass
        except (BrokenPipeError, ConnectionResetError):
            return


@pytest.mark.parametrize("address", ["socket", "attach"])
def test_random_bytes(container: Running, address: str) -> None:
    chance = random.Random(20)
    for length in (1, 9, 10, 100, 5000, 200_000):
        say(container, chance.randbytes(length), address)
        say(container, bytes(length), address)
        say(container, b"\xff" * length, address)


def test_a_request_cut_anywhere(container: Running) -> None:
    request = ttrpc.Request("containerd.task.v3.Task", "State", pb.StateRequest(id="prey").SerializeToString(), 0, {})
    whole = ttrpc.encode_frame(1, ttrpc.FrameType.REQUEST, ttrpc.encode_request(request))
    for end in range(len(whole)):
        say(container, whole[:end])


def test_more_than_a_message_may_hold(container: Running) -> None:
    say(container, struct.pack(">IIBB", (4 << 20) + 1, 1, 1, 0) + bytes((4 << 20) + 1))
    say(container, struct.pack(">IIBB", 0xFFFFFFFF, 1, 1, 0) + bytes(8 << 20))
    say(container, struct.pack(">BI", 1, 0xFFFFFFFF) + bytes(1 << 20), "attach")


def test_connections_that_say_nothing(container: Running) -> None:
    """Beyond a number of them, new ones are turned away; when they go, others are let in again."""
    silent = [raw(container) for _ in range(80)]
    for connection in silent:
        connection.close()


# Each message with each field at its ends: what a generated client can send, but none would.
_TEXTS = ("", "prey", "nope", "../prey", "a/b", "x" * 5000, "a\0b", "\n", "é")
_NUMBERS = (0, 1, 9, 65, 65536, (1 << 32) - 1)


def hostile_calls(chance: random.Random) -> Iterator[tuple[str, Any]]:
    kinds: list[Any] = [
        pb.ExecProcessRequest, pb.StartRequest, pb.DeleteRequest, pb.StateRequest, pb.KillRequest, pb.PidsRequest,
        pb.ResizePtyRequest, pb.CloseIORequest, pb.UpdateTaskRequest, pb.StatsRequest, pb.ConnectRequest,
        pb.CreateTaskRequest, pb.CheckpointTaskRequest, pb.PauseRequest, pb.ResumeRequest,
    ]  # fmt: skip
    for kind in kinds:
        method = kind.DESCRIPTOR.name.removesuffix("Request").removesuffix("Task").removesuffix("Process")
        for _ in range(12):
            message = kind()
            for field in kind.DESCRIPTOR.fields:
                if field.is_repeated or chance.random() < 0.2:
                    continue
                if field.name == "id":
                    message.id = "prey" if method not in {"Delete", "Kill", "Pause", "Create"} else "nope"
                elif field.type == field.TYPE_STRING:
                    setattr(message, field.name, chance.choice(_TEXTS))
                elif field.type == field.TYPE_UINT32:
                    setattr(message, field.name, chance.choice(_NUMBERS))
                elif field.type == field.TYPE_MESSAGE and field.message_type.name == "Any":
                    value = chance.choice((b"", b"{}", b"[", b'{"args":[1]}', b'{"cpu":{"shares":"x"}}', b"\xff"))
                    getattr(message, field.name).CopyFrom(
                        any_pb2.Any(type_url=chance.choice(("", "x", PROCESS_URL)), value=value)
                    )
            yield method, message


def test_calls_that_no_client_would_make(container: Running) -> None:
    """Each is answered, by an error that says what is wrong; none is a bug of the shim's."""
    client = container.host.connect(container.request)
    added = set()
    for method, message in hostile_calls(random.Random(7)):
        try:
            client.call(method, message)
        except ApiError as error:
            assert str(error)
            assert "Error(" not in str(error), (method, message, str(error))
        else:
            if method == "Exec":
                added.add(message.exec_id)
    for exec_id in added:
        client.call("Delete", pb.DeleteRequest(id="prey", exec_id=exec_id))
    client.close()
    assert not any(name.startswith("..") or "/" in name for name in added)
