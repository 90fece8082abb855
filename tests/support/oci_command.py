"""`pyctr-oci` as a process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .patience import DEADLINE


class Command:
    """Runs the command with a root of its own; `close` removes what is left."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(self.root), *arguments]
        settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(line, text=True, check=False, timeout=2 * DEADLINE, **{**settings, **options})

    def status(self, name: str) -> str:
        found = self("state", name)
        return str(json.loads(found.stdout)["status"]) if found.returncode == 0 else found.stderr

    def pid(self, name: str) -> int:
        return int(json.loads(self("state", name).stdout)["pid"])

    def close(self) -> None:
        for name in self("list", "-q").stdout.split():
            self("delete", "--force", name)


def detached(**options: Any) -> dict[str, Any]:
    """Streams that do not keep a pipe of ours open in the container."""
    return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
