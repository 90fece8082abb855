"""Signals as people write them."""

import signal


def parse(text: str) -> int | None:
    """Return the number of "TERM", "SIGTERM", "15" or "RTMIN+3", None if it is no signal. Source: signal(7)."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdecimal() and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = getattr(signal, f"SIG{base}", None)
    if not isinstance(number, signal.Signals):
        return None
    if not sign:
        return int(number)
    if not base.startswith("RTM") or not offset.isdecimal():
        return None
    value = number + int(sign + offset)
    return value if signal.SIGRTMIN <= value <= signal.SIGRTMAX else None
