"""Signals as people write them."""

import re
import signal
from typing import Final

_NUMBER: Final = re.compile("[0-9]{1,3}")  # an image may say thousands of digits, which int() refuses


def parse(text: str) -> int | None:
    """Return the number of "TERM", "SIGTERM", "15" or "RTMIN+3", None if it is no signal. Source: signal(7)."""
    name = text.upper().removeprefix("SIG")
    if _NUMBER.fullmatch(name) and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = getattr(signal, f"SIG{base}", None)
    if not isinstance(number, signal.Signals):
        return None
    if not sign:
        return int(number)
    if not base.startswith("RTM") or not _NUMBER.fullmatch(offset):
        return None
    value = number + int(sign + offset)
    return value if signal.SIGRTMIN <= value <= signal.SIGRTMAX else None
