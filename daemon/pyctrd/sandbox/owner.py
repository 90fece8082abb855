"""A process whose namespaces belong to a new user namespace, for as long as it takes to keep them by mounts.

A thread cannot enter a user namespace, as its process has others. So this is a program of its own, `main`, which
takes its turns with whoever started it:

    made                        its namespaces are there, the maps may be written
    {"name": "value", …}        said to it: they are, and these sysctls are for the namespace's root to set
    {"first": pid}              they are set, and the first process of a PID namespace is there, 0 if none was asked for
    {"sysctl": …, "errno": …}   the kernel refuses one

Source: user_namespaces(7), "Interaction of user namespaces and other types of namespaces".
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from pyctr_sys.namespaces import Clone, unshare
from pyctrd.core.idmaps import Maps
from pyctrd.sandbox import pid_one

_PYTHON: Final = (sys.executable, "-I", "-S", "-X", "utf8", "-c")
_PROGRAM: Final = "import sys; sys.path[:] = sys.argv[3:]; from pyctrd.sandbox.owner import main; main()"
_SECONDS_TO_END: Final = 30.0


@contextmanager
def owner(kinds: int, maps: Maps, sysctls: Mapping[str, str], gate_fd: int = -1) -> Iterator[tuple[int, int]]:
    """The pid of a process in new namespaces of `kinds` (clone flags) and in the user namespace that owns them.

    With NEWPID the second pid is that of the first process of a PID namespace, which waits at `gate_fd`; else 0. Raises
    OSError for what the kernel refuses.
    """
    with subprocess.Popen(
        (*_PYTHON, _PROGRAM, str(int(kinds)), str(gate_fd), *filter(None, sys.path)),
        pass_fds=(gate_fd,) if gate_fd >= 0 else (),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={},
    ) as process:
        try:
            _line(process)
            for name, items in zip(("uid_map", "gid_map"), maps, strict=True):
                lines = "".join(f"{one.container} {one.host} {one.size}\n" for one in items)
                Path(f"/proc/{process.pid}/{name}").write_text(lines)
            stdin = _stream(process.stdin)
            stdin.write(json.dumps(dict(sysctls)).encode() + b"\n")
            stdin.flush()
            answer = json.loads(_line(process))
            if "sysctl" in answer:
                raise OSError(answer["errno"], f'sysctl "{answer["sysctl"]}": {os.strerror(answer["errno"])}')
            yield process.pid, answer["first"]
        finally:
            process.send_signal(signal.SIGKILL)


def main() -> None:
    """Make namespaces as argv says, take turns, and wait to be killed or for standard input to end."""
    kinds, gate_fd = int(sys.argv[1]), int(sys.argv[2])
    unshare(Clone.NEWUSER | kinds & ~Clone.NEWPID)
    _say("made")
    asked = sys.stdin.readline()
    if asked:
        _say(json.dumps(_as_root(kinds, json.loads(asked), gate_fd)))
    sys.stdin.read()


def _as_root(kinds: int, sysctls: Mapping[str, str], gate_fd: int) -> dict[str, str | int]:
    # Who has made a user namespace is none of its users, and only they own its sysctls and the files of its mounts.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for name, value in sysctls.items():
        try:
            write_sysctl(name, value)
        except OSError as error:
            return {"sysctl": name, "errno": error.errno or 0}
    return {"first": pid_one.start(gate_fd) if kinds & Clone.NEWPID else 0}


def write_sysctl(name: str, value: str) -> None:
    """Set a sysctl of the calling thread's namespaces, whatever /proc was mounted in. Source: proc_sys(5)."""
    Path("/proc/sys", *re.split("[./]", name)).write_text(value)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - to whoever started it


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    line = _stream(process.stdout).readline()
    if not line:
        said = _stream(process.stderr).read().decode(errors="replace").strip().splitlines()
        process.wait(_SECONDS_TO_END)
        raise OSError(f"no user namespace could be made: {said[-1] if said else process.returncode}")
    return line


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
