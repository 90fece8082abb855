"""F05, F42: a pull that is cut off, by the daemon's death or by a registry that stalls, goes on where it was."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from support.daemon_process import DaemonProcess, wait_until
from support.footprint import unchanged
from support.images import MANIFEST, BuiltImage, busybox, digest
from support.transfer_client import TransferClient

pytestmark = pytest.mark.root

IMAGE: BuiltImage = busybox()
LARGE = IMAGE.layers[0]
HALF = len(LARGE) // 2


class SlowRegistry(ThreadingHTTPServer):
    """Serves the image; of its large layer only one half, until `opened` lets the rest through."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.opened = threading.Event()
        self.ranges: list[int] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: SlowRegistry
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        data = IMAGE.manifest if name == "v1" else IMAGE.blobs[name]
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Content-Type", MANIFEST if data is IMAGE.manifest else "application/octet-stream")
        self.send_header("Docker-Content-Digest", digest(data))
        self.end_headers()
        if not with_body:
            return
        if data is LARGE:
            self.server.ranges.append(start)
            if not self.server.opened.is_set():
                self.wfile.write(data[start:HALF])
                self.wfile.flush()
                self.server.opened.wait()
                start = HALF
        self.wfile.write(data[start:])

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the daemon was killed
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[SlowRegistry]:
    with SlowRegistry() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.opened.set()
        server.shutdown()
        thread.join()


def has_half(daemon: DaemonProcess) -> bool:
    """Say whether half of the layer is on disk."""
    return any(file.stat().st_size == HALF for file in daemon.root.glob("content/ingest/*/data"))


def pull(daemon: DaemonProcess, name: str) -> None:
    with daemon.channel() as channel:
        TransferClient(channel).pull(name)


def test_a_pull_goes_on_after_the_daemon_was_killed(registry: SlowRegistry) -> None:
    name = f"{registry.address}/test/image:v1"

    def interrupted() -> None:
        with pytest.raises(grpc.RpcError):
            pull(daemon, name)

    with DaemonProcess() as daemon:
        pulling = threading.Thread(target=interrupted)
        pulling.start()
        wait_until(lambda: has_half(daemon), "half of the layer has arrived")
        daemon.kill()
        pulling.join()
        daemon.start()
        assert daemon.ctr("images", "ls", "-q") == ""
        registry.opened.set()

        pull(daemon, name)

        assert registry.ranges == [0, HALF]
        assert daemon.ctr("run", "--rm", name, "test", "/bin/busybox", "cat", "/etc/hello") == "hello\n"
        # The lease of the pull that died is left to its expiry; its content is the image's by now.
        daemon.ctr("images", "rm", "--sync", name)


def test_a_client_that_goes_away_in_mid_pull_leaves_nothing_running(registry: SlowRegistry) -> None:
    name = f"{registry.address}/test/image:v1"

    def interrupted() -> None:
        with pytest.raises((grpc.RpcError, ValueError)):
            TransferClient(channel).pull(name)

    with DaemonProcess() as daemon, unchanged(daemon):
        channel = daemon.channel()
        pulling = threading.Thread(target=interrupted)
        pulling.start()
        wait_until(lambda: has_half(daemon), "half of the layer has arrived")
        channel.close()
        pulling.join()
        wait_until(lambda: daemon.ctr("leases", "ls", "-q") == "", "the pull's lease is gone")
        registry.opened.set()

        pull(daemon, name)

        assert registry.ranges[:2] == [0, HALF]
        assert daemon.ctr("run", "--rm", name, "test", "/bin/busybox", "cat", "/etc/hello") == "hello\n"
        daemon.ctr("images", "rm", "--sync", name)
