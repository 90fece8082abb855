"""Programs that start a shim, or clean up after one that is gone: how they are called, ours and those of others.

Source: containerd's runtime v2 documentation.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pyctr_wire.errors import UnknownError
from pyctrd.core.values import dataclass
from pyctrd.runtime.bundle import Bundle

PROGRAM_TIMEOUT: Final = 30.0  # seconds; a cold start or a clean-up
API_VERSION: Final = "v2.3.4"  # of containerd's API as we speak it: it decides in which form a shim answers

_MAX_PROGRAMS: Final = 4  # at once; each takes a thread and a tenth of a second of CPU
_MAX_ERROR_TEXT: Final = 4096  # bytes of a program's stderr that go into an error
_PUBLISHER: Final = str(Path(sys.executable).with_name("pyctrd"))


class Offload(Protocol):
    """The way to a thread."""

    async def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call in a thread and return the result."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where shims are told to find the daemon, and the daemon its shims."""

    state: Path
    grpc_address: str
    ttrpc_address: str
    log_level: str


class Programs:
    """Runs them, a few at a time."""

    def __init__(self, endpoints: Endpoints, offload: Offload) -> None:
        """Tell them of `endpoints`."""
        self.endpoints = endpoints
        self._offload = offload
        self._programs = asyncio.Semaphore(_MAX_PROGRAMS)

    async def run(self, bundle: Bundle, program: Sequence[str], action: str, *flags: str, stdin: bytes = b"") -> bytes:
        """Run a shim's program in its bundle and return what it prints.

        Raises UnknownError if it fails, cannot be executed, or takes longer than 30 s.
        """
        manifest = bundle.manifest
        command = [
            *program,
            *("-namespace", manifest.namespace),
            *("-address", self.endpoints.grpc_address),
            *("-publish-binary", _PUBLISHER),
            *("-id", manifest.id),
            *flags,
            action,
        ]
        environment = {
            **os.environ,
            "TTRPC_ADDRESS": self.endpoints.ttrpc_address,
            "GRPC_ADDRESS": self.endpoints.grpc_address,
            "NAMESPACE": manifest.namespace,
            "MAX_SHIM_VERSION": "2",
            "GOMAXPROCS": "2",
        }
        async with self._programs:
            try:
                result: subprocess.CompletedProcess[bytes] = await self._offload.run(
                    subprocess.run,
                    command,
                    cwd=bundle.path,
                    env=environment,
                    input=stdin,
                    capture_output=True,
                    timeout=PROGRAM_TIMEOUT,
                    process_group=0,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise UnknownError(f"task {manifest.id}: shim {action}: no end after {PROGRAM_TIMEOUT:g} s") from error
            except OSError as error:
                raise UnknownError(f"task {manifest.id}: shim {action}: {program[0]}: {error.strerror}") from error
        if result.returncode != 0:
            text = (result.stderr or result.stdout)[-_MAX_ERROR_TEXT:].decode(errors="replace").strip()
            raise UnknownError(f"task {manifest.id}: shim {action}: exit status {result.returncode}: {text}")
        return result.stdout
