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

from . import peers

# Set to the file for the reports where we are inside.
REPORTS_VARIABLE: Final = "PYCTR_VM_REPORTS"
CLONE: Final = Path(__file__).parents[2]
_SECONDS: Final = 5400  # of a boot, on a machine that is busy with other things too
_MEMORY_MIB: Final = 3072
# The machine's own interpreter: packages that are compiled for ours must fit.
_PYTHON: Final = (3, 11)
_PROGRAMS: Final = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "debugfs", "cpio", "zstd")
_COMMANDS: Final = ("pyctrd", "pyctr", "pyctr-shim", "containerd-shim-pyctr-v1", "pyctr-oci")
# Programs of this machine that the other one lacks, taken along where they are installed. Debian's CRIU fits that one's
# kernel, if not ours.
_BROUGHT: Final = (
    "/usr/sbin/criu", "/usr/sbin/runc", "/usr/bin/crun", "/usr/bin/newuidmap", "/usr/bin/newgidmap", "/usr/bin/ctr",
    "/usr/sbin/mkfs.xfs", "/usr/bin/fuse-overlayfs",
)  # fmt: skip
_LIBRARIES: Final = "lib/x86_64-linux-gnu"
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


def run(items: Sequence[str], disk: Path, *, power_cut: bool = False) -> list[dict[str, Any]]:
    """Boot a machine, run the test items there, and return their serialised reports in order.

    `disk` is a file with the disk of a machine that ran before, or one that is made. The machine is turned off at the
    end, or loses its power in the midst of whatever it does. What it prints is passed on. Raises RuntimeError, with the
    end of that, if it did not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="pyctr-vm-") as directory:
        payload = Path(directory)
        _fill(payload)
        (payload / "items").write_text("\n".join(items))
        if power_cut:
            (payload / "power-cut").touch()
        command = [
            "nice", str(_tool(os.environ["PYCTR_SHARED"])),
            "--mem", str(_MEMORY_MIB), "--timeout", str(_SECONDS), "--keep", str(disk),
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
    _bring_programs(payload / "brought")
    payload.chmod(0o755)  # as an ordinary user's tests want it
    roots = [f"/payload/clone/{root}" for root in ("proto", "shim", "daemon", "ctl")]
    (payload / "pyctr.pth").write_text("\n".join([*roots, "/payload/site"]))
    (payload / "run").write_text(
        "cp /payload/pyctr.pth /usr/local/lib/python3.11/dist-packages/\n"
        "cp /payload/bin/* /usr/bin/\n"
        # What is there already is in use.
        "cp -a --no-clobber /payload/brought/. /usr/\n"
        "ldconfig\n"
        "cd /payload/clone\n"
        # The reports are on their disk before; the status is told as vm-run does.
        "cut() {\n"
        "    fsfreeze -f /payload\n"
        "    echo exit $code >/dev/ttyS2\n"
        "    sleep 2\n"
        "    echo o >/proc/sysrq-trigger\n"
        "    sleep 600\n"
        "}\n"
        "mapfile -t items </payload/items\n"
        f"export {REPORTS_VARIABLE}=/payload/out/reports\n"
        "python3 -m pytest -v -p no:cacheprovider -p no:randomly --color=no --durations=15 "
        '"${items[@]}"\n'
        "code=$?\n"
        "if [ -e /payload/power-cut ]; then cut; fi\n"
        "exit $code\n"
    )


def _bring_programs(usr: Path) -> None:
    """Copy programs, and the libraries that they need, into what becomes part of the machine's /usr."""
    libraries = usr / _LIBRARIES
    libraries.mkdir(parents=True)
    for program in filter(Path.exists, [*map(Path, _BROUGHT), *_built()]):
        folder = usr / ("sbin" if program.parent.name == "sbin" else "bin")
        folder.mkdir(exist_ok=True)
        shutil.copy2(program, folder)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        for line in listed.splitlines():
            _, arrow, path = line.partition(" => ")
            if arrow and "libc.so" not in path:
                shutil.copy2(path.split()[0], libraries)
    _bring_newer_criu(usr / "local")


def _built() -> list[Path]:
    """Return those of tests/peers' programs that tests inside use, if they are here."""
    kubelet = peers.look_for("kubelet")
    return [kubelet] if kubelet else []


def _bring_newer_criu(local: Path) -> None:
    """Copy the CRIU that tests/newer-criu makes, if it has: Debian 12's forgets what no_new_privs forbids."""
    made = peers.DIRECTORY / "newer-criu"
    files = made / "criu-files"
    if not files.exists():
        return
    shutil.copytree(files, local / "criu-files", symlinks=True)
    (local / "bin").mkdir()
    wrapper = local / "bin/criu"
    wrapper.write_text((made / "criu").read_text().replace(str(files.resolve()), "/usr/local/criu-files"))
    wrapper.chmod(0o755)
