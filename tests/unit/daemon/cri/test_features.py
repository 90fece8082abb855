"""What handlers are said to be able to, by what their programs print."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.containerd.types import introspection_pb2
from pyctrd.cri.features import Features, HandlerFeatures
from pyctrd.offload import Offload

CAN: dict[str, Any] = {"mountOptions": ["rro"], "linux": {"mountExtensions": {"idmap": {"enabled": True}}}}


@pytest.fixture(autouse=True)
def _mapping_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.sandbox.views.why_not_mapped", lambda _: "")


def program(path: Path, word: str, output: bytes) -> str:
    """Write a program that prints `output` if it is called with `word`, and fails else."""
    path.with_suffix(".out").write_bytes(output)
    path.write_text(f'#!/bin/sh\n[ "$1" = "{word}" ] && exec cat "{path.with_suffix(".out")}"\n')
    path.chmod(0o755)
    return str(path)


def runtime_info(document: Any) -> bytes:
    info = introspection_pb2.RuntimeInfo(name="other")
    info.features.value = json.dumps(document).encode()
    return info.SerializeToString()


async def test_a_program_and_a_shim_are_asked_in_their_own_way(tmp_path: Path) -> None:
    commands = {
        "runc": (program(tmp_path / "runc", "features", json.dumps(CAN).encode()), "features"),
        "shim": (program(tmp_path / "shim", "-info", runtime_info(CAN)), "-info"),
        "modest": (program(tmp_path / "modest", "-info", runtime_info({})), "-info"),
        "old": (program(tmp_path / "old", "nothing", b""), "-info"),
        "odd": (program(tmp_path / "odd", "-info", b"\xff\xff no message"), "-info"),
        "gone": (str(tmp_path / "gone"),),
    }
    threads = Offload(1, "test")
    try:
        found = await HandlerFeatures(commands, tmp_path, threads).all()
    finally:
        threads.close()

    able, unable = Features(True, True), Features(False, False)
    assert found == {"runc": able, "shim": able, "modest": unable, "old": unable, "odd": unable, "gone": unable}
