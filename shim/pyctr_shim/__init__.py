"""The detached parent of one container's processes."""

from typing import Final

VERSION: Final = "0.1.0"
"""The distribution's version; a constant, because asking importlib.metadata takes longer than the rest of `-v`."""
