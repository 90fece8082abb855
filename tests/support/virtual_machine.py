"""Tests that run inside a virtual machine, told outside as if they had run here.

    outside                                         inside (systemd, cgroup version 2 alone, all capabilities)
    copies the clone and the Python packages
    into a payload, boots the machine with it  ──►  puts pyctr's commands into /usr/bin,
                                                    runs pytest on the same test items
    reads the reports                          ◄──  writes each report as a line of JSON

The machine comes from a tool beside the project, $PYCTR_SHARED/vm/vm-run. It emulates its processor: a boot takes
half a minute and Python runs 10 to 20 times slower, so all items share one boot and none measures time.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

# Set to the file for the reports where we are inside.
REPORTS_VARIABLE: Final = "PYCTR_VM_REPORTS"
CLONE: Final = Path(__file__).parents[2]
_SECONDS: Final = 2400
_MEMORY_MIB: Final = 3072
# The machine's own interpreter: packages that are compiled for ours must fit.
_PYTHON: Final = (3, 11)
_PROGRAMS: Final = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "debugfs", "cpio", "zstd")
_COMMANDS: Final = ("pyctrd", "pyctr", "pyctr-shim", "containerd-shim-pyctr-v1", "pyctr-oci")
# Large, and of no use where only tests run.
_NOT_NEEDED: Final = (
    "*.pth", "*mypy*", "pip", "setuptools", "grpc_tools", "grimp", "importlinter", "hatchling", "ruff*",
)  # fmt: skip


def missing() -> str:
    """Return why no machine can be had, "" if one can."""
    if os.geteuid() != 0:
        return "needs root"
    shared = os.environ.get("PYCTR_SHARED")
    if not shared or not _tool(shared).exists():
        return "no virtual machine: $PYCTR_SHARED/vm/vm-run is not here"
    if absent := [program for program in _PROGRAMS if shutil.which(program) is None]:
        return f"no virtual machine: {', '.join(absent)} not installed"
    if sys.version_info[:2] != _PYTHON:
        return f"the virtual machine has Python {_PYTHON[0]}.{_PYTHON[1]}, whose packages ours are not"
    return ""


def _tool(shared: str) -> Path:
    return Path(shared) / "vm/vm-run"


def run(items: Sequence[str]) -> list[dict[str, Any]]:
    """Boot a machine, run the test items there, and return their serialised reports in order.

    What the machine prints is passed on. Raises RuntimeError, with the end of that, if it did not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="pyctr-vm-") as directory:
        payload = Path(directory)
        _fill(payload)
        (payload / "items").write_text("\n".join(items))
        command = [
            "nice", str(_tool(os.environ["PYCTR_SHARED"])),
            "--mem", str(_MEMORY_MIB), "--timeout", str(_SECONDS),
            directory, "bash", "/payload/run",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        sys.stdout.write(done.stdout)
        reports = payload / "out/reports"
        # pytest's own 0 and 1: all items have run.
        if done.returncode not in (0, 1) or not reports.exists():
            raise RuntimeError(f"vm-run ended with {done.returncode}:\n{done.stdout[-8000:]}")
        return [json.loads(line) for line in reports.read_text().splitlines()]


def _fill(payload: Path) -> None:
    """Copy the clone, generated code included, and the packages that are installed beside pytest."""
    hidden = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis")
    shutil.copytree(CLONE, payload / "clone", ignore=hidden, symlinks=True)
    site = Path(sysconfig.get_path("purelib"))
    shutil.copytree(site, payload / "site", ignore=shutil.ignore_patterns(*_NOT_NEEDED), symlinks=True)
    commands = payload / "bin"
    commands.mkdir()
    for name in _COMMANDS:
        # A script that the installer wrote, less its first line: that names our interpreter.
        _, _, script = (Path(sys.executable).parent / name).read_text().partition("\n")
        (commands / name).write_text(f"#!/usr/bin/python3\n{script}")
        (commands / name).chmod(0o755)
    roots = [f"/payload/clone/{root}" for root in ("proto", "shim", "daemon", "ctl")]
    (payload / "pyctr.pth").write_text("\n".join([*roots, "/payload/site"]))
    (payload / "run").write_text(
        "cp /payload/pyctr.pth /usr/local/lib/python3.11/dist-packages/\n"
        "cp /payload/bin/* /usr/bin/\n"
        "cd /payload/clone\n"
        "mapfile -t items </payload/items\n"
        f"export {REPORTS_VARIABLE}=/payload/out/reports\n"
        "exec python3 -m pytest -v -p no:cacheprovider -p no:randomly --color=no --durations=15 "
        '"${items[@]}"\n'
    )
