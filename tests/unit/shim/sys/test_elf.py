"""Programs put together in memory, as other programs read them."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pyctr_sys import elf

EXIT_7 = bytes.fromhex("bf07000000 b83c000000 0f05")  # mov edi, 7; mov eax, 60; syscall

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="programs for x86-64")


@pytest.mark.parametrize("memory_size", [0, 0x2000])
@pytest.mark.parametrize("before", [b"", b"constants."])
def test_a_program_runs(memory_size: int, before: bytes, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf.program(before + EXIT_7, entry=len(before), memory_size=memory_size))
    program.chmod(0o755)

    assert subprocess.run([program], check=False).returncode == 7


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (package binutils)")
@pytest.mark.parametrize("memory_size", [0, 0x2000])
def test_nothing_that_can_be_written_can_be_executed(memory_size: int, tmp_path: Path) -> None:
    """Neither the memory nor the stack: without a word on that, older kernels let all be executed."""
    (tmp_path / "program").write_bytes(elf.program(EXIT_7, memory_size=memory_size))
    lines = subprocess.run(
        ["readelf", "--wide", "--segments", tmp_path / "program"], check=True, capture_output=True, text=True
    ).stdout.splitlines()

    # Type, offset, two addresses, two sizes, flags, alignment
    flags = [(line.split()[0], "".join(line.split()[6:-1])) for line in lines if " 0x" in line and "Entry" not in line]
    assert ("GNU_STACK", "RW") in flags
    assert ("LOAD", "RE") in flags
    assert {letters for _, letters in flags} == {"RE", "RW"}
