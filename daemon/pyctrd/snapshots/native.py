"""Native snapshots: each a whole copy of its parent, for file systems that overlayfs does not like.

<root>/<id>/fs          everything                                       0755
"""

from collections.abc import Sequence
from pathlib import Path

from pyctrd.core.mounts import Mount
from pyctrd.core.snapshots import Kind
from pyctrd.snapshots.directories import Note
from pyctrd.snapshots.driver import Driver
from pyctrd.snapshots.programs import run


class Native(Driver):
    """The files of native snapshots; what one takes has its parent's part in it."""

    name = "native"

    def create(self, directory: Path, parents: Sequence[Path], note: Note) -> Sequence[Mount]:
        """Copy the nearest of `parents`; where the file system can, the copy shares its blocks."""
        tree = directory / "fs"
        tree.mkdir(exist_ok=True)
        tree.chmod(0o755)
        if parents:
            # cp keeps owners, hard links, holes, devices and extended attributes, and asks for reflinks.
            run("cp", "--archive", "--reflink=auto", "--", f"{parents[0]}/fs/.", str(tree))
        return self.mounts(directory, parents, Kind(note.kind))

    def mounts(self, directory: Path, parents: Sequence[Path], kind: Kind) -> Sequence[Mount]:
        """Return the mount that shows a snapshot."""
        return [Mount("bind", f"{directory}/fs", options=("ro" if kind is Kind.VIEW else "rw", "rbind"))]
