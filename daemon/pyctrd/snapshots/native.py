"""Native snapshots: each a whole copy of its parent, for file systems that overlayfs does not like.

<root>/<id>/fs          everything                                       0755
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pyctr_wire.errors import Internal, ResourceExhausted
from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind, Usage
from pyctrd.snapshots.usage import measure


class Native:
    """The files of native snapshots."""

    name: ClassVar[str] = "native"
    can_rebase: ClassVar[bool] = False
    maps_ids: ClassVar[bool] = False

    def create(self, directory: Path, parents: Sequence[Path], kind: Kind) -> None:
        """Copy the nearest of `parents`; where the file system can, the copy shares its blocks."""
        tree = directory / "fs"
        tree.mkdir(exist_ok=True)
        tree.chmod(0o755)
        if parents:
            # cp keeps owners, hard links, holes, devices and extended attributes, and asks for reflinks.
            command = ["cp", "--archive", "--reflink=auto", "--", f"{parents[0]}/fs/.", str(tree)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                kind_of_error = ResourceExhausted if "No space left" in result.stderr else Internal
                raise kind_of_error(f"cannot copy the parent snapshot: {result.stderr.strip()[-500:]}")

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mount that shows a snapshot."""
        return [Mount("bind", f"{directory}/fs", options=("ro" if kind is Kind.VIEW else "rw", "rbind"))]

    def usage(self, directory: Path) -> Usage:
        """Return what a snapshot takes, its parent's part included."""
        return measure(directory / "fs")
