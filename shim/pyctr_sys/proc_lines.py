"""Lines of files in /proc that name what others have named: mount points, cgroups, programs, network interfaces.

Such a name is any bytes. They need be no UTF-8, and may hold what Python takes for the end of a line or for a blank:
the kernel escapes blank, tab, newline and backslash at most.
"""

import os
import re
from typing import Final

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def read_lines(path: str) -> list[str]:
    """Return a file's lines, each as os.fsdecode has it. Split them at single blanks only. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    return [os.fsdecode(line) for line in data.split(b"\n") if line]


def unescaped(text: str) -> str:
    """Return a field of mountinfo as it is. Source: proc_pid_mountinfo(5)."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
