"""Ids of execs that say whose they are."""

from typing import Final

OURS: Final = "pyctr-"  # what those of our command line begin with: the daemon may forget them once they have ended
