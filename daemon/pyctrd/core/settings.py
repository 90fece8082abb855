"""What limits a setting, beside its type."""

from typing import NamedTuple


class Least(NamedTuple):
    """The least value that a number may have."""

    value: float
