"""The daemon's command line."""

import os
from pathlib import Path

import pytest

from pyctrd.__main__ import main


def test_only_root_may_start_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["--config", os.devnull, "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err == "pyctrd: it must be started by root, who alone may make containers\n"
    assert not list(tmp_path.iterdir())
