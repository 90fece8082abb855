"""Where an ordinary user's daemon has its files, and what its configuration is then."""

from pathlib import Path

import pytest

from pyctrd.config import loading
from pyctrd.rootless import paths


@pytest.fixture(autouse=True)
def _user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(paths.VARIABLE, "1234")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_at_home(tmp_path: Path) -> None:
    found = loading.load(None)
    assert (found.root, found.state) == (tmp_path / ".local/share/pyctr", Path("/run/user/1234/pyctr"))
    assert found.registry.docker_config == f"{tmp_path}/.docker/config.json"
    assert found.registry.config_path[0] == f"{tmp_path}/.config/pyctr/certs.d"


def test_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = loading.load(None)
    assert (found.root, found.address) == (Path("/d/pyctr"), "/r/pyctr/pyctrd.sock")
    assert loading.default_path() == tmp_path / "pyctr/config.toml"


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    """A table that names one key leaves the user's defaults of the others."""
    (tmp_path / ".config/pyctr").mkdir(parents=True)
    (tmp_path / ".config/pyctr/config.toml").write_text('root = "/x"\n[registry]\nplain_http = ["h"]\n')
    found = loading.load(None)
    assert found.root == Path("/x")
    assert found.state == Path("/run/user/1234/pyctr")
    assert found.registry.plain_http == ("h",)
    assert found.registry.docker_config == f"{tmp_path}/.docker/config.json"
