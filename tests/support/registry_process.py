"""A real registry on a loopback port: Debian's docker-registry, plain http, its storage in a directory."""

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_DEADLINE = 30.0  # seconds


def free_port() -> int:
    """Return a port on which nobody listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_registry(directory: Path, htpasswd: Path | None = None, host: str = "127.0.0.1") -> Iterator[str]:
    """Yield the address of a registry that keeps what it has in `directory`; skips without docker-registry.

    `host` is one of the loopback. With `htpasswd`, it serves only those whose names and passwords (bcrypt) are there.
    """
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian package docker-registry)")
    address = f"{host}:{free_port()}"
    config = directory / "registry.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/storage}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
        + (f"auth: {{htpasswd: {{realm: test, path: {htpasswd}}}}}\n" if htpasswd else "")
    )
    log = (directory / "registry.log").open("wb")
    process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_until_ready(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()
        log.close()


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _DEADLINE
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                return
        except urllib.error.HTTPError:  # it wants to know who asks
            return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "docker-registry ended"
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.05)
