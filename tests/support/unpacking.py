"""A differ on real stores: layers go in as bytes, and what they became is looked at through real mounts."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyctr_sys.mount import MNT_DETACH, MountFlag, mount, umount2
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.mounts import Mount
from pyctrd.diff.apply import apply
from pyctrd.diff.differ import Differ
from pyctrd.diff.limits import Limits
from pyctrd.diff.tar_stream import ByteStream, TarReader
from pyctrd.diff.tree import Tree
from pyctrd.diff.whiteouts import Style
from pyctrd.offload import Offload

from .layers import archive
from .stores import NS, Stores

TAR = "application/vnd.oci.image.layer.v1.tar"


class Unpacking:
    """Applies layers, directly or to snapshots."""

    def __init__(self, stores: Stores, offload: Offload, limits: Limits | None = None) -> None:
        """Use `stores`."""
        self.stores = stores
        self.offload = offload
        self.differ = Differ(stores.content, offload, limits)

    async def apply(
        self, layer: bytes, mounts: Sequence[Mount], media_type: str = TAR, *, sync_fs: bool = False
    ) -> Descriptor:
        """Store `layer` as a blob and unpack it."""
        digest = self.stores.content.write_blob(NS, f"test-{hashlib.sha256(layer).hexdigest()}", layer)
        return await self.differ.apply(NS, Descriptor(media_type, digest, len(layer)), mounts, sync_fs=sync_fs)

    async def snapshot(self, snapshotter: str, name: str, parent: str, layer: Any) -> None:
        """Commit a snapshot on `parent` of what `layer`, an archive or its members, makes of it."""
        snapshots = self.stores.snapshots.named(snapshotter)
        mounts = snapshots.prepare(NS, f"{name}-active", parent, {})
        data = layer if isinstance(layer, bytes) else archive(layer)
        applied = await self.apply(data, mounts)
        assert applied.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert (applied.size, applied.media_type) == (len(data), TAR)
        snapshots.commit(NS, name, f"{name}-active", {})

    def base(self, snapshotter: str, name: str, layer: Any) -> None:
        """Commit a snapshot without a parent, unpacked without a worker: many tests need one and none is about it."""
        snapshots = self.stores.snapshots.named(snapshotter)
        (mount,) = snapshots.prepare(NS, f"{name}-active", "", {})
        root_fd = os.open(mount.source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            tree = Tree(root_fd, None, Style.REMOVE, lambda _: None)
            apply(TarReader(ByteStream(iter([archive(layer)]))), tree, 1 << 30)
        finally:
            os.close(root_fd)
        snapshots.commit(NS, name, f"{name}-active", {})

    def view(self, snapshotter: str, name: str) -> Sequence[Mount]:
        """Return mounts that show a snapshot."""
        return self.stores.snapshots.named(snapshotter).view(NS, f"{name}-view-{os.urandom(4).hex()}", name, {})


@contextmanager
def mounted(mounts: Sequence[Mount]) -> Iterator[Path]:
    """Show `mounts`, one bind or overlay, on a directory for a while."""
    (one,) = mounts
    with tempfile.TemporaryDirectory() as folder:
        if one.type == "overlay":
            mount("overlay", folder, "overlay", 0, ",".join(one.options))
        else:
            mount(one.source, folder, None, MountFlag.BIND)
        try:
            yield Path(folder)
        finally:
            umount2(folder, MNT_DETACH)


def tree(root: Path) -> dict[str, str]:
    """Return every path below `root` with what it is: "/" for a directory, "-> target", or the file's text."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"-> {path.readlink()}"
        elif stat.S_ISREG(mode):
            what = path.read_text()
        else:
            what = "/" if stat.S_ISDIR(mode) else oct(stat.S_IFMT(mode))
        found[str(path.relative_to(root))] = what
    return found
