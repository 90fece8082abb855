"""Earlier versions of this project, built as wheels from its own history, and an environment that has one at a time.

The table names commits; a tag is as good. A version is built once and kept beside the programs that tests need.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

REPOSITORY: Final = Path(__file__).parents[2]


class Version(NamedTuple):
    """A version that people may have: where it is in the history, and which schema its database has."""

    name: str
    commit: str
    schema: int


CURRENT: Final = Version("current", "", 2)
# Each is the last of its kind: what a shim is, and how it talks, changed after it.
KEPT: Final = (
    Version("shims-sleep", "5c15e2f", 1),
    Version("inits-are-forked-ahead", "dbfaa4f", 2),
    Version("containers-are-made-in-place", "191fc96", 2),
)


class Environment:
    """A virtual environment with the dependencies of ours, in which pyctr can be replaced, as by pip."""

    def __init__(self, directory: Path) -> None:
        """Make it."""
        self._directory = directory
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        self.python = directory / "bin/python"
        found = subprocess.run(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        # Two directories more to look in. What is installed to be edited in the second one is not found by this.
        lines = (str(directory / "pyctr"), sysconfig.get_path("purelib"))
        (Path(found.stdout.strip()) / "found-elsewhere.pth").write_text("\n".join(lines) + "\n")

    def install(self, version: Version) -> None:
        """Have this version from now on, and no other."""
        link = self._directory / "pyctr.new"
        link.symlink_to(built(version, self._directory))
        link.replace(self._directory / "pyctr")

    def uninstall(self) -> None:
        """Have none any more."""
        (self._directory / "pyctr").unlink()


def built(version: Version, scratch: Path) -> Path:
    """Return the directory with a version's packages: the current one's, which changes, is below `scratch`.

    Skips the test where it cannot be built, and says why.
    """
    kept = Path(os.environ.get("PYCTR_TEST_BIN") or tempfile.gettempdir()) / "versions"
    folder = kept if version.commit else scratch
    target = folder / f"{version.name}-{version.commit}-{sys.version_info.major}.{sys.version_info.minor}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staging:
            made = _build(version, Path(staging))
            try:
                made.rename(target)
            except OSError:
                assert target.exists()  # another run was faster
    return target


def _build(version: Version, scratch: Path) -> Path:
    source = scratch / "source"
    source.mkdir()
    if version.commit:
        archive = subprocess.run(["git", "archive", version.commit], cwd=REPOSITORY, capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"no {version.commit} in this clone: {archive.stderr.decode().strip()[-200:]}")
        subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
    else:
        for name in ("proto", "shim", "daemon", "ctl"):
            shutil.copytree(REPOSITORY / name, source / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(REPOSITORY / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", scratch, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(scratch / "packages")
    return scratch / "packages"
