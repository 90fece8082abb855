"""docs/python.md's program: it runs, and type checkers see what pyctr_wire says of itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon_process import DEADLINE, DaemonProcess
from support.pyctr_command import Pyctr
from support.registry_process import running_registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The example, as a file."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(code)
    return path


def checked(*paths: Path) -> list[str]:
    """Run mypy as whoever has installed the package does it, with nothing of our configuration; return the errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, *map(str, paths)]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "proto")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=8 * DEADLINE, check=False, cwd=paths[0].parent, env=environment
    )
    assert "checked 2 source files" in done.stdout, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


@pytest.mark.timeout(300)
def test_the_examples_types_are_known(program: Path) -> None:
    assert (ROOT / "proto/pyctr_wire/py.typed").exists()
    wrong = program.with_name("wrong.py")
    wrong.write_text(program.read_text().replace("image.target.digest", "image.target.size"))

    (error,) = checked(program, wrong)

    assert error.startswith("wrong.py:")
    assert 'incompatible type "int"; expected "str | None"' in error


@pytest.mark.root
@pytest.mark.peer
@pytest.mark.timeout(180)
def test_the_example_runs(program: Path, tmp_path: Path) -> None:
    with DaemonProcess() as daemon, running_registry(tmp_path) as registry:
        pyctr, name = Pyctr(daemon), f"{registry}/box:1"
        pyctr("image", "from-host", name, "/bin/busybox")
        pyctr("image", "push", name)
        command = [sys.executable, str(program), str(daemon.address), "blue", name]
        pulled, there = (
            subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False) for _ in range(2)
        )
        pyctr("image", "rm", name)

    assert pulled.returncode == 0, pulled.stderr
    assert re.fullmatch(r"(sha256:[0-9a-f]{64} \d+\n)+", pulled.stdout)
    assert there.stdout == pulled.stdout
