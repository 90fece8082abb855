"""Where the command looks for a daemon."""

import os
from pathlib import Path

import pytest

from pyctr.session import DEFAULT_ADDRESS, default_address


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYCTR_ADDRESS", "CONTAINERD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize(("uid", "has_own", "is_own"), [(1000, True, True), (1000, False, False), (0, True, False)])
def test_an_ordinary_users_own_daemon_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, *, has_own: bool, is_own: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    own = tmp_path / "pyctr/pyctrd.sock"
    if has_own:
        own.parent.mkdir()
        own.touch()
    assert default_address() == (str(own) if is_own else DEFAULT_ADDRESS)


def test_what_the_environment_says_comes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/c")
    assert default_address() == "/c"
    monkeypatch.setenv("PYCTR_ADDRESS", "/p")
    assert default_address() == "/p"
