"""The routines' bytes are what an assembler makes of their listings."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from pyctr_sys import routine, stub


@pytest.mark.skipif(shutil.which("as") is None, reason="needs as and objcopy (package binutils)")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64's code")
@pytest.mark.parametrize(
    ("text", "heading", "code"), [(routine.__doc__, "spawn:", routine._SPAWN), (stub.__doc__, "obey:", stub._OBEY)]
)
def test_listing(text: str, heading: str, code: dict[str, bytes], tmp_path: Path) -> None:
    section = text.partition(f"\n{heading}")[2]
    listing = section.partition("\n\n")[2].partition("\n\n")[0].replace(";", "#")
    (tmp_path / "code.s").write_text(f".intel_syntax noprefix\n{listing}\n")
    subprocess.run(["as", "-o", tmp_path / "code.o", tmp_path / "code.s"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "code.o", tmp_path / "code"], check=True)
    assert (tmp_path / "code").read_bytes() == code["x86_64"]
