"""The programs of other projects that tests use: from $PYCTR_TEST_BIN, where tests/peers builds them, or from PATH."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
DIRECTORY: Final = Path(os.environ.get("PYCTR_TEST_BIN") or _CACHE / "pyctr-test-bin")


def find(name: str, at_least: str = "") -> Path:
    """Return the path of a program of at least this version ("2", "2.3"), or skip the test and say why."""
    found = look_for(name, at_least)
    if found is None:
        why = DIRECTORY / f"{name}.why"
        reason = why.read_text().strip() if why.exists() else f"tests/peers {DIRECTORY} {name} builds it"
        pytest.skip(f"no {name}{at_least and f' {at_least}'} in {DIRECTORY} or PATH: {reason}")
    return found


def look_for(name: str, at_least: str = "") -> Path | None:
    """Return the path of a program of at least this version, or None."""
    for folder in (str(DIRECTORY), *os.environ["PATH"].split(os.pathsep)):
        found = shutil.which(name, path=folder)
        if found and (not at_least or _version(found) >= _numbers(at_least)):
            return Path(found)
    return None


def _version(program: str) -> tuple[int, ...]:
    flag = "-v" if "containerd-shim" in program else "--version"
    told = subprocess.run([program, flag], capture_output=True, text=True, timeout=60, check=True).stdout
    number = re.search(r"\bv?(\d+(\.\d+)+)", told)
    return _numbers(number[1]) if number else ()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))
