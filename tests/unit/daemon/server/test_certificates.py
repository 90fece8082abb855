"""Files that TLS cannot use are named, and nobody is asked anything."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from support.authority import Authority


def test_a_key_with_a_password_is_refused_and_no_terminal_is_asked(tmp_path: Path) -> None:
    """OpenSSL would wait there for an answer, and with it the daemon."""
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server")
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(pair.key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    program = (
        "import sys; from pyctrd.server.certificates import Certificates\n"
        "try: Certificates(*sys.argv[1:]).credentials()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    pid, terminal_fd = pty.fork()
    if pid == 0:
        files = (str(authority.own.certificate), str(pair.certificate), str(locked))
        os.execv(sys.executable, [sys.executable, "-c", program, *files])
    said = _read(terminal_fd)
    os.close(terminal_fd)
    os.waitpid(pid, 0)

    assert said.startswith(f"FailedPrecondition TLS cannot use {pair.certificate} with {locked}")


def _read(terminal_fd: int) -> str:
    """Return what is printed to the end, or to a question."""
    said = b""
    while b"pass phrase" not in said:
        try:
            said += os.read(terminal_fd, 4096)
        except OSError:  # EIO: nobody has it any more
            break
    return said.decode()
