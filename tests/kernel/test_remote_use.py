"""Several addresses, and TCP with mutual TLS: who gets in, who does not, and certificates that change meanwhile."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.tasks.v1.tasks_pb2 import WaitRequest
from pyctr_wire.containerd.services.tasks.v1.tasks_pb2_grpc import TasksStub
from pyctr_wire.containerd.services.version.v1.version_pb2_grpc import VersionStub
from support.authority import Authority, Pair
from support.containers import Containers
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.pyctr_command import Pyctr
from support.registry_process import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

CONFIG = """
[grpc]
addresses = ["unix://{base}/second.sock", "tcp://localhost:{port}"]
tcp_tls_ca = "{base}/clients.pem"
tcp_tls_cert = "{base}/server.pem"
tcp_tls_key = "{base}/server.key"
connection_age = 3
"""


class Served:
    """A daemon on TCP, and what its clients have."""

    def __init__(self, base: Path, daemon: DaemonProcess, port: int) -> None:
        self.authority = Authority(base / "good")
        self.other = Authority(base / "bad")
        self.daemon = daemon
        self.port = port
        self.client = self.authority.sign("client")
        self.use(self.authority.sign("server"))

    def use(self, server: Pair, clients: Authority | None = None) -> None:
        """Have the daemon show this certificate, and take clients of this authority, as an operator does it."""
        copies = {
            "server.key": server.key,
            "server.pem": server.certificate,
            "clients.pem": (clients or self.authority).own.certificate,
        }
        for name, source in copies.items():
            staged = self.daemon.base / f"{name}.new"
            staged.write_bytes(source.read_bytes())
            staged.rename(self.daemon.base / name)

    def channel(self, client: Pair | None, authority: Authority | None = None) -> grpc.Channel:
        """Return a connection of its own."""
        roots = (authority or self.authority).own.certificate.read_bytes()
        pair = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(roots, *pair)
        return grpc.secure_channel(f"localhost:{self.port}", credentials, [("grpc.use_local_subchannel_pool", 1)])

    def version(self, client: Pair | None, authority: Authority | None = None) -> str:
        """Ask on a connection of its own; raises grpc.RpcError."""
        with self.channel(client, authority) as channel:
            return str(VersionStub(channel).Version(Empty(), timeout=DEADLINE).version)

    def refuses(self, client: Pair | None, authority: Authority | None = None) -> bool:
        try:
            self.version(client, authority)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    daemon, port = DaemonProcess(), free_port()
    (daemon.base / "config.toml").write_text(CONFIG.format(base=daemon.base, port=port))
    served = Served(tmp_path_factory.mktemp("tls"), daemon, port)
    with daemon:
        yield served


def test_every_address_is_the_same_daemon(served: Served) -> None:
    second = served.daemon.base / "second.sock"
    with grpc.insecure_channel(f"unix:{second}") as channel:
        there = VersionStub(channel).Version(Empty(), timeout=DEADLINE).version
    assert there == served.version(served.client)
    assert second.stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "without TLS"])
def test_who_has_no_certificate_of_the_authority_is_refused(served: Served, who: str) -> None:
    assert served.version(served.client)
    if who == "without TLS":
        with grpc.insecure_channel(f"localhost:{served.port}") as channel, pytest.raises(grpc.RpcError):
            VersionStub(channel).Version(Empty(), timeout=DEADLINE)
        return
    shown = {"nobody": None, "stranger": served.other.sign("stranger"), "expired": served.authority.sign("old", -1)}
    assert served.refuses(shown[who])


@pytest.mark.full  # it waits for ten seconds
def test_who_connects_and_says_nothing_is_cut_off(served: Served) -> None:
    with socket.create_connection(("localhost", served.port), timeout=2 * DEADLINE) as mute:
        assert mute.recv(1) == b"", "its descriptor would be lost to others"


def test_a_daemon_of_another_authority_is_not_believed(served: Served) -> None:
    assert served.refuses(served.client, served.other)


def test_changed_certificates_are_used_without_a_restart(served: Served) -> None:
    newcomer = served.other.sign("newcomer")
    assert served.refuses(newcomer)
    try:
        served.use(served.other.sign("server"), served.other)
        wait_until(lambda: not served.refuses(newcomer, served.other), "the new certificates count")
        assert served.refuses(served.client, served.other), "the old authority counts no more"
        # A half of a pair, as while somebody replaces them: what was good goes on.
        (served.daemon.base / "server.key").write_bytes(served.authority.sign("another").key.read_bytes())
        assert served.version(newcomer, served.other)
        assert "tls.not_reloaded" in served.daemon.log_text()
    finally:
        served.use(served.authority.sign("server"))
    wait_until(lambda: not served.refuses(served.client), "the first ones are back")


def test_the_command_line_works_over_tcp(served: Served) -> None:
    pyctr = Pyctr(served.daemon)
    pyctr.environment["PYCTR_ADDRESS"] = f"tcp://localhost:{served.port}"
    files = {"ca": served.authority.own.certificate, "cert": served.client.certificate, "key": served.client.key}
    options = [word for name, path in files.items() for word in (f"--tls-{name}", str(path))]

    pyctr(*options, "namespace", "create", "far")
    assert "far" in pyctr(*options, "namespace", "ls")
    pyctr(*options, "namespace", "rm", "far")
    # A megabyte and more, both ways, is many records.
    pyctr(*options, "image", "from-host", "box:1", "/bin/busybox")
    large = served.daemon.base / "image.tar"
    pyctr(*options, "image", "export", "--output", str(large), "box:1")
    assert large.stat().st_size > 1 << 19
    assert "only, not over tcp://" in pyctr.run(*options, "run", "box:1", "/bin/busybox").stderr
    assert pyctr(*options, "ps", "-aq") == ""
    pyctr(*options, "image", "rm", "box:1")
    assert "needs certificates: --tls-ca" in pyctr.run("namespace", "ls").stderr
    pyctr.environment["PYCTR_ADDRESS"] = f"tcp://127.0.0.2:{served.port}"
    assert "cannot connect to the daemon at tcp://127.0.0.2" in pyctr.run(*options, "namespace", "ls").stderr


def test_an_upgrade_serves_the_port_all_the_time(served: Served) -> None:
    pid = served.daemon.pid
    served.daemon.upgrade()
    assert served.daemon.pid != pid
    for _ in range(20):
        assert served.version(served.client)


def test_who_waits_on_another_machine_goes_on_waiting(served: Served) -> None:
    """The old daemon stays for the call, though nobody on this machine uses it any more."""
    with Containers(served.daemon) as containers, served.channel(served.client) as channel:
        containers.run("web", "sleep", "1000")
        request = WaitRequest(container_id="web")
        waiting = TasksStub(channel).Wait.future(request, metadata=(("containerd-namespace", "default"),), timeout=600)
        wait_until(lambda: waiting.running(), "it waits")
        containers.close()
        served.daemon.upgrade()
        wait_until(lambda: "staying for calls that wait" in served.daemon.log_text(), "the time of connections is over")
        containers.kill("web")
        assert waiting.result().exit_status == 137
    wait_until(lambda: all(old.poll() == 0 for old in served.daemon.replaced), "the old daemons have ended")


def test_an_upgrade_that_could_not_serve_the_port_changes_nothing(served: Served) -> None:
    pid, certificate = served.daemon.pid, served.daemon.base / "server.pem"
    good = certificate.read_bytes()
    certificate.write_text("nonsense")
    try:
        command = [*served.daemon.command, "upgrade"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    finally:
        certificate.write_bytes(good)
    assert done.returncode
    assert (served.daemon.pid, Path(f"/proc/{pid}").exists()) == (pid, True)
    assert served.version(served.client)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--address", "tcp://localhost:1"], "tcp://localhost:1 is served with mutual TLS only: set grpc.tcp_tls_ca"),
        (["--address", "fd://"], '"fd://": sockets are not taken from systemd; name the path of one to be made'),
        (["--address", "http://x"], '"http://x": an address is a path, unix://PATH or tcp://HOST:PORT'),
        (["--address", "tcp://localhost"], "must be tcp://HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(words: list[str], reason: str, tmp_path: Path) -> None:
    ends = ["--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]
    command = [sys.executable, "-m", "pyctrd", *ends, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert reason in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_port_in_use_and_a_file_that_is_no_certificate_are_named(served: Served, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = CONFIG.format(base=served.daemon.base, port=served.port).replace(f"{served.daemon.base}/second", "/tmp/none")
    ends = ["--config", str(config), "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]

    def said(text: str) -> str:
        config.write_text(text)
        command = [sys.executable, "-m", "pyctrd", *ends]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert f"address tcp://localhost:{served.port}: Address already in use" in said(text)
    broken = text.replace(f":{served.port}", f":{free_port()}").replace("clients.pem", "config.toml")
    assert f"TLS cannot use {served.daemon.base}/config.toml" in said(broken)


def test_a_port_that_somebody_takes_while_the_daemon_starts_is_named(served: Served, tmp_path: Path) -> None:
    """It is free when that is looked at, and taken when the daemon listens."""
    config = tmp_path / "config.toml"
    text = CONFIG.format(base=served.daemon.base, port=served.port).replace(f"{served.daemon.base}/second", "/tmp/none")
    ends = ["--config", str(config), "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]
    look = "from pyctrd.server import remote_listener as l; l.refuse_if_taken = lambda *port, **how: None"
    run = f"import sys; {look}; from pyctrd.__main__ import main; sys.exit(main(sys.argv[1:]))"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(text.replace(f"localhost:{served.port}", f"127.0.0.1:{port}"))
        command = [sys.executable, "-c", run, *ends]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    address = f"address tcp://127.0.0.1:{port}"
    assert done.stderr.splitlines()[-1] == f"pyctrd: {address}: cannot listen on it: failed precondition"
