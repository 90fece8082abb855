"""The hand-written gRPC client against grpcio's server."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from pyctr.connection import CONTAINERS, CONTENT, EVENTS, VERSION, Connection, NoDaemon
from pyctr_wire.containerd.services.containers.v1 import containers_pb2
from pyctr_wire.containerd.services.content.v1 import content_pb2
from pyctr_wire.containerd.services.version.v1 import version_pb2
from pyctr_wire.errors import ApiError, DeadlineExceeded, Internal, NotFound, Unavailable

MEBIBYTE = b"x" * (1 << 20)


def _version(request: object, context: grpc.ServicerContext) -> version_pb2.VersionResponse:
    return version_pb2.VersionResponse(
        version="v9", revision=str(dict(context.invocation_metadata())["containerd-namespace"])
    )


def _missing(request: containers_pb2.GetContainerRequest, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.NOT_FOUND, f'container "{request.id}" — weg: not found')


def _read(
    request: content_pb2.ReadContentRequest, context: grpc.ServicerContext
) -> Iterator[content_pb2.ReadContentResponse]:
    for _ in range(request.size):
        yield content_pb2.ReadContentResponse(data=MEBIBYTE)


def _write(
    requests: Iterator[content_pb2.WriteContentRequest], context: grpc.ServicerContext
) -> Iterator[content_pb2.WriteContentResponse]:
    total = 0
    for request in requests:
        total += len(request.data)
        yield content_pb2.WriteContentResponse(offset=total)


def _hang(request: object, context: grpc.ServicerContext) -> Iterator[empty_pb2.Empty]:
    time.sleep(0.5)
    yield empty_pb2.Empty()


def _serve(path: Path) -> grpc.Server:
    handlers = {
        f"/{VERSION}/Version": grpc.unary_unary_rpc_method_handler(
            _version, empty_pb2.Empty.FromString, version_pb2.VersionResponse.SerializeToString
        ),
        f"/{CONTAINERS}/Get": grpc.unary_unary_rpc_method_handler(
            _missing, containers_pb2.GetContainerRequest.FromString, None
        ),
        f"/{CONTENT}/Read": grpc.unary_stream_rpc_method_handler(
            _read, content_pb2.ReadContentRequest.FromString, content_pb2.ReadContentResponse.SerializeToString
        ),
        f"/{CONTENT}/Write": grpc.stream_stream_rpc_method_handler(
            _write, content_pb2.WriteContentRequest.FromString, content_pb2.WriteContentResponse.SerializeToString
        ),
        f"/{EVENTS}/Subscribe": grpc.unary_stream_rpc_method_handler(
            _hang, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString
        ),
    }

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return handlers.get(details.method)

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Handlers()], options=[("grpc.so_reuseport", 0)])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    return server


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    server = _serve(tmp_path / "s")
    connection = Connection(f"unix://{tmp_path / 's'}", "blue")
    yield connection
    connection.close()
    server.stop(None).wait()


def version(connection: Connection) -> version_pb2.VersionResponse:
    return connection.call(VERSION, "Version", empty_pb2.Empty(), version_pb2.VersionResponse)


def test_calls_carry_the_namespace(connection: Connection) -> None:
    for _ in range(3):
        answer = version(connection)
        assert (answer.version, answer.revision) == ("v9", "blue")


def test_an_error_arrives_as_its_class_with_its_text(connection: Connection) -> None:
    with pytest.raises(NotFound) as caught:
        connection.call(
            CONTAINERS, "Get", containers_pb2.GetContainerRequest(id="x"), containers_pb2.GetContainerResponse
        )
    assert str(caught.value) == 'container "x" — weg: not found'


def test_a_stream_longer_than_every_window(connection: Connection) -> None:
    request = content_pb2.ReadContentRequest(size=40)
    size = sum(
        len(answer.data) for answer in connection.stream(CONTENT, "Read", request, content_pb2.ReadContentResponse)
    )
    assert size == 40 << 20


def test_leaving_a_stream_early_leaves_the_connection_usable(connection: Connection) -> None:
    request = content_pb2.ReadContentRequest(size=40)
    for _ in connection.stream(CONTENT, "Read", request, content_pb2.ReadContentResponse):
        break
    assert version(connection).version == "v9"


def test_sending_respects_the_servers_windows(connection: Connection) -> None:
    channel, call = connection.open(CONTENT, "Write")
    for _ in range(8):
        channel.send(call, content_pb2.WriteContentRequest(data=MEBIBYTE).SerializeToString(), last=False)
    channel.finish(call)
    while not call.done:
        channel.pump(None)
    assert call.error is None
    assert content_pb2.WriteContentResponse.FromString(call.messages[-1]).offset == 8 << 20


def test_a_call_ends_at_its_deadline(connection: Connection) -> None:
    with pytest.raises(DeadlineExceeded):
        connection.call(EVENTS, "Subscribe", empty_pb2.Empty(), empty_pb2.Empty, timeout=0.05)


def test_no_daemon_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="is pyctrd running"):
        version(Connection(str(tmp_path / "none"), "blue"))


def test_a_new_daemon_is_found_by_an_old_connection(tmp_path: Path) -> None:
    first = _serve(tmp_path / "s")
    connection = Connection(str(tmp_path / "s"), "blue")
    version(connection)
    first.stop(None).wait()
    second = _serve(tmp_path / "s")
    try:
        assert version(connection).version == "v9"
    finally:
        connection.close()
        second.stop(None).wait()


def test_a_connection_that_takes_no_more_calls_is_closed_unless_one_is_under_way(tmp_path: Path) -> None:
    server = _serve(tmp_path / "s")
    connection = Connection(str(tmp_path / "s"), "blue")
    try:
        first = connection.channel
        first.usable = False  # as after GOAWAY
        second, call = connection.open(EVENTS, "Subscribe")
        assert second is not first
        assert first.fileno() < 0
        second.send(call, b"", last=True)
        second.usable = False
        assert version(connection).version == "v9"
        assert second.fileno() >= 0
        second.close()
    finally:
        connection.close()
        server.stop(None).wait()


def test_a_daemon_that_dies_during_a_call_is_an_error_of_its_own(tmp_path: Path) -> None:
    server = _serve(tmp_path / "s")
    connection = Connection(str(tmp_path / "s"), "blue")
    channel, call = connection.open(EVENTS, "Subscribe")
    channel.send(call, b"", last=True)
    server.stop(None)
    while not call.done:
        channel.pump(None)
    assert isinstance(call.error, ApiError)
    connection.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@contextmanager
def _stranger(path: Path, answer: bytes) -> Iterator[list[socket.socket]]:
    """Answer everybody who connects with these bytes, and keep the connections open."""
    met: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:  # the test is over
                    return
                met.append(peer)
                peer.recv(1 << 16)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield met
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in met:
                peer.close()


_SETTINGS = _frame(4, 0, 0, b"")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Unavailable),
        (_frame(4, 0, 0, b"abc"), Unavailable),
        (_SETTINGS + _frame(1, 5, 1, b"\xff" * 7), Unavailable),
        (_SETTINGS + _frame(0, 8, 1, b""), Unavailable),
        (_SETTINGS + _frame(1, 5, 1, b"\x88\x00\x0bgrpc-status\x03abc"), Unavailable),
        (
            _SETTINGS
            + _frame(1, 4, 1, b"\x88")
            + _frame(0, 0, 1, b"\0\0\0\0\x03\xff\xff\xff")
            + _frame(1, 5, 1, b"\x00\x0bgrpc-status\x010"),
            Internal,
        ),
    ],
    ids=["http1", "settings", "hpack", "padding", "status", "message"],
)
def test_what_nobody_can_understand_is_an_error(tmp_path: Path, answer: bytes, error: type[ApiError]) -> None:
    """No trace, and nobody waits for what will not come."""
    connection = Connection(str(tmp_path / "s"), "blue")
    with _stranger(tmp_path / "s", answer), pytest.raises(error):
        version(connection)
    connection.close()


def test_a_daemon_that_always_goes_away_is_given_up(tmp_path: Path) -> None:
    connection = Connection(str(tmp_path / "s"), "blue")
    going_away = _SETTINGS + _frame(7, 0, 0, struct.pack(">II", 0, 0))
    with _stranger(tmp_path / "s", going_away) as met:
        with pytest.raises(Unavailable, match="going away"):
            version(connection)
        assert 2 < len(met) < 50
    connection.close()
