"""Exec, attach and port-forward over the CRI, with real containers and a client of our own."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from pyctr_sys.mount import umount2
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import UnknownError
from pyctrd.cri.sessions import Ports
from pyctrd.network import netns
from pyctrd.offload import Offload
from pyctrd.sandbox import namespaces
from support.cri_client import CriClient
from support.streaming_clients import (
    ECHO,
    SpdyClient,
    must_echo,
    request,
    streams,
    until,
    upgrade_to_spdy,
    within_deadline,
)

pytestmark = pytest.mark.root

SUCCESS = b'{"metadata":{},"status":"Success"}'


@pytest.fixture
def container(cri: CriClient) -> str:
    return cri.run(cri.run_pod(), "sleep", "1000")


def exec_url(cri: CriClient, container: str, *command: str, **options: bool) -> str:
    wanted = {"stdout": True, **options}
    return cri.runtime.Exec(runtime_pb2.ExecRequest(container_id=container, cmd=command, **wanted)).url


def processes(cri: CriClient, container: str) -> list[str]:
    """Return the commands that run in a container, beside the one that lists them."""
    listed = cri.exec(container, "ps", "-o", "args").stdout.decode().splitlines()[1:]
    return [line for line in listed if not line.startswith("ps ")]


async def test_a_command_s_streams_and_exit_code(cri: CriClient, container: str) -> None:
    await must_echo(exec_url(cri, container, *ECHO, stdin=True, stderr=True))


async def test_a_terminal_has_the_client_s_size_and_ends_with_it(cri: CriClient, container: str) -> None:
    url = exec_url(cri, container, "sh", stdin=True, tty=True)
    async with streams(url, "stdin", "stdout", "resize") as (_, stdin, stdout, resize):
        await resize.write(b'{"Width":123,"Height":45}')
        await stdin.write(b"tty; while [ \"$(stty size)\" != '45 123' ]; do sleep 0.1; done; stty size\n")
        await stdout.read_until(b"45 123\r\n")
        assert "sh" in processes(cri, container)
    await until(lambda: processes(cri, container) == ["sleep 1000"])


async def test_a_command_outlives_a_client_that_leaves(cri: CriClient, container: str) -> None:
    """And its input ends: whoever reads it does not wait for ever."""
    url = exec_url(cri, container, "sh", "-c", "echo here; cat; sleep 500", stdin=True)
    async with streams(url, "stdin", "stdout") as (_, _, stdout):
        await stdout.read_until(b"here\n")
        assert "cat" in processes(cri, container)
    await until(lambda: "cat" not in processes(cri, container))
    assert "sleep 500" in processes(cri, container)


async def test_a_slow_client_loses_nothing(cri: CriClient, container: str) -> None:
    """A shim cuts off who takes nothing for a second, but not the only reader of a command."""
    url = exec_url(cri, container, "sh", "-c", "yes | head -c 30000000")
    spdy = await request(url, upgrade_to_spdy("v4.channel.k8s.io"))
    error, stdout = await spdy.open("error"), await spdy.open("stdout")
    await asyncio.sleep(3)  # what is waited for is that nothing happens
    async with asyncio.TaskGroup() as group:
        receiving = group.create_task(spdy.receive())
        assert len(await stdout.read_all()) == 30_000_000
        assert await error.read_all() == SUCCESS
        spdy.writer.close()
        await within_deadline(receiving)


def test_who_has_no_input_reads_its_end(cri: CriClient, container: str) -> None:
    assert cri.exec(container, "cat").exit_code == 0


async def test_what_cannot_be_run_is_said(cri: CriClient, container: str) -> None:
    async with streams(exec_url(cri, container, "nonsense"), "stdout") as (error, _):
        assert "executable file not found" in json.loads(await error.read_all())["message"]


def attach_url(cri: CriClient, container: str, **options: bool) -> str:
    wanted = {"stdout": True, **options}
    return cri.runtime.Attach(runtime_pb2.AttachRequest(container_id=container, **wanted)).url


@pytest.mark.parametrize("log_path", ["main.log", ""])
async def test_attached_clients_share_a_container(cri: CriClient, log_path: str) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "sh", "-c", "while read line; do echo got $line; done; exit 3")
    config.stdin, config.log_path = True, log_path
    container = cri.create(pod, config)
    cri.start(container)
    async with (
        streams(attach_url(cri, container, stdin=True), "stdin", "stdout") as (_, stdin, stdout),
        streams(attach_url(cri, container), "stdout") as (_, other),
    ):
        # Whoever attaches sees what comes after: it is there once an answer to somebody has come.
        async with asyncio.timeout(30):
            while b"got ready" not in other.received or b"got ready" not in stdout.received:
                await stdin.write(b"ready\n")
                await asyncio.sleep(0.1)
        await stdin.write(b"one\n")
        await stdout.read_until(b"got one\n")
        await other.read_until(b"got one\n")
        await stdin.close()
    # Its input stays open for the next one.
    async with streams(attach_url(cri, container, stdin=True), "stdin", "stdout") as (error, stdin, stdout):
        await stdin.write(b"two\n")
        await stdout.read_until(b"got two\n")
        cri.stop(container)
        assert await error.read_all() == SUCCESS  # how the container has ended is its status
    assert cri.ended(container).exit_code == 137


async def test_input_that_is_for_one_client_ends_with_it(cri: CriClient) -> None:
    pod = cri.run_pod()
    config = cri.container_config("main", "sh", "-c", "cat; exit 3")
    config.stdin = config.stdin_once = True
    container = cri.create(pod, config)
    cri.start(container)
    async with streams(attach_url(cri, container, stdin=True), "stdin", "stdout") as (error, stdin, stdout):
        await stdin.write(b"all\n")
        await stdin.close()
        assert await stdout.read_all() == b"all\n"
        assert await error.read_all() == SUCCESS
    assert cri.ended(container).exit_code == 3


async def test_a_port_of_a_pod_in_the_host_s_network(cri: CriClient) -> None:
    pod = cri.run_pod()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(100).upper())

        server = threading.Thread(target=serve)
        server.start()
        asked = runtime_pb2.PortForwardRequest(pod_sandbox_id=pod.annotations["id"])
        spdy = await request(cri.runtime.PortForward(asked).url, upgrade_to_spdy("portforward.k8s.io"))
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(spdy.receive())
            assert await _say_hello(spdy, port) == (b"HELLO", b"")
            free = listener.getsockname()[1]
            listener.close()
            _, trouble = await _say_hello(spdy, free)
            assert f"failed to connect to localhost:{free}".encode() in trouble
            spdy.writer.close()
            await within_deadline(receiving)
        server.join()


async def _say_hello(spdy: SpdyClient, port: int) -> tuple[bytes, bytes]:
    """Return what a port answers, and what is told on the error stream."""
    number = str(len(spdy.streams))
    error = await spdy.open("error", port=str(port), requestid=number)
    data = await spdy.open("data", port=str(port), requestid=number)
    await data.write(b"hello")
    return await data.read_all(), await error.read_all()


def test_what_is_not_there_gets_no_url(cri: CriClient) -> None:
    def code(call: Any, message: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as failure:
            call(message)
        return failure.value.code()

    ended = cri.run(cri.run_pod(), "true")
    cri.ended(ended)
    wanted: dict[str, Any] = {"cmd": ["true"], "stdout": True}
    runtime = cri.runtime
    assert code(runtime.Exec, runtime_pb2.ExecRequest(container_id="x", **wanted)) is grpc.StatusCode.NOT_FOUND
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert code(runtime.Exec, runtime_pb2.ExecRequest(container_id=ended)) is invalid
    assert code(runtime.Exec, runtime_pb2.ExecRequest(**wanted)) is invalid
    stopped = grpc.StatusCode.FAILED_PRECONDITION
    assert code(runtime.Exec, runtime_pb2.ExecRequest(container_id=ended, **wanted)) is stopped
    assert code(runtime.Attach, runtime_pb2.AttachRequest(container_id=ended, stdout=True)) is stopped
    assert code(runtime.PortForward, runtime_pb2.PortForwardRequest(pod_sandbox_id="x")) is grpc.StatusCode.NOT_FOUND


class TestPortsOfAnotherNetwork:
    """A pod's own network needs no network configuration to be connected to."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[Path]:
        namespaces.pin(tmp_path / "ns", ("net",), "", {})
        yield tmp_path / "ns"
        namespaces.unpin(tmp_path / "ns")

    @pytest.fixture
    def ports(self, folder: Path) -> Iterator[Ports]:
        threads = Offload(1)
        index: Any = SimpleNamespace(pod=lambda _: SimpleNamespace(id="p1", kinds=("net",), ready=True))
        files: Any = SimpleNamespace(namespaces=lambda _: folder)
        yield Ports(index, files, threads)
        threads.close()

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    async def test_are_reached(self, folder: Path, ports: Ports, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with netns.inside(folder / "net", lambda: socket.create_server((address, 0), family=family)) as listener:
            reader, writer = await ports.port_forward("p1", listener.getsockname()[1])
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"from inside")
            assert await within(reader.read()) == b"from inside"
            writer.close()
            await writer.wait_closed()

    async def test_are_not_this_one_s(self, ports: Ports) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(UnknownError, match=f"localhost:{port} inside namespace") as failure:
                await ports.port_forward("p1", port)
        assert "IPv4 dial tcp" in str(failure.value)
        assert "IPv6 dial tcp" in str(failure.value)

    async def test_that_is_gone_is_said(self, folder: Path, ports: Ports) -> None:
        umount2(str(folder / "net"))
        (folder / "net").unlink()
        with pytest.raises(UnknownError, match='network namespace for sandbox "p1" is closed'):
            await ports.port_forward("p1", 80)


async def within(waiting: Any) -> Any:
    """Return what is waited for."""
    async with asyncio.timeout(30):
        return await waiting
