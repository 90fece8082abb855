"""How long tests wait before they give up: generous for machines under load, the more so for emulated ones."""

import os
from typing import Final

from .virtual_machine import REPORTS_VARIABLE

# How many times longer than elsewhere everything may take on the processor that we are on.
SLOWNESS: Final = 10 if REPORTS_VARIABLE in os.environ else 1
DEADLINE: Final = 30.0 * SLOWNESS  # seconds
