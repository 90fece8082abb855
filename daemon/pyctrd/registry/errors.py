"""Errors of the registry client that its callers act on."""

from pyctr_wire.errors import Unavailable


class Interrupted(Unavailable):
    """A blob's transfer broke off; what arrived is good so far, and the rest can be asked for."""
