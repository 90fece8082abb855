"""Somebody who may connect speaks HTTP/2 as no client does: it costs the daemon little, and nobody else anything."""

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest

from pyctr_wire.health.v1 import health_pb2, health_pb2_grpc
from pyctrd.server.listener import MAX_CALLS
from support.daemon_process import DaemonProcess, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.usefixtures("leaving_nothing")]

HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, DATA = 1, 3, 4, 6, 8, 9, 0
END_STREAM, END_HEADERS = 1, 4
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MEBIBYTE: Final = 1 << 20
MOST: Final = 128 * MEBIBYTE


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame. Source: RFC 9113, 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def number(prefix: int, bits: int, value: int) -> bytes:
    """Return an integer of HPACK's. Source: RFC 7541, 5.1."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([prefix | value])
    out, value = bytearray([prefix | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(name: bytes, value: bytes, prefix: int = 0x00) -> bytes:
    """Return a header field in full; 0x40 as `prefix` puts it into the table."""
    return bytes([prefix]) + number(0, 7, len(name)) + name + number(0, 7, len(value)) + value


def request(path: bytes = b"/grpc.health.v1.Health/Check", more: bytes = b"") -> bytes:
    """Return the header block of a call."""
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x",
        b"content-type": b"application/grpc", b"te": b"trailers",
    }  # fmt: skip
    return b"".join(field(name, value) for name, value in fields.items()) + more


def hello(**settings: int) -> bytes:
    """Return how a client begins; settings by their number, as s1."""
    body = b"".join(struct.pack(">HI", int(name[1:]), value) for name, value in settings.items())
    return PREFACE + frame(SETTINGS, 0, 0, body)


def header_table() -> Iterator[bytes]:
    """A table that changes its size all the time, filled anew with each header."""
    yield hello(s1=(1 << 32) - 1)
    for stream in range(1, 8001, 2):
        resize = number(0x20, 5, 0) + number(0x20, 5, 4096)
        filling = b"".join(field(b"x%d" % n, b"v" * 500, 0x40) for n in range(7))
        yield frame(HEADERS, END_HEADERS, stream, resize + request(more=filling))
        yield frame(DATA, END_STREAM, stream, bytes(5))


def trailers() -> Iterator[bytes]:
    """Trailers of a great many fields, over and over, and then headers that do not end at all."""
    yield hello()
    for stream in range(1, 201, 2):
        yield frame(HEADERS, END_HEADERS, stream, request())
        many = b"".join(field(b"t%d" % n, b"v" * 100) for n in range(100))
        yield frame(HEADERS, 0, stream, many)
        for _ in range(10):
            yield frame(CONTINUATION, 0, stream, many)
        yield frame(CONTINUATION, END_HEADERS | END_STREAM, stream, many)
    yield frame(HEADERS, 0, 201, request())
    for count in range(20_000):
        yield frame(CONTINUATION, 0, 201, field(b"x%d" % count, b"v" * 8000))


def resets() -> Iterator[bytes]:
    """Calls that are given up as soon as they are made."""
    yield hello()
    for stream in range(1, 60_001, 2):
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream, request())
        yield frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def windows() -> Iterator[bytes]:
    """Answers that nobody lets be sent, windows that open by a byte, and pings whose answers nobody reads."""
    yield hello(s4=0)
    for stream in range(1, 4001, 2):
        yield frame(HEADERS, END_HEADERS, stream, request())
        yield frame(DATA, END_STREAM, stream, bytes(5))
        yield frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 1))
    for count in range(200_000):
        yield frame(PING, 0, 0, struct.pack(">Q", count))
        yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, count % 2))


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"{pid} has no memory")


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess(log_level="info") as started:
        yield started


def check(daemon: DaemonProcess) -> None:
    """Make a call as clients do: again, if grpc turns it away because too many others wait."""
    with daemon.channel() as channel:
        wait_until(lambda: is_answered(channel), "an answer")


def is_answered(channel: grpc.Channel) -> bool:
    """Make a call and return whether it was not turned away."""
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise
        return False
    return True


def test_cve_2026_78659_calls_of_a_connection_are_counted(daemon: DaemonProcess) -> None:
    """Those beyond the limit, which a client is told at once, are refused; it has none of them to wait for."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.address))
        client.settimeout(30)
        client.sendall(hello())
        answer = b""
        while len(answer) < 9 or len(answer) < 9 + int.from_bytes(answer[:3]):
            answer += client.recv(4096)
    assert answer[3] == SETTINGS
    body = answer[9 : 9 + int.from_bytes(answer[:3])]
    settings = dict(struct.unpack_from(">HI", body, at) for at in range(0, len(body), 6))
    assert settings[3] == MAX_CALLS
    assert settings[6] <= MEBIBYTE  # the longest list of headers


@pytest.mark.parametrize("reads", [True, False], ids=["answers are read", "nothing is read"])
@pytest.mark.parametrize("attack", [header_table, trailers, resets, windows])
def test_cve_2026_97032_http2_abuse(daemon: DaemonProcess, attack: Callable[[], Iterator[bytes]], reads: bool) -> None:
    """Also CVE-2026-78663 and CVE-2026-78669: memory is bounded, and others are served meanwhile."""
    check(daemon)
    before = highest = memory_of(daemon.pid)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.address))
        client.settimeout(5)
        sent = checked = 0
        # The daemon may have enough of it, or wait until somebody reads.
        with contextlib.suppress(ConnectionError, TimeoutError):
            for part in attack():
                client.sendall(part)
                sent += len(part)
                if sent - checked > MEBIBYTE:
                    checked = sent
                    check(daemon)
                    highest = max(highest, memory_of(daemon.pid))
                    while reads:
                        try:
                            if not client.recv(MEBIBYTE, socket.MSG_DONTWAIT):
                                break
                        except BlockingIOError:
                            break
        check(daemon)
        highest = max(highest, memory_of(daemon.pid))
    assert highest - before < MOST, f"{(highest - before) >> 20} MiB for {sent} bytes"
    wait_until(lambda: memory_of(daemon.pid) - before < MOST, "the daemon lets go of it")
    check(daemon)
