"""Programs that make file systems: cp, mkfs, dmsetup."""

import os
import subprocess

from pyctr_wire.errors import Internal, ResourceExhausted


def run(*command: str) -> str:
    """Return what a program prints; waits for it. Raises ResourceExhausted for a full disk, Internal."""
    environment = {**os.environ, "LC_ALL": "C"}  # its words are looked at
    # What they say may have names of an image's files in it, which are any bytes.
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if result.returncode:
        kind = ResourceExhausted if "No space left" in result.stderr else Internal
        raise kind(f"{command[0]}: {result.stderr.strip()[-500:]}")
    return result.stdout
