"""The daemon's command line."""

import os
from pathlib import Path

import pytest

from pyctr_sys.user_namespace import CannotEnter
from pyctrd.__main__ import main
from pyctrd.rootless import entry


def test_an_ordinary_user_without_ids_is_told_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise CannotEnter("/etc/subuid grants somebody no ids")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(entry, "enter", refuse)

    assert main(["--config", os.devnull, "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]) == 1

    said = capsys.readouterr().err
    assert said.startswith("pyctrd: /etc/subuid grants somebody no ids; it needs root, or a user namespace")
    assert "pyctr check rootless" in said
    assert not list(tmp_path.iterdir())


def test_levels_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Containerd's names are understood too; one that nobody knows is told with those that there are."""
    for level in ("debug", "warning", "warn", "trace"):
        assert main(["--config", os.devnull, "--log-level", level, "config", "check"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["--config", os.devnull, "--log-level", "loud", "config", "check"])
    assert "'loud' is none of debug, info, warning, error" in capsys.readouterr().err
