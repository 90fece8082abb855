"""A kernel's AppArmor, staged in files: what it tells in sysfs, and a parser that loads what it is given."""

from pathlib import Path
from types import TracebackType

from pyctrd.offload import Offload
from pyctrd.runtime.apparmor import AppArmor

# Keeps each text that it is told to load, and shows its name to be loaded. Told to fail, it does.
_PARSER = """#!/bin/sh
if [ -e {folder}/fails ]; then echo 'syntax error in line 7' >&2; exit 1; fi
[ "$*" = -Kr ] || exit 64
text=$(cat)
name=${{text#*\\"}}
printf '%s\\n' "$text" >>{folder}/loaded
echo "${{name%%\\"*}} (enforce)" >>{folder}/sys/kernel/security/apparmor/profiles
"""


class StagedKernel:
    """In `folder`; AppArmor is on and has one profile. The parser is in {folder}/bin."""

    def __init__(self, folder: Path) -> None:
        """Stage it."""
        self.enabled = folder / "sys/module/apparmor/parameters/enabled"
        self.profiles = folder / "sys/kernel/security/apparmor/profiles"
        self.parser = folder / "bin/apparmor_parser"
        self.failing = folder / "fails"
        self._loaded = folder / "loaded"
        for file, text in ((self.enabled, "Y\n"), (self.profiles, "of-the-node (enforce)\n")):
            file.parent.mkdir(parents=True)
            file.write_text(text)
        self.parser.parent.mkdir()
        self.parser.write_text(_PARSER.format(folder=folder))
        self.parser.chmod(0o755)
        self._threads = Offload(1)
        self.apparmor = AppArmor(self._threads, folder / "sys", str(self.parser.parent))

    def __enter__(self) -> "StagedKernel":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._threads.close()

    def loads(self) -> list[str]:
        """Return the names of the profiles that were loaded, in order."""
        lines = self._loaded.read_text().splitlines() if self._loaded.exists() else []
        return [line.split('"')[1] for line in lines if line.startswith("profile ")]
