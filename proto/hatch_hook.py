"""hatchling build hook: generate code before the files of a wheel or an editable install are collected."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateHook(BuildHookInterface):
    """Runs proto/generate.py in the source tree."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the modules that `artifacts` names in pyproject.toml."""
        sys.path.insert(0, str(Path(self.root) / "proto"))
        import generate

        generate.main()
