"""Ending a process at the entry of one of its system calls, from outside: strace's fault injection."""

import shutil
import subprocess
from types import TracebackType
from typing import Self

import pytest

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


class KillAt:
    """Kills a process when it enters the `nth` call of `name` after the context was entered."""

    def __init__(self, pid: int, name: str, nth: int, *, any_thread: bool = False) -> None:
        """Aim at process `pid`: the calls of its main thread count, or each thread's by themselves."""
        inject = f"inject={name}:signal=SIGKILL:when={nth}"
        threads = ["-f"] if any_thread else []
        self._command = ["strace", *threads, "-p", str(pid), "-e", f"trace={name}", "-e", inject]

    def __enter__(self) -> Self:
        """Attach."""
        self._strace = subprocess.Popen(self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert self._strace.stderr is not None
        attached = self._strace.stderr.readline()
        assert "attached" in attached, attached
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach, if the process has not ended."""
        self._strace.terminate()
        self._strace.communicate()
