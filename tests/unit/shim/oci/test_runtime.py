"""The parent's side where the kernel refuses."""

import errno
import os
from pathlib import Path

import pytest

from pyctr_shim.oci import forks, runtime
from pyctr_shim.oci.cgroups import Hierarchies
from pyctr_shim.oci.errors import OciError


def test_a_machine_without_another_process_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "clone3: Resource temporarily unavailable")

    monkeypatch.setattr(forks, "clone3", refuse)
    monkeypatch.setattr(forks, "start_stub", refuse)
    (tmp_path / "config.json").write_text("{}")
    options = runtime.CreateOptions(no_pivot_root=True)  # which only a fork can do
    forks.look_up_once()  # which keeps a descriptor
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OciError, match="error during create: clone3: Resource temporarily unavailable"):
        runtime.create("web", str(tmp_path), runtime.Stdio(0, 1, 2), options, Hierarchies({}, ""))
    assert os.listdir("/proc/self/fd") == before
