"""ImageFsInfo's sum: layers at once, what containers write now and then."""

from pathlib import Path

import pytest

from pyctrd.cri import filesystem_usage
from pyctrd.cri.filesystem_usage import UsageMeter
from pyctrd.offload import Offload
from support.stores import NS, Stores


async def test_layers_count_at_once_and_walks_are_remembered(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = stores.snapshots.named("native")
    offload = Offload(1)
    try:
        meter = UsageMeter(native, tmp_path, NS, offload)
        assert (await meter.measure()).size == 0
        native.prepare(NS, "layer-key", "", {})
        native.commit(NS, "layer", "layer-key", {})
        with_layer = await meter.measure()
        assert with_layer.inodes > 0
        [mount] = native.prepare(NS, "container", "layer", {})
        first = await meter.measure()
        assert first.inodes > with_layer.inodes

        (Path(mount.source) / "written").write_bytes(b"x" * 100_000)
        assert (await meter.measure())[2:] == first[2:]
        monkeypatch.setattr(filesystem_usage, "_GOOD_FOR", -1.0)
        assert (await meter.measure()).size >= first.size + 100_000

        native.remove(NS, "container")
        native.remove(NS, "layer")
        assert (await meter.measure())[2:] == (0, 0)
    finally:
        offload.close()
