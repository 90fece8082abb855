"""CRIU for tests: from where .ci/run puts a newer one or from PATH, if it can do its work on this kernel."""

import os
import shutil
import subprocess

import pytest

from . import peers
from .patience import DEADLINE


def require_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the `criu` that works come first in PATH; skip the test, with CRIU's own words, if none does.

    Debian 12's 3.17.1 does not know the vDSO of Linux 6.13 and newer.
    """
    path = f"{peers.DIRECTORY / 'newer-criu'}:{os.environ['PATH']}"
    program = shutil.which("criu", path=path)
    if program is None:
        pytest.skip("criu is not installed")
    done = subprocess.run([program, "check"], capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
    if done.returncode:
        pytest.skip(f"{program} cannot work here: {(done.stdout + done.stderr).strip().splitlines()[:1]}")
    monkeypatch.setenv("PATH", path)
