"""What the daemon says of a transfer that is no containerd's word, and that pyctr knows."""

from typing import Final

WARNING: Final = "warning: "  # begins an event that a person should read
